"""How requests flow: through an instance while more wait than fit, and towards it while they go on arriving.

These are what estimators answer with; how they come to it is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.grouping import GroupKey


@dataclass(frozen=True, slots=True)
class Rate:
    """How one kind of request flows through one kind of instance while more wait than fit.

    Attributes:
        seconds_per_token: 1/Θ, output tokens of the whole batch.
        seconds_per_request: mean output / Θ: the pace at which waiting requests start.
        batch: mean number of requests running at once.
        residence_s: how long one request stays in the batch.
        variation: standard deviation of output lengths over their mean.
        uncertainty: standard deviation of the pace over its mean: lengths are known from as many requests as have ended.
        typical_output_s: how long seven of ten stay in the batch at most; 0 where no end is promised.
        long_output_s: the same of nine of ten.
        prefill_s: from start to first token.
        absorb_s: the pace at which waiting requests start while there is free room: prefill alone.
    """

    seconds_per_token: float
    seconds_per_request: float
    batch: float
    residence_s: float
    variation: float
    uncertainty: float
    typical_output_s: float
    long_output_s: float
    prefill_s: float
    absorb_s: float

    def pressed_s(self, key: GroupKey, rest_share: float) -> float:
        """The pace while first tokens press: of outputs that then give way, a share alone is done before the next ones."""
        share = rest_share if key.presses else 1.0
        return self.absorb_s + share * (self.seconds_per_request - self.absorb_s)


@dataclass(frozen=True, slots=True)
class Arriving:
    """One kind of request that goes on arriving.

    Attributes:
        per_s: how many arrive in a second, of late.
        age_s: for how long it has been arriving.
        long_per_s: how many arrive in a second over a longer time.
        seen: how many arrivals that is known from.
    """

    key: GroupKey
    per_s: float
    age_s: float
    long_per_s: float = 0.0
    seen: float = 0.0
