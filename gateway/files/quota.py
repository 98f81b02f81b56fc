"""How much is kept of whom: files and bytes of each tenant and of all, against their limits.

What is still being uploaded counts as it comes. Everything here is pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qlm_core.config_files import FilesConfig
from qlm_core.errors import InvalidRequest, NoRoom

_REMEDY = "Delete files that are not needed any more, or let them expire (expires_after)."


@dataclass(slots=True)
class Held:
    """What somebody has here: files that are kept or coming, and their bytes."""

    files: int = 0
    bytes_count: int = 0


@dataclass(slots=True)
class Quota:
    """What all tenants have here, and may have."""

    limits: FilesConfig
    total: Held = field(default_factory=Held)
    _tenants: dict[str, Held] = field(default_factory=dict)

    def of(self, owner: str) -> Held:
        """What a tenant has here; for reading only."""
        return self._tenants.get(owner) or Held()

    def begin(self, owner: str) -> None:
        """A file begins. Raises InvalidRequest, NoRoom; then it does not count."""
        limits = self.limits
        if self.of(owner).files >= limits.tenant_files_max:
            raise _own("tenant_files_max", f"{limits.tenant_files_max} files")
        if self.total.files >= limits.total_files_max:
            raise _everybodys("total_files_max", f"{limits.total_files_max} files")
        self._count(owner, 1, 0)

    def grow(self, owner: str, size: int) -> None:
        """So many bytes more of a file. Raises InvalidRequest, NoRoom; then they do not count."""
        limits = self.limits
        if self.of(owner).bytes_count + size > limits.tenant_bytes_max:
            raise _own("tenant_bytes_max", f"{limits.tenant_bytes_max} bytes")
        if self.total.bytes_count + size > limits.total_bytes_max:
            raise _everybodys("total_bytes_max", f"{limits.total_bytes_max} bytes")
        self._count(owner, 0, size)

    def keep(self, owner: str, bytes_count: int, *, files: int = 1) -> None:
        """So much is here, whatever the limits say."""
        self._count(owner, files, bytes_count)

    def drop(self, owner: str, bytes_count: int) -> None:
        """A file is gone, or does not come any more."""
        self._count(owner, -1, -bytes_count)

    def _count(self, owner: str, files: int, bytes_count: int) -> None:
        mine = self._tenants.setdefault(owner, Held())
        for held in (mine, self.total):
            held.files += files
            held.bytes_count += bytes_count
        if not mine.files:
            del self._tenants[owner]


def _own(key: str, limit: str) -> InvalidRequest:
    return InvalidRequest(
        "file",
        f"with it there would be more than the {limit} that a tenant may have here (gateway.files.{key})",
        _REMEDY,
        code="file_quota_exceeded",
    )


def _everybodys(key: str, limit: str) -> NoRoom:
    return NoRoom(
        f"file: the gateway keeps {limit} at most, of all tenants together, and has them",
        f"{_REMEDY} Its operator may raise gateway.files.{key}.",
    )
