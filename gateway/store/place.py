"""The file of a store and its name: who has it, and whether the name still leads to it.

A file that is deleted or replaced while it is open takes commits as ever, and nobody finds them again. So the name is looked
at before each commit.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from qlm_core.errors import QlmError

_Identity = tuple[int, int]


class Place:
    """One path, and the file there from `take` to `release`.

    Attributes:
        path: without symbolic links once it was taken, since one file has one lock by whatever name it is called.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._held: list[int] = []
        self._identity: _Identity | None = None

    def take(self) -> None:
        """Lock the file, made if there is none. Raises QlmError if another gateway has it, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path = self.path.resolve()
        # The lock beside it is there for what the file itself cannot have before it exists; the one on it holds where the
        # other one was deleted, or the file has a second name. Prompts are in there: for this user's eyes only.
        for name in (f"{self.path}.lock", self.path):
            self._held.append(os.open(name, os.O_CREAT | os.O_RDWR, 0o600))
            try:
                fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise QlmError(
                    f"gateway.store.path: another gateway has {self.path} open. "
                    "Give each gateway a store of its own, or stop the other one."
                ) from None
        self._identity = _identity(os.fstat(self._held[-1]))

    def release(self) -> None:
        """Let others have it. No connection may be open: closing the file ends the database's own locks."""
        while self._held:
            os.close(self._held.pop())

    def require(self) -> None:
        """Raises OSError if the name leads to another file by now, or to none."""
        if self._found(self.path) != self._identity:
            raise OSError(
                f"{self.path} is no longer the file that was opened; "
                "put that back, or restart the gateway to go on with what is there"
            )

    def journal(self) -> _Identity | None:
        """Which file is the journal by its name; None without one."""
        return self._found(Path(f"{self.path}-wal"))

    def _found(self, path: Path) -> _Identity | None:
        try:
            return _identity(os.stat(path))
        except FileNotFoundError:
            return None


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino
