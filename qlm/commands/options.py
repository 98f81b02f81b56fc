"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlm.client import Client
    from qlm_core.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set path=value`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration file (default: $QLM_CONFIG, else ./config.yaml, else built-in defaults)",
    )
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override one key, for example solver.backend=highs; may be repeated",
    )


def config_of(args: argparse.Namespace) -> Config:
    """The configuration that the arguments select. Raises ConfigError."""
    from qlm import config_file

    return config_file.current(args.config, args.overrides)


def config_arguments(args: argparse.Namespace) -> list[str]:
    """The same arguments again, for a child process."""
    again: list[str] = ["--config", args.config] if args.config else []
    for text in args.overrides:
        again += ["--set", text]
    return again


def add_grpc(parser: argparse.ArgumentParser) -> None:
    """`--address`, `--api-key`, `--ca`: the gateway's gRPC address, and how it and its caller prove who they are."""
    parser.add_argument(
        "--address", help="gateway's gRPC host:port (default: $QLM_ADDRESS, else config)"
    )
    add_access(parser)


def add_access(parser: argparse.ArgumentParser) -> None:
    """`--api-key` and `--ca`: how the gateway and its caller prove who they are."""
    parser.add_argument("--api-key", default=None, help="bearer key (default: $QLM_API_KEY)")
    parser.add_argument(
        "--ca",
        default=None,
        help="CA of the gateway's certificate, a file or `system` (default: $QLM_CA, else config)",
    )


def address_of(args: argparse.Namespace) -> str:
    """The gateway's gRPC address; of a host without a port, the configured port there."""
    said = _said_address(args)
    if not said:
        return dialled(config_of(args).gateway.grpc_listen)
    return said if _has_port(said) else f"{said}:{_port(config_of(args).gateway.grpc_listen)}"


def _said_address(args: argparse.Namespace) -> str:
    import os

    said: str = getattr(args, "address", None) or os.environ.get("QLM_ADDRESS", "")
    return said


def _has_port(address: str) -> bool:
    return address.rpartition("]")[2].rpartition(":")[2].isdecimal()


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def dialled(address: str) -> str:
    """Where a listener of this machine is dialled: a wildcard is no address to go to."""
    from qlm_core.fleet_template import HOST, WILDCARDS

    host, _, port = address.rpartition(":")
    return f"{HOST}:{port}" if host in WILDCARDS else address


def add_http(parser: argparse.ArgumentParser) -> None:
    """`--url`: the gateway's HTTP address; the configured one by default."""
    parser.add_argument(
        "--url",
        help="gateway, for example http://127.0.0.1:7400 (default: $QLM_URL, else the host of $QLM_ADDRESS, else config)",
    )


def url_of(args: argparse.Namespace) -> str:
    """The gateway's HTTP base URL without a trailing slash."""
    import os

    scheme = "https" if ca_of(args) else "http"
    url: str = (args.url or os.environ.get("QLM_URL", "")).rstrip("/")
    if url:
        return url if "://" in url else f"{scheme}://{url}"
    listen = config_of(args).gateway.http_listen
    if said := _said_address(args):
        host = said.rpartition(":")[0] if _has_port(said) else said
        return f"{scheme}://{host}:{_port(listen)}"
    return f"{scheme}://{dialled(listen)}"


def require_writable(file: Path, option: str) -> None:
    """Raise QlmError unless a file can be written there: asked before the work whose result it takes."""
    import os

    from qlm_core.errors import QlmError

    folder = file.absolute().parent
    if not folder.is_dir():
        raise QlmError(f"{option}: {file.parent} is no folder. Create it or name another file.")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise QlmError(f"{option}: {file} cannot be written. Name another file.")


def key_of(args: argparse.Namespace) -> str:
    """The API key to send, "" for none."""
    import os

    return args.api_key if args.api_key is not None else os.environ.get("QLM_API_KEY", "")


def ca_of(args: argparse.Namespace) -> str:
    """Who vouches for the gateway, "" without TLS; of a gateway with TLS in the configuration the fleet's CA, if any."""
    import os

    from qlm.trust import SYSTEM

    said: str = args.ca if args.ca is not None else os.environ.get("QLM_CA", "")
    if said:
        return said
    config = config_of(args)
    return (config.tls.ca or SYSTEM) if config.gateway.tls.cert else ""


def client_of(args: argparse.Namespace) -> Client:
    """A client of the gateway that the arguments select. Raises QlmError."""
    from qlm.client import Client

    return Client(address_of(args), api_key=key_of(args), ca=ca_of(args))
