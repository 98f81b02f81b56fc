"""How fast the engine runs, as seen from its output: the rates that an agent reports, and the time between tokens."""

from __future__ import annotations

# Weight of the newest interval in the running mean of the time between tokens.
_WEIGHT = 0.3
# Weight of the newest request in the running mean of what is computed again of those that come back.
_RESUMED_WEIGHT = 0.1


class Pace:
    """Integrals over the time since the last report.

    Attributes:
        token_s: mean time between two output tokens of one running request.
        resume_share: of requests that came back, the mean share that was computed again; what is expected until one has ended.
        tokens_per_s, prompt_tokens_per_s, resumed_tokens_per_s, mean_batch: over the interval that the last `roll` closed.
    """

    def __init__(self) -> None:
        self.token_s = 0.0
        self.resume_share = 1.0
        self._resumed = False
        self.tokens_per_s = 0.0
        self.prompt_tokens_per_s = 0.0
        self.resumed_tokens_per_s = 0.0
        self.mean_batch = 0.0
        self._size = 0
        self._since_s = 0.0
        self._changed_s = 0.0
        self._tokens = 0
        self._prompt_tokens = 0
        self._resumed_tokens = 0
        self._batch_s = 0.0

    def resize(self, size: int, now_s: float) -> None:
        """So many requests run from now on."""
        self._batch_s += self._size * (now_s - self._changed_s)
        self._changed_s = now_s
        self._size = size

    def produce(self, tokens: int) -> None:
        """So many more tokens came out."""
        self._tokens += tokens

    def read(self, tokens: int, *, resumed: bool) -> None:
        """So many tokens were computed before the first new one; `resumed` says that they had been before."""
        if resumed:
            self._resumed_tokens += tokens
        else:
            self._prompt_tokens += tokens

    def expect(self, resume_share: float) -> None:
        """What to take for the share until requests have come back."""
        if not self._resumed:
            self.resume_share = resume_share

    def resume(self, tokens: int, cached_tokens: int | None) -> None:
        """A request that came back has ended; of so many tokens it found some in a cache, None if nobody knows."""
        if cached_tokens is None or tokens <= 0:
            return
        share = 1.0 - min(cached_tokens, tokens) / tokens
        self.resume_share += _RESUMED_WEIGHT * (share - self.resume_share)
        self._resumed = True

    def roll(self, now_s: float) -> None:
        """Close the interval and begin the next. Does nothing if no time has passed."""
        elapsed_s = now_s - self._since_s
        if elapsed_s <= 0.0:
            return
        self.resize(self._size, now_s)
        self.tokens_per_s = self._tokens / elapsed_s
        self.prompt_tokens_per_s = self._prompt_tokens / elapsed_s
        self.resumed_tokens_per_s = self._resumed_tokens / elapsed_s
        self.mean_batch = self._batch_s / elapsed_s
        if self._tokens and self._batch_s:
            self.token_s += _WEIGHT * (self._batch_s / self._tokens - self.token_s)
        self._since_s, self._batch_s = now_s, 0.0
        self._tokens = self._prompt_tokens = self._resumed_tokens = 0
