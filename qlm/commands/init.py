"""`qlm init`: writes a commented configuration for the GPUs, models and model servers of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlm.discovery import Model


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser("init", help="write a configuration for this machine")
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("config.yaml"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH_OR_NAME",
        help="a model to serve, a directory or a hub name (default: those in the hub's cache); may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--stdout", action="store_true", help="print it instead")


def run(args: argparse.Namespace) -> int:
    """Look, write, and say what was found."""
    import asyncio
    import os
    import socket

    from qlm import config_file, discovery, first_config
    from qlm.commands import options
    from qlm_core.errors import QlmError

    if not args.stdout:
        if args.file.exists() and not args.force:
            raise QlmError(
                f"{args.file}: is there already. Give --force to replace it, or another name."
            )
        options.require_writable(args.file, "FILE")
    cached = discovery.cached_models(discovery.cache_of(os.environ))
    models = [_named(name, cached) for name in args.model] or cached
    found = first_config.Found(
        host=socket.gethostname().partition(".")[0] or "here",
        gpus=discovery.gpus(),
        models=models,
        servers=asyncio.run(discovery.servers()),
    )
    text = first_config.text_of(found)
    config = config_file.parse(text, environ=os.environ)
    if args.stdout:
        print(text, end="")
        return 0
    args.file.write_text(text)
    simulated = all(agent.engine.kind == "sim" for agent in config.agents)
    print(
        f"found {len(found.gpus)} GPUs, {len(models)} models, {len(found.servers)} model servers\n"
        f"wrote {args.file}: models {', '.join(config.models)}; agents "
        f"{', '.join(agent.name for agent in config.agents)}"
        f"{', simulated GPUs that answer with made-up text' if simulated else ''}\n"
        "read it, then start it with `qlm up`"
    )
    return 0


def _named(name: str, cached: Sequence[Model]) -> Model:
    """A model that the user names: a directory, one of the cache, or one that is to be fetched."""
    from qlm import discovery
    from qlm_core.errors import QlmError

    folder = Path(name)
    if folder.is_dir():
        model = discovery.model_of(folder, str(folder.absolute()))
        if model is None:
            raise QlmError(f"--model: {name} has no config.json of a model that generates text.")
        return model
    known = next((one for one in cached if one.path == name), None)
    return known or discovery.Model(path=name)
