"""Files that commands write: whether they can be is asked before the work for them is done."""

from __future__ import annotations

from pathlib import Path

from qlm_core.errors import ConfigError


def require_place(option: str, file: str | None) -> None:
    """Raise ConfigError, naming the option, if a file has no folder to stand in or is one; None is no file."""
    if not file:
        return
    path = Path(file)
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: {file}: there is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise ConfigError(f"{option}: {file} is a folder. Name a file in it.")
