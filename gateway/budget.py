"""A count of bytes that has a limit."""

from __future__ import annotations


class Budget:
    """Bytes in use, of which there may be so many.

    Attributes:
        used: bytes in use now.
    """

    __slots__ = ("bytes_max", "used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0

    @property
    def over(self) -> bool:
        """Whether more is in use than may be."""
        return self.used > self.bytes_max

    def fits(self, size: int) -> bool:
        """Whether so many bytes more may be taken."""
        return self.used + size <= self.bytes_max

    def take(self, size: int) -> None:
        """Count so many bytes as used, whatever the limit says: whoever may wait asks `fits` first."""
        self.used += size

    def give(self, size: int) -> None:
        """So many bytes are free again."""
        self.used -= size
