"""How the last requests of each SLO class fared: attainment, waits against targets, and estimates against what came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.answer import Json
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase

# What is shown is of this long, and of no more requests of a class.
WINDOW_S = 300.0
_KEPT_MAX = 2_000
# Points of the picture of estimates.
_POINTS_MAX = 80
_SHARES = (0.5, 0.9, 0.99)


class _End(NamedTuple):
    at_s: float
    attained: bool
    ttft_s: float | None
    estimate_s: tuple[float, float, float, float] | None


class Tally:
    """The last ends of each class.

    Args:
        now_s: the ledger's clock.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._of: dict[str, deque[_End]] = {}

    def ended(self, slo_class: str, record: EndRecord) -> None:
        """A request of the class has ended; one that its client gave up says nothing of how it was served."""
        if record.phase is Phase.CANCELLED:
            return
        given = record.estimate
        estimate_s = None
        if given is not None:
            estimate_s = (given.mean_s, given.p50_s, given.p90_s, given.p99_s)
        end = _End(self._now_s(), record.attained, record.ttft_s, estimate_s)
        self._of.setdefault(slo_class, deque(maxlen=_KEPT_MAX)).append(end)

    def classes(self) -> dict[str, Json]:
        """What is to be said of each class that had an end within the window."""
        since_s = self._now_s() - WINDOW_S
        shown = {}
        for slo_class, ends in self._of.items():
            while ends and ends[0].at_s < since_s:
                ends.popleft()
            if ends:
                shown[slo_class] = _said(ends)
        return shown


def _said(ends: Sequence[_End]) -> Json:
    waits_s = sorted(end.ttft_s for end in ends if end.ttft_s is not None)
    judged = [
        (end.estimate_s, end.ttft_s)
        for end in ends
        if end.estimate_s is not None and end.ttft_s is not None
    ]
    within = [
        round(
            sum(came_s <= estimate_s[1 + place] for estimate_s, came_s in judged) / len(judged), 3
        )
        for place in range(len(_SHARES))
        if judged
    ]
    step = max(1, len(judged) // _POINTS_MAX)
    points = [
        [round(estimate_s[0], 2), round(came_s, 2)]
        for estimate_s, came_s in judged[::-step][:_POINTS_MAX]
    ]
    return {
        "ended": len(ends),
        "attained": sum(end.attained for end in ends),
        "waits_s": [round(_quantile(waits_s, share), 3) for share in _SHARES] if waits_s else [],
        "within": within,
        "points": points,
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
