"""Makes what the client has by copying: its wire of the server's, and the blocking client of that for asyncio.

`--check` makes both in a scratch folder and fails if what is committed differs.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

CLIENT = Path(__file__).resolve().parent
ROOT = CLIENT.parent
WIRE = "qlm_client/wire"
PROTOS = ("types", "client_service")
SOURCE = "qlm_client/async_client.py"
MADE = "qlm_client/sync_client.py"
# What unasync does not know: who opens channels, and what the file says of itself.
REPLACED = {"AsyncClient": "Client", "aio_channel": "channel", "aio_hang_up": "hang_up"}
_ABOUT = (
    "The client itself. `sync_client.py` is made of this file by `generate.py`; change this one."
)
_ABOUT_MADE = (
    "The blocking client. `generate.py` makes this file of `async_client.py`; change that one."
)


def generate(target: Path) -> list[str]:
    """Write everything below `target`; returns the names. Raises RuntimeError if the compiler fails."""
    (target / WIRE).mkdir(parents=True, exist_ok=True)
    return [*_wire(target), _blocking(target)]


def _wire(target: Path) -> list[str]:
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        sources = []
        for name in PROTOS:
            text = (ROOT / "protos" / "qlm" / "v1" / f"{name}.proto").read_text()
            text = text.replace("package qlm.v1;", "package qlm_client.v1;")
            text = text.replace('import "protos/qlm/v1/', f'import "{WIRE}/')
            copy = Path(scratch) / WIRE / f"{name}.proto"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)
            sources.append(f"{WIRE}/{name}.proto")
        plugin = Path(sys.executable).parent / "protoc-gen-mypy"
        code = protoc.main(
            [
                "protoc",
                f"--proto_path={scratch}",
                f"--proto_path={files('grpc_tools') / '_proto'}",
                f"--python_out={target}",
                f"--plugin=protoc-gen-mypy={plugin}",
                f"--mypy_out=quiet:{target}",
                *sources,
            ]
        )
    if code:
        raise RuntimeError(f"protoc failed with exit code {code}")
    return [f"{WIRE}/{name}_pb2{end}" for name in PROTOS for end in (".py", ".pyi")]


def _blocking(target: Path) -> str:
    import unasync

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "from" / "sync_client.py"
        source.parent.mkdir()
        source.write_text((CLIENT / SOURCE).read_text())
        rule = unasync.Rule(f"{source.parent}/", f"{scratch}/to/", REPLACED)
        unasync.unasync_files([str(source)], [rule])
        text = (Path(scratch) / "to" / "sync_client.py").read_text()
    text = text.replace(_ABOUT, _ABOUT_MADE)
    (target / MADE).write_text(_formatted(text))
    return MADE


def _formatted(text: str) -> str:
    import subprocess

    ruff = Path(sys.executable).parent / "ruff"
    config = f"--config={ROOT / 'pyproject.toml'}"
    for words in (["check", "--select=I,F401", "--fix", "--quiet"], ["format"]):
        command = [str(ruff), *words, config, "--stdin-filename", str(CLIENT / MADE), "-"]
        text = subprocess.run(
            command, input=text, capture_output=True, text=True, check=True
        ).stdout
    return text


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report files that are stale")
    if not parser.parse_args().check:
        generate(CLIENT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        names = generate(Path(scratch))
        stale = [
            name
            for name in names
            if not (CLIENT / name).exists()
            or not filecmp.cmp(Path(scratch) / name, CLIENT / name, shallow=False)
        ]
    for name in stale:
        sys.stderr.write(f"client/{name} is stale; run `make protos`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
