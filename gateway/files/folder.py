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
_NEW_MARK = "store.new"
# In a folder of nobody's: what a start that died left, and what is at the root of a file system.
_OVERLOOKED = (_NEW_MARK, "lost+found")
_INCOMING = "incoming"


class Folder:
    """One folder. `open` comes first.

    Args:
        path: where it is; None: a new one in `within`, removed at the end.
        within: the folder for that; None: the system's for what is temporary.
    """

    def __init__(self, path: Path | None, *, within: Path | None = None) -> None:
        self._given = path
        self._within = within
        self._path: Path | None = None
        # What is removed at the end: never what somebody else made, the present folder least of all.
        self._made: Path | None = None

    def open(self, mark: int) -> dict[str, int]:
        """Make the folder ready; returns the sizes of its files by their names. Raises QlmError, OSError.

        Args:
            mark: the number of the database that it belongs to.
        """
        path = self._given
        if path is None:
            if self._within is not None:
                self._within.mkdir(parents=True, exist_ok=True)
            path = self._made = Path(tempfile.mkdtemp(prefix="qlm-files-", dir=self._within))
        # Prompts are in there: for this user's eyes only.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        _require(path, mark)
        self._path = path
        sizes = {
            entry.name: entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(path)
            if entry.name.startswith("file-")
        }
        shutil.rmtree(path / _INCOMING, ignore_errors=True)
        (self.path / _INCOMING).mkdir(mode=0o700, exist_ok=True)
        return sizes

    @property
    def path(self) -> Path:
        """Where it is, once it was opened."""
        assert self._path is not None, "the folder of files is not open"
        return self._path

    @property
    def name(self) -> str:
        """Where it is or is to be, for people."""
        return str(self._path or self._given or self._within or tempfile.gettempdir())

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

    def _sync(self) -> None:
        """Have the names of the folder survive a power loss."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _require(path: Path, mark: int) -> None:
    """See that a folder is the database's, or nobody's yet, which makes it so. Raises QlmError, OSError."""
    try:
        found = (path / _MARK).read_text().strip()
    except FileNotFoundError:
        found = ""
    if found == str(mark):
        return
    # What is in a folder of somebody else's may have names that we would remove.
    theirs = [entry.name for entry in os.scandir(path) if entry.name not in _OVERLOOKED]
    if found or theirs:
        raise QlmError(
            f"gateway.store.files: {path} has files that are not those of the store at gateway.store.path. "
            "Put the store back to which they belong, or give this one a folder of its own."
        )
    new = path / _NEW_MARK
    new.write_text(f"{mark}\n")
    os.replace(new, path / _MARK)
