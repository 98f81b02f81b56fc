"""The token ids behind the output of one request, as far as its engines tell them.

A continued attempt that begins with these ids stands exactly where the one before it stood. Ids are kept as long as each
token that the client has is among them; otherwise the request goes on from its text.
"""

from __future__ import annotations

from array import array

from qlm_core.messages import TokenIds


class Trail:
    """Ids of prompt and output, in the order in which an engine saw them."""

    __slots__ = ("_begins_at", "_ids", "_prompt_tokens")

    def __init__(self) -> None:
        self._ids = array("I")
        # Tokens of the prompt as the attempt had it that told them; text that was produced before is part of it.
        self._prompt_tokens = 0
        self._begins_at = 0

    def add(self, ids: TokenIds) -> None:
        """Take over what came with a chunk; ids that do not follow on what is here end the trail."""
        if ids.prompt:
            self._ids = array("I", ids.prompt)
            self._prompt_tokens = len(ids.prompt)
            self._begins_at = ids.position
        keep = self._prompt_tokens + ids.position - self._begins_at
        if not self._prompt_tokens or not self._prompt_tokens <= keep <= len(self._ids):
            self.clear()
            return
        del self._ids[keep:]
        self._ids.extend(ids.output)

    def clear(self) -> None:
        """Forget all ids."""
        self._ids = array("I")
        self._prompt_tokens = self._begins_at = 0

    def upto(self, produced_tokens: int) -> tuple[int, ...]:
        """All ids, if they end with the last of so many output tokens; else none."""
        told = len(self._ids) - self._prompt_tokens + self._begins_at
        if not self._prompt_tokens or told != produced_tokens:
            return ()
        return tuple(self._ids)
