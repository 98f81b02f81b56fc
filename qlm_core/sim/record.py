"""What a simulated run leaves: one row of numbers per request, and totals of the fleet.

Rows are kept in flat arrays, since a run may hold millions of them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from math import nan

from qlm_core.ledger import EndRecord
from qlm_core.model import Phase


@dataclass(slots=True)
class RunRecord:
    """One policy on one bed with one seed.

    Attributes:
        slo_class: [n] index into `classes`, in order of arrival, as are all arrays.
        ended: [n] how many terminal records the request had.
        ttft_s, e2e_s, tpot_s: [n] NaN where there is none.
        pause_s: [n] the longest time between two tokens of an output; NaN below two.
        mean_s, p50_s, p90_s: [n] the estimated wait at arrival; NaN without one.
        cut: requests that were longer than their model's smallest instance holds.
        preemptions: by engines themselves, when their KV cache was full.
        steps: entries of the agenda that happened.
    """

    classes: tuple[str, ...]
    arrival_s: array[float] = field(default_factory=lambda: array("d"))
    slo_class: array[int] = field(default_factory=lambda: array("h"))
    ended: array[int] = field(default_factory=lambda: array("b"))
    attained: array[int] = field(default_factory=lambda: array("b"))
    finished: array[int] = field(default_factory=lambda: array("b"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))
    pause_s: array[float] = field(default_factory=lambda: array("d"))
    e2e_s: array[float] = field(default_factory=lambda: array("d"))
    mean_s: array[float] = field(default_factory=lambda: array("d"))
    p50_s: array[float] = field(default_factory=lambda: array("d"))
    p90_s: array[float] = field(default_factory=lambda: array("d"))
    output_tokens: int = 0
    evictions: int = 0
    last_end_s: float = 0.0
    swaps: int = 0
    swap_s: float = 0.0
    busy_s: float = 0.0
    preemptions: int = 0
    instances: int = 0
    solves: int = 0
    cut: int = 0
    steps: int = 0

    def arrived(self, arrival_s: float, slo_class: int) -> int:
        """Enter a request; returns its number."""
        self.arrival_s.append(arrival_s)
        self.slo_class.append(slo_class)
        for counts in (self.ended, self.attained, self.finished):
            counts.append(0)
        estimates = (self.mean_s, self.p50_s, self.p90_s)
        for times in (self.ttft_s, self.tpot_s, self.pause_s, self.e2e_s, *estimates):
            times.append(nan)
        return len(self.arrival_s) - 1

    def end(self, number: int, record: EndRecord, now_s: float) -> None:
        """Enter a terminal record."""
        self.ended[number] = min(100, self.ended[number] + 1)
        self.attained[number] = record.attained
        self.finished[number] = record.phase is Phase.FINISHED
        self.ttft_s[number] = nan if record.ttft_s is None else record.ttft_s
        self.tpot_s[number] = nan if record.tpot_s is None else record.tpot_s
        self.pause_s[number] = nan if record.pause_s is None else record.pause_s
        self.e2e_s[number] = record.e2e_s
        if record.estimate is not None:
            self.mean_s[number] = record.estimate.mean_s
            self.p50_s[number] = record.estimate.p50_s
            self.p90_s[number] = record.estimate.p90_s
        self.output_tokens += record.output_tokens
        self.evictions += record.evictions
        self.last_end_s = now_s
