"""What became of each request of a run, and the statistics over them. Pure: no clock, no file, no network.

Latencies are as the client saw them, counted from the moment it sent the request. Attainment is the share of
requests that met every target of their class; a request that was shed, failed or lost missed them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import floor

import msgspec

from qlm_core.errors import QlmError
from qlm_core.model import Estimate, Slo

PROBLEMS_MAX = 20
REASON_CHARS_MAX = 200


class Fate(Enum):
    """How a request ended for its client."""

    FINISHED = "finished"
    SHED = "shed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One request of a run. Times are seconds; `sent_s` counts from the start of the run.

    Attributes:
        reason: why it did not finish, or how it did, in the service's words.
        pause_s: the longest time between two tokens, or pieces of the answer; None below two.
        estimate: the waiting time estimated at its arrival, where the service gave one.
        evictions: how often it was evicted and resumed; None where the transport does not tell.
    """

    model: str
    slo_class: str
    sent_s: float
    fate: Fate = Fate.LOST
    reason: str = ""
    ttft_s: float | None = None
    e2e_s: float | None = None
    output_tokens: int = 0
    estimate: Estimate | None = None
    evictions: int | None = None
    pause_s: float | None = None
    last_token_s: float | None = None

    def token_came(self, now_s: float) -> None:
        """A token, or several at once, came so long after the request was sent."""
        if self.ttft_s is None:
            self.ttft_s = now_s
        if self.last_token_s is not None:
            self.pause_s = max(self.pause_s or 0.0, now_s - self.last_token_s)
        self.last_token_s = now_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for a single token."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    def stretch(self, factor: float) -> None:
        """Put latencies and estimate onto a clock that runs so many times as fast."""
        self.ttft_s = None if self.ttft_s is None else self.ttft_s * factor
        self.e2e_s = None if self.e2e_s is None else self.e2e_s * factor
        self.pause_s = None if self.pause_s is None else self.pause_s * factor
        given = self.estimate
        if given is not None:
            self.estimate = Estimate(
                mean_s=given.mean_s * factor,
                p50_s=given.p50_s * factor,
                p90_s=given.p90_s * factor,
                p99_s=given.p99_s * factor,
            )

    def attained(self, slo: Slo) -> bool:
        """Whether it finished within every target."""
        if self.fate is not Fate.FINISHED or self.ttft_s is None or self.e2e_s is None:
            return False
        return slo.met_by(ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2e_s=self.e2e_s)


class Quantiles(msgspec.Struct, frozen=True):
    """Three quantiles of a measured quantity, in seconds; None over nothing."""

    p50: float | None
    p90: float | None
    p99: float | None


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO class of a run; `fates` has a count for every fate and adds up to `requests`."""

    name: str
    requests: int
    fates: dict[str, int]
    attained: int
    attainment_ratio: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    pause_s: Quantiles
    e2e_s: Quantiles
    output_tokens: int


class EstimateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated against realised waiting times, over the requests that have both.

    `r2` is the coefficient of determination of the estimated means; `within_p90_ratio` is the share of requests
    that waited no longer than the p90 estimate and would be 0.9 if estimates were perfect.
    """

    requests: int
    mean_estimated_s: float
    mean_realised_s: float
    mean_absolute_error_s: float
    r2: float | None
    within_p90_ratio: float


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that did not finish for one reason."""

    fate: str
    reason: str
    requests: int


class Interruption(msgspec.Struct, frozen=True, kw_only=True):
    """What of a run that was cut short has no outcome: requests on their way, and those never sent."""

    in_flight: int
    not_sent: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run: the `requests` that have an outcome, which are all of them unless it was `interrupted`.

    `evictions` and `swaps` are None where nobody could be asked.
    `problems` tells why requests did not finish, the most frequent reasons first, at most `PROBLEMS_MAX`.
    """

    requests: int
    interrupted: Interruption | None = None
    elapsed_s: float
    requests_per_s: float
    output_tokens_per_s: float
    fates: dict[str, int]
    attainment_ratio: float
    classes: tuple[ClassReport, ...]
    estimate: EstimateReport | None
    evictions: int | None = None
    swaps: int | None = None
    problems: tuple[Problem, ...] = ()


class AccountingError(QlmError):
    """A run ended without an outcome for each request."""


def quantile(ascending: Sequence[float], share: float) -> float | None:
    """The quantile of sorted values with linear interpolation, as NumPy's default; None of none."""
    if not ascending:
        return None
    position = share * (len(ascending) - 1)
    low = floor(position)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (position - low) * (ascending[high] - ascending[low])


