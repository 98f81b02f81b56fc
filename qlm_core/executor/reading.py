"""What an engine still has to read of prompts, and who can have a first token in time behind that.

An engine computes prompts one after another, in an order that it is told once, with each request. So it is handed what it reads
now and an iteration's worth behind that; the rest waits here, where the order can still be mended. In overload that decides: were
prompts read strictly by due time, each would be late by what those before it are late.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from qlm_core.model import RequestId, RequestRef
from qlm_core.profile import EngineProfile

CAUTION = 1.25
"""So much longer than the profile says a first token may take and still be in time: engines decode besides."""

_CACHED_WEIGHT = 0.1
"""Weight of the newest prompt in the running mean of what engines compute of prompts: prefixes are cached."""


class _Unread(NamedTuple):
    place_s: float
    tokens: int


class Reading:
    """Prompts that the engine has and from which no token has come yet, with when each is due.

    Attributes:
        token_s: engine time of a prompt token by the profile.
        unread_tokens: what is to be computed of all of them.
    """

    __slots__ = ("_chunk_tokens", "_share", "_unread", "token_s", "unread_tokens")

    def __init__(self) -> None:
        self._chunk_tokens = 0
        self._unread: dict[RequestId, _Unread] = {}
        self._share = 1.0
        self.token_s = 0.0
        self.unread_tokens = 0

    def engine(self, profile: EngineProfile) -> None:
        """Count by this profile from now on."""
        self._chunk_tokens = profile.max_num_batched_tokens
        self.token_s = profile.prefill_s(self._chunk_tokens) / self._chunk_tokens
        self._share = 1.0

    def begin(self, ref: RequestRef, tokens: int, place_s: float) -> None:
        """The engine has been given a request.

        Args:
            tokens: of it to be computed, if nothing is in a cache.
            place_s: what the engine goes by, lower first.
        """
        if not ref.produced_tokens:
            tokens = int(self._share * tokens)
        self._unread[ref.id] = _Unread(place_s, tokens)
        self.unread_tokens += tokens

    def cached(self, tokens: int, cached_tokens: int | None) -> None:
        """A prompt of so many tokens that was new here has been computed; so many of them were in a cache, None if unknown."""
        if cached_tokens is not None and tokens > 0:
            share = 1.0 - min(cached_tokens, tokens) / tokens
            self._share += _CACHED_WEIGHT * (share - self._share)

    def end(self, id: RequestId) -> None:
        """Its first token is out, or the engine is rid of it; nothing where that is known already."""
        found = self._unread.pop(id, None)
        if found is not None:
            self.unread_tokens -= found.tokens

    def takes(self, place_s: float) -> bool:
        """Whether a request of that place would be read soon: at most an iteration's worth stands before it."""
        if self.unread_tokens < self._chunk_tokens or not self._chunk_tokens:
            return True
        before = [one.tokens for one in self._unread.values() if one.place_s <= place_s]
        return not before or sum(before) - max(before) < self._chunk_tokens

    def takes_all(self, tokens: int) -> bool:
        """Whether requests of so many tokens would all be read soon, in whatever order they are handed over."""
        return not self._chunk_tokens or self.unread_tokens + tokens <= self._chunk_tokens

    def in_time(self, ref: RequestRef, now_s: float) -> bool:
        """Whether a request handed over now has its first token in time; one that has begun is never late."""
        if ref.produced_tokens:
            return True
        own = int(self._share * ref.prompt_tokens)
        # Half of the iteration that is under way comes before it.
        under_way = min(self.unread_tokens, self._chunk_tokens) // 2
        first_s = (self._before(ref.due_s) + under_way + own) * self.token_s
        return now_s + CAUTION * first_s <= ref.due_s

    def place_s(self, ref: RequestRef, laxity_s: float, now_s: float) -> float:
        """What the engine goes by: when it is due, or would be had it just come, where it cannot be in time any more."""
        return ref.due_s if self.in_time(ref, now_s) else now_s + laxity_s

    def _before(self, place_s: float) -> int:
        return sum(one.tokens for one in self._unread.values() if one.place_s <= place_s)

    def check(self, running: Container[RequestId]) -> bool:
        """Whether the sums hold and nothing is waited for that does not run. O(n); for tests."""
        unread = sum(one.tokens for one in self._unread.values())
        return unread == self.unread_tokens and all(id in running for id in self._unread)
