"""What gateways are told of when their batches will be done: when it is known, and again when it has changed.

A finish time is looked at more often the nearer it is. Like waits, finish times are calibrated by what became of earlier ones,
apart for each stage of a batch: before any line has ended, and with the first third, the second and the last under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt

from qlm_core.grouping import BatchKey, RequestGroup
from qlm_core.manager.bulks import Bulk, Bulks
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import TellGateway
from qlm_core.manager.finish_words import explained, unserved
from qlm_core.manager.finishing import Forecaster, Outlook, Work
from qlm_core.manager.fleet import Agent
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import BulkEstimate
from qlm_core.model import AgentId, GroupId
from qlm_core.rwt.calibration import Calibration, Coverage
from qlm_core.rwt.waits import Wait

FIRST_LOOK_S = 0.05
"""The parts of a batch of several models are told one after the other."""

LOOK_S_MIN, LOOK_S_MAX = 1.0, 60.0
LOOK_SHARE = 0.02
"""A finish time is looked at again after such a share of the time that is left."""

NOTABLE_S, NOTABLE_SHARE = 1.0, 0.05
LOOKS_AT_ONCE = 16

STAGES = (0.0, 1 / 3, 2 / 3, 1.0)
"""Up to so much of a batch is done in each."""


class Known:
    """What has been said of one batch.

    Attributes:
        order: the last word. at_s: when it was given.
        next_s: when it is looked at again.
        waits: by stage, what was said when that began.
        cut: whether lines did not end by themselves.
    """

    __slots__ = ("at_s", "cut", "next_s", "order", "waits")

    def __init__(self, next_s: float) -> None:
        self.order: BulkEstimate | None = None
        self.at_s = 0.0
        self.cut = False
        self.next_s = next_s
        self.waits: dict[int, Wait] = {}


class Finishes:
    """Finish times of all batches."""

    __slots__ = ("_bulks", "_calibrations", "_forecaster", "_known", "_next_s")

    def __init__(self, estimators: Estimators, bulks: Bulks):
        self._bulks = bulks
        self._forecaster = Forecaster(estimators)
        self._known: dict[BatchKey, Known] = {}
        self._calibrations = tuple(Calibration(first=(0.0, 0.0, 0.0)) for _ in STAGES)
        self._next_s = inf

    @property
    def next_s(self) -> float:
        """When one is to be looked at; infinite without a batch."""
        return self._next_s

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """How often the quantiles held, by stage."""
        return tuple(one.counts for one in self._calibrations)

    def of(self, batch: BatchKey) -> BulkEstimate | None:
        """What was said last of a batch."""
        known = self._known.get(batch)
        return None if known is None else known.order

    def _take_note(self, now_s: float) -> None:
        """Of batches that came, and of which nothing is left."""
        for bulk in self._bulks.new:
            if bulk.key.batch is not None and bulk.key.batch not in self._known:
                self._known[bulk.key.batch] = Known(now_s + FIRST_LOOK_S)
                self._next_s = min(self._next_s, now_s + FIRST_LOOK_S)
        self._bulks.new.clear()
        going = self._bulks.by_batch() if self._bulks.over else {}
        for bulk in self._bulks.over:
            known = self._known.get(bulk.key.batch) if bulk.key.batch is not None else None
            if known is not None and bulk.key.batch is not None:
                known.cut |= bulk.cut
                if bulk.key.batch not in going:
                    del self._known[bulk.key.batch]
                    self._learn(known, now_s)
        self._bulks.over.clear()

    def _learn(self, known: Known, now_s: float) -> None:
        """A batch is over: see how well its finish was foretold. Of one that was cut short that will never be known."""
        for stage, wait in known.waits.items():
            if known.cut:
                self._calibrations[stage].forget(wait)
            else:
                self._calibrations[stage].observe(wait, now_s - wait.told_at_s)

    def due(
        self,
        agents: Mapping[AgentId, Agent],
        groups: Mapping[GroupId, RequestGroup],
        timeline: Timeline,
        *,
        now_s: float,
    ) -> list[TellGateway]:
        """What is to be said now."""
        if self._bulks.new or self._bulks.over:
            self._take_note(now_s)
        if now_s < self._next_s:
            return []
        orders = []
        late = [(known.next_s, key) for key, known in self._known.items() if known.next_s <= now_s]
        if late:
            parts = self._bulks.by_batch()
            for _, key in sorted(late)[:LOOKS_AT_ONCE]:
                order = self._look(key, parts.get(key, []), agents, groups, timeline, now_s)
                if order is not None:
                    orders.append(TellGateway(key[0], order))
        self._next_s = min([known.next_s for known in self._known.values()], default=inf)
        return orders

    def _look(
        self,
        batch: BatchKey,
        parts: Sequence[Bulk],
        agents: Mapping[AgentId, Agent],
        groups: Mapping[GroupId, RequestGroup],
        timeline: Timeline,
        now_s: float,
    ) -> BulkEstimate | None:
        """Look at one batch; returns what is to be said, None if nothing has changed."""
        known = self._known[batch]
        if not parts:
            # All its lines are between two words of its gateway.
            known.next_s = now_s + LOOK_S_MIN
            return None
        fleet = list(agents.values())
        outlooks = {
            one.key.model: self._forecaster.outlook(
                self._work(one), fleet, groups, timeline, now_s=now_s
            )
            for one in parts
        }
        found = [one for one in outlooks.values() if one is not None]
        left_s = min(one.due_s for one in parts) - now_s
        if len(found) < len(parts):
            missing = [model for model, one in outlooks.items() if one is None]
            known.next_s = now_s + LOOK_S_MIN
            order = BulkEstimate(batch[1], False, None, None, unserved(missing))
        else:
            last = max(found, key=lambda one: one.wait.quantiles_s[1])
            wait = self._calibrated(known, parts, found, now_s)
            p50_s, p90_s = wait
            feasible = verdict_s(p50_s, p90_s) <= left_s
            words = explained(parts, outlooks, last, p50_s, p90_s, left_s, feasible=feasible)
            order = BulkEstimate(batch[1], feasible, p50_s, p90_s, words)
            known.next_s = now_s + min(LOOK_S_MAX, max(LOOK_S_MIN, LOOK_SHARE * p50_s))
        if not _notable(known.order, order, now_s - known.at_s):
            return None
        known.order, known.at_s = order, now_s
        return order

    def _calibrated(
        self, known: Known, parts: Sequence[Bulk], found: Sequence[Outlook], now_s: float
    ) -> tuple[float, float]:
        quantiles = [
            max(level) for level in zip(*[one.wait.quantiles_s for one in found], strict=True)
        ]
        p50_s, p90_s, p99_s = quantiles
        wait = Wait(p50_s, (p50_s, p90_s, p99_s))
        done = sum(one.ended for one in parts)
        share = done / max(1, done + sum(one.left for one in parts))
        stage = next(number for number, most in enumerate(STAGES) if share <= most)
        if stage not in known.waits:
            known.waits[stage] = wait
            told = self._calibrations[stage].give(wait, now_s=now_s)
        else:
            told = self._calibrations[stage].estimate(wait)
        return told.p50_s, told.p90_s

    def _work(self, bulk: Bulk) -> Work:
        together = self._bulks.released_by_turns(bulk)
        before = [one for one in together if (one.due_s, one.number) < (bulk.due_s, bulk.number)]
        return Work(
            key=bulk.key,
            waiting=bulk.waiting,
            running=bulk.held,
            together=tuple(one.key for one in together),
            before=tuple((one.key, one.waiting) for one in before),
        )


def verdict_s(p50_s: float, p90_s: float) -> float:
    """The finish time by which a batch is called feasible or not: between p50 and p90, where either error is as rare."""
    return sqrt(p50_s * p90_s)


def _notable(before: BulkEstimate | None, now: BulkEstimate, elapsed_s: float) -> bool:
    """Whether there is news in what is to be said."""
    if before is None or before.feasible is not now.feasible:
        return True
    for told_s, found_s in (
        (before.finish_p50_s, now.finish_p50_s),
        (before.finish_p90_s, now.finish_p90_s),
    ):
        if told_s is None or found_s is None:
            if told_s is not found_s:
                return True
        elif abs(told_s - elapsed_s - found_s) > max(NOTABLE_S, NOTABLE_SHARE * found_s):
            return True
    return False