def summarise(
    outcomes: Sequence[Outcome],
    slos: Mapping[str, Slo],
    *,
    sent: int,
    elapsed_s: float,
    evictions: int | None = None,
    swaps: int | None = None,
    interrupted: Interruption | None = None,
) -> Report:
    """Statistics over a run in which `sent` requests were sent.

    Raises:
        AccountingError: the outcomes are not exactly one for each request sent and not in flight.
    """
    in_flight = interrupted.in_flight if interrupted is not None else 0
    if len(outcomes) != sent - in_flight:
        raise AccountingError(
            f"{sent} requests were sent, {len(outcomes)} have an outcome and {in_flight} are in flight."
        )
    names = dict.fromkeys([*slos, *(outcome.slo_class for outcome in outcomes)])
    classes = tuple(
        _class_report(name, [o for o in outcomes if o.slo_class == name], slos.get(name))
        for name in names
    )
    classes = tuple(one for one in classes if one.requests)
    if sum(sum(one.fates.values()) for one in classes) != len(outcomes):
        raise AccountingError("the counts by class do not add up to the requests sent.")
    seconds = max(elapsed_s, 1e-9)
    counted = [outcome.evictions for outcome in outcomes if outcome.evictions is not None]
    if evictions is None and counted:
        evictions = sum(counted)
    return Report(
        requests=len(outcomes),
        interrupted=interrupted,
        elapsed_s=elapsed_s,
        requests_per_s=sum(o.fate is Fate.FINISHED for o in outcomes) / seconds,
        output_tokens_per_s=sum(outcome.output_tokens for outcome in outcomes) / seconds,
        fates=_fates(outcomes),
        attainment_ratio=_ratio(sum(one.attained for one in classes), _promised(outcomes)),
        classes=classes,
        estimate=_estimates(outcomes),
        evictions=evictions,
        swaps=swaps,
        problems=_problems(outcomes),
    )


def to_json(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def _class_report(name: str, outcomes: Sequence[Outcome], slo: Slo | None) -> ClassReport:
    attained = sum(outcome.attained(slo) for outcome in outcomes) if slo is not None else 0
    return ClassReport(
        name=name,
        requests=len(outcomes),
        fates=_fates(outcomes),
        attained=attained,
        attainment_ratio=_ratio(attained, _promised(outcomes)),
        ttft_s=_quantiles(outcome.ttft_s for outcome in outcomes),
        tpot_s=_quantiles(outcome.tpot_s for outcome in outcomes),
        pause_s=_quantiles(outcome.pause_s for outcome in outcomes),
        e2e_s=_quantiles(outcome.e2e_s for outcome in outcomes if outcome.fate is Fate.FINISHED),
        output_tokens=sum(outcome.output_tokens for outcome in outcomes),
    )


def _promised(outcomes: Sequence[Outcome]) -> int:
    """A request that its client cancelled was promised nothing any more."""
    return sum(outcome.fate is not Fate.CANCELLED for outcome in outcomes)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _fates(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts = {fate.value: 0 for fate in Fate}
    for outcome in outcomes:
        counts[outcome.fate.value] += 1
    return counts


def _problems(outcomes: Iterable[Outcome]) -> tuple[Problem, ...]:
    counts = Counter(
        (outcome.fate.value, outcome.reason[:REASON_CHARS_MAX])
        for outcome in outcomes
        if outcome.fate is not Fate.FINISHED
    )
    return tuple(
        Problem(fate=fate, reason=reason, requests=count)
        for (fate, reason), count in counts.most_common(PROBLEMS_MAX)
    )


def _quantiles(values: Iterable[float | None]) -> Quantiles:
    ascending = sorted(value for value in values if value is not None)
    return Quantiles(*(quantile(ascending, share) for share in (0.5, 0.9, 0.99)))


def _estimates(outcomes: Iterable[Outcome]) -> EstimateReport | None:
    pairs = [(o.estimate, o.ttft_s) for o in outcomes if o.estimate is not None and o.ttft_s]
    if not pairs:
        return None
    estimated = [estimate.mean_s for estimate, _ in pairs]
    realised = [wait_s for _, wait_s in pairs]
    mean_s = sum(realised) / len(pairs)
    spread = sum((wait_s - mean_s) ** 2 for wait_s in realised)
    residue = sum((e - w) ** 2 for e, w in zip(estimated, realised, strict=True))
    return EstimateReport(
        requests=len(pairs),
        mean_estimated_s=sum(estimated) / len(pairs),
        mean_realised_s=mean_s,
        mean_absolute_error_s=sum(abs(e - w) for e, w in zip(estimated, realised, strict=True))
        / len(pairs),
        r2=1 - residue / spread if spread > 0 else None,
        within_p90_ratio=sum(wait_s <= estimate.p90_s for estimate, wait_s in pairs) / len(pairs),
    )
