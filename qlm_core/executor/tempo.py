"""How many requests may run together so that everybody's promised pace is kept.

An engine decodes all of its batch in each iteration, so each request slows all others down, and so does the prompt of each
successor. A class that names `tpot_s` therefore bounds the batch that its outputs are in, for whatever shares it. A pace that the
engine cannot keep even for one output alone bounds nothing: to run one after another would help nobody.
"""

from __future__ import annotations

from math import inf, log

from qlm_core.profile import PACE_AIM, EngineProfile

# Means within a tenth of each other are alike.
_BUCKETS = 10.0
_REMEMBERED = 4096


class Tempo:
    """The means of what is in flight on one engine, the paces promised of it, and the batch that keeps them."""

    __slots__ = (
        "_alone_s",
        "_found",
        "_many",
        "_output_tokens",
        "_paces",
        "_profile",
        "_prompt_tokens",
    )

    def __init__(self) -> None:
        self._alone_s = 0.0
        self._profile: EngineProfile | None = None
        self._found: dict[tuple[float, int, int, int], int] = {}
        self._paces: dict[float, int] = {}
        self._many = self._prompt_tokens = self._output_tokens = 0

    def engine(self, profile: EngineProfile) -> None:
        """Count by this profile from now on."""
        self._profile = profile
        self._alone_s = profile.iteration_s(decode_batch=1)
        self._found.clear()

    def count(self, sign: int, *, prompt_tokens: int, output_tokens: int, pace_s: float) -> None:
        """A request comes into flight (1) or leaves it (-1); an infinite pace stands for none."""
        self._many += sign
        self._prompt_tokens += sign * prompt_tokens
        self._output_tokens += sign * output_tokens
        if pace_s == inf:
            return
        left = self._paces.get(pace_s, 0) + sign
        if left:
            self._paces[pace_s] = left
        else:
            del self._paces[pace_s]

    @property
    def pace_s(self) -> float:
        """The strictest pace in flight that this engine can keep at all; infinite where none is promised."""
        return min((pace_s for pace_s in self._paces if pace_s >= self._alone_s), default=inf)

    def prompt_tokens(self, running: int, resident_tokens: int) -> float:
        """Prompt tokens that an iteration beside so many outputs may compute at the strictest pace; infinite where none is."""
        profile, pace_s = self._profile, self.pace_s
        if pace_s == inf or profile is None:
            return inf
        decode_s = profile.iteration_s(decode_batch=running, context_tokens=resident_tokens)
        chunk = profile.max_num_batched_tokens
        token_s = profile.prefill_s(chunk) / chunk
        return (PACE_AIM * pace_s - decode_s) / token_s if token_s else inf

    def slots(self, charged_tokens: int) -> float:
        """Requests that may run together, at least 1; infinite where no pace is promised.

        Args:
            charged_tokens: what all in flight are charged of the KV cache.
        """
        profile, pace_s = self._profile, self.pace_s
        if pace_s == inf or profile is None:
            return inf
        prompt, output, resident = (
            max(1.0, tokens / self._many)
            for tokens in (self._prompt_tokens, self._output_tokens, charged_tokens)
        )
        key = pace_s, _bucket(prompt), _bucket(output), _bucket(resident)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[key] = profile.slots_at_pace(
                PACE_AIM * pace_s,
                mean_prompt=prompt,
                mean_output=output,
                resident_tokens=resident,
            )
        return found


def _bucket(tokens: float) -> int:
    return round(_BUCKETS * log(tokens))
