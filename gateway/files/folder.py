"""The folder that has the bytes of files: `file-…` for each, and what is still coming under `incoming`.

A file gets its name once it is whole and synced, so what has a name is whole, also after a power loss. Which files there
are is the database's to say; the two belong together by a number that both have, and nothing is removed where they do not.
Everything here blocks, and is for threads.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from qlm_core.errors import QlmError

_MARK = "store"
_INCOMING = "incoming"


class Folder:
    """One folder. `open` comes first.

    Args:
        path: where it is; None: a new one in `within`, removed at the end.
        within: the folder for that; None: the system's for what is temporary.
    """

    def __init__(self, path: Path | None, *, within: Path | None = None) -> None:
        self._temporary = path is None
        self._within = within
        self.path = path or Path()
        # What is removed at the end: never what somebody else made, the present folder least of all.
        self._made: Path | None = None

    def open(self, mark: int) -> dict[str, int]:
        """Make the folder ready; returns the sizes of its files by their names. Raises QlmError, OSError.

        Args:
            mark: the number of the database that it belongs to.
        """
        if self._temporary:
            if self._within is not None:
                self._within.mkdir(parents=True, exist_ok=True)
            self.path = self._made = Path(tempfile.mkdtemp(prefix="qlm-files-", dir=self._within))
        # Prompts are in there: for this user's eyes only.
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = self.path.resolve()
        sizes = {
            entry.name: entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(self.path)
            if entry.name.startswith("file-")
        }
        self._require(mark, empty=not sizes)
        shutil.rmtree(self.path / _INCOMING, ignore_errors=True)
        (self.path / _INCOMING).mkdir(mode=0o700, exist_ok=True)
        return sizes

    def of(self, id: str) -> Path:
        """Where the bytes of a file are."""
        return self.path / id

    def incoming(self) -> Path:
        """A name for what is coming."""
        return self.path / _INCOMING / secrets.token_hex(16)

    def workspace(self, name: str) -> Path:
        """A folder on the same file system, made if it is not there, for what is going to be a file."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def rename(self, whole: Path, id: str) -> None:
        """Give what has come, and is synced, its name."""
        os.replace(whole, self.of(id))
        self._sync()

    def adopt(self, source: Path, id: str) -> int:
        """Give a file its name as well, synced; returns its size. The old name stays, for who has to try again."""
        with source.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        name = self.incoming()
        os.link(source, name)
        # Where both are names of the same file already, this does nothing and leaves both.
        os.replace(name, self.of(id))
        name.unlink(missing_ok=True)
        self._sync()
        return size

    def remove(self, *ids: str) -> None:
        """Delete files. Those that are gone already do not matter."""
        for id in ids:
            self.of(id).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder if it is temporary."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def _require(self, mark: int, *, empty: bool) -> None:
        """See that the folder is the database's. Raises QlmError."""
        path = self.path / _MARK
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            found = ""
        if found == str(mark):
            return
        if found or not empty:
            raise QlmError(
                f"gateway.store.files: {self.path} has files of another store than gateway.store.path. "
                "Put the store back to which it belongs, or give this one a folder of its own."
            )
        new = self.path / f"{_MARK}.new"
        new.write_text(f"{mark}\n")
        os.replace(new, path)

    def _sync(self) -> None:
        """Have the names of the folder survive a power loss."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
