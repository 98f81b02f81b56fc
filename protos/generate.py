"""Generates the Python code of the protocol, in place beside its definitions.

The output is committed, so users need no compiler. `--check` regenerates into a scratch folder and fails if the
committed code differs. The pinned grpcio-tools writes code that loads on every protobuf from 6.31.1 to 7.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "protos/qlm/v1"


def generate(target: Path) -> None:
    """Write the generated modules below `target`. Raises RuntimeError if the compiler fails."""
    from grpc_tools import protoc

    scripts = Path(
        sys.executable
    ).parent  # the plugins lie beside this Python, which need not be on PATH
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / FOLDER).glob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            *(
                f"--plugin={name}={scripts / name}"
                for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
            ),
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ]
    )
    if code:
        raise RuntimeError(f"protoc failed with exit code {code}")


def stale() -> list[str]:
    """Names of committed generated files that differ from what the definitions give."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name: path for path in (Path(scratch) / FOLDER).iterdir()}
        committed = {path.name: path for path in (ROOT / FOLDER).glob("*_pb2*")}
        names = sorted(fresh.keys() | committed.keys())
        return [
            name
            for name in names
            if name not in fresh
            or name not in committed
            or not filecmp.cmp(fresh[name], committed[name], shallow=False)
        ]


def main() -> int:
    """Entry point of `python -m protos.generate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only report files that are stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = stale()
    for name in names:
        sys.stderr.write(f"{FOLDER}/{name} is stale; run `make protos`\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
