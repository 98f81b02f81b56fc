"""What a request that left the engine's batch may still find in the KV cache when it comes back.

Freed blocks join the end of the free list with their content, and are handed out again from its
front (vLLM's prefix cache). So a freed block is overwritten once as many blocks have been handed
out as were free before it.
"""

from __future__ import annotations

_REQUESTS_MAX = 4096


class PrefixMemory:
    """The freed blocks of requests that may come back; the oldest are forgotten beyond a limit."""

    __slots__ = ("_freed", "handed_out")

    def __init__(self) -> None:
        self.handed_out = 0
        self._freed: dict[str, tuple[int, int]] = {}

    def free(self, request_id: str, *, full_blocks: int, free_before: int) -> None:
        """Note that a request gave its blocks back.

        Args:
            full_blocks: its blocks that are filled and so can be found again.
            free_before: free blocks in front of them, its own unfilled ones included: they are freed
                last first, so an unfilled tail is overwritten before the rest.
        """
        self._freed.pop(request_id, None)
        self._freed[request_id] = (full_blocks, self.handed_out + free_before)
        if len(self._freed) > _REQUESTS_MAX:
            del self._freed[next(iter(self._freed))]

    def take(self, request_id: str) -> int:
        """Leading blocks of a request that are intact; they are its own again from now on."""
        full_blocks, overwritten_from = self._freed.pop(request_id, (0, 0))
        return max(0, full_blocks - max(0, self.handed_out - overwritten_from))

    def forget(self, request_id: str) -> None:
        """The request has ended and will not come back."""
        self._freed.pop(request_id, None)
