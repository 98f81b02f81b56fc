"""What gateways are told of when their batches will be done: when it is known, and again when it has changed.

A finish time is looked at more often the nearer it is. Like waits, finish times are calibrated by what became of earlier ones,
apart for each stage of a batch: before any line has ended, and with the first third, the second and the last under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nsmallest
from math import exp, inf, log

from qlm_core.grouping import BatchKey, RequestGroup
from qlm_core.manager.bulks import Bulk, Bulks
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import TellGateway
from qlm_core.manager.finish_words import explained, unserved
from qlm_core.manager.finishing import Forecaster
from qlm_core.manager.fleet import Agent
from qlm_core.manager.reckoning import Outlook, Work
from qlm_core.manager.timeline import Timeline
from qlm_core.messages import BulkEstimate
from qlm_core.model import AgentId, GroupId, ModelName
from qlm_core.rwt.foretold import Record, Slowness

FIRST_LOOK_S = 0.05
"""The parts of a batch of several models are told one after the other."""

LOOK_S_MIN, LOOK_S_MAX = 1.0, 60.0
LOOK_SHARE = 0.02
"""A finish time is looked at again after such a share of the time that is left."""

BEGUN_LINES = 10
"""How many lines have ended before it is seen how fast they do."""

PACE_LINES, PACE_STEP = 50.0, 0.3
"""How many lines of a batch tell as much as nothing, and how far one batch moves what is taken to be usual."""

NOTABLE_S, NOTABLE_SHARE = 1.0, 0.05
LOOK_EACH_S = 0.1
"""Of many batches each is looked at more seldom, so that all of them together take a small part of the time."""

BULKS_AT_ONCE = 4
"""So many are looked at before anything else may happen, or one batch of more models: what arrives does not wait for long."""


Quantiles = tuple[float, float]
VERDICT = 0.15
FIRST_RECORDS = ((0.45, 0.85), (0.55, 1.0), (-0.1, 1.15), (0.0, 1.0))
"""How far finish times were off in each stage on simulated beds, which counts until enough batches have ended here."""

STAGES = (0.0, 1 / 3, 2 / 3, 1.0)
"""Up to so much of a batch is done in each."""


class Known:
    """What has been said of one batch.

    Attributes:
        order: the last word. at_s: when it was given.
        next_s: when it is looked at again.
        stages: when each began, with p50 and p90 as foretold then, and as told.
        cut: whether lines did not end by themselves.
        due_s: when the window is over.
    """

    __slots__ = ("at_s", "cut", "due_s", "next_s", "order", "paces", "stages")

    def __init__(self, next_s: float) -> None:
        self.order: BulkEstimate | None = None
        self.at_s = 0.0
        self.cut = False
        self.due_s = inf
        self.paces: dict[ModelName, _Pace] = {}
        self.next_s = next_s
        self.stages: dict[int, tuple[float, Quantiles, Quantiles]] = {}


class _Pace:
    """How fast the lines of one model end.

    Attributes:
        last: when that was noted last, lines that had ended, and lines a second that should end from then on.
    """

    __slots__ = ("last", "slowness")

    def __init__(self, slowness: Slowness) -> None:
        self.slowness = slowness
        self.last: tuple[float, int, float] | None = None

    def note(self, bulk: Bulk, outlook: Outlook | None, now_s: float) -> None:
        """Compare what ended since the last time with what should have, and note what should from now on."""
        if self.last is not None:
            at_s, ended, per_s = self.last
            due = per_s * (now_s - at_s) * self.slowness.value
            self.slowness.observe(done=bulk.ended - ended, due=due)
        steady = outlook is not None and outlook.going and bulk.ended >= BEGUN_LINES
        self.last = (now_s, bulk.ended, outlook.lines_per_s) if steady and outlook else None


class Finishes:
    """Finish times of all batches."""

    __slots__ = ("_bulks", "_estimators", "_known", "_next_s", "_records", "_usual")

    def __init__(self, estimators: Estimators, bulks: Bulks):
        self._bulks = bulks
        self._estimators = estimators
        self._usual: dict[ModelName, float] = {}
        self._known: dict[BatchKey, Known] = {}
        self._records = tuple(Record(shift=shift, width=width) for shift, width in FIRST_RECORDS)
        self._next_s = inf

    @property
    def next_s(self) -> float:
        """When one is to be looked at; infinite without a batch."""
        return self._next_s

    @property
    def records(self) -> tuple[Record, ...]:
        """How well finish times were foretold, by stage."""
        return self._records

    def of(self, batch: BatchKey) -> BulkEstimate | None:
        """What was said last of a batch."""
        known = self._known.get(batch)
        return None if known is None else known.order

    def age_s(self, batch: BatchKey, *, now_s: float) -> float | None:
        """How long ago that was said; None if nothing was."""
        known = self._known.get(batch)
        return None if known is None or known.order is None else round(now_s - known.at_s, 3)

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
        for stage, (at_s, foretold, told) in known.stages.items():
            # Of one that ran out of time it is known that it would have taken longer.
            if not known.cut or (now_s >= known.due_s and now_s - at_s > told[0]):
                self._records[stage].observe(foretold, told, now_s - at_s)
        for model, pace in known.paces.items():
            # As much of it as it is known from so many lines more than nothing.
            share = pace.slowness.known / (pace.slowness.known + PACE_LINES)
            before = self._usual.get(model, 0.0)
            self._usual[model] = before + PACE_STEP * share * (log(pace.slowness.value) - before)

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
            fleet = Forecaster(self._estimators, timeline, agents.values(), groups, now_s=now_s)
            bulks = 0
            for _, key in nsmallest(BULKS_AT_ONCE, late):
                if bulks >= BULKS_AT_ONCE:
                    break
                bulks += len(parts.get(key, ()))
                order = self._look(key, parts.get(key, []), fleet, now_s)
                if order is not None:
                    orders.append(TellGateway(key[0], order))
        self._next_s = min([known.next_s for known in self._known.values()], default=inf)
        return orders

    def _look(
        self, batch: BatchKey, parts: Sequence[Bulk], fleet: Forecaster, now_s: float
    ) -> BulkEstimate | None:
        """Look at one batch; returns what is to be said, None if nothing has changed."""
        known = self._known[batch]
        least_s = max(LOOK_S_MIN, LOOK_EACH_S * len(self._known))
        if not parts:
            # All its lines are between two words of its gateway.
            known.next_s = now_s + least_s
            return None
        found = []
        missing = []
        for one in parts:
            pace = self._pace(known, one)
            outlook = fleet.outlook(self._work(one, pace.slowness.value))
            pace.note(one, outlook, now_s)
            if outlook is None:
                missing.append(one.key.model)
            else:
                found.append(outlook)
        if missing:
            known.next_s = now_s + least_s
            order = BulkEstimate(batch[1], False, None, None, unserved(missing))
        else:
            known.due_s = min(one.due_s for one in parts)
            left_s = known.due_s - now_s
            p50_s, p90_s = self._calibrated(known, parts, found, now_s)
            feasible = verdict_s(p50_s, p90_s) <= left_s
            lines = sum(one.left for one in parts)
            words = explained(lines, len(parts), found, p50_s, p90_s, left_s, feasible=feasible)
            order = BulkEstimate(batch[1], feasible, p50_s, p90_s, words)
            known.next_s = now_s + max(least_s, min(LOOK_S_MAX, LOOK_SHARE * p50_s))
        if not _notable(known.order, order, now_s - known.at_s):
            return None
        known.order, known.at_s = order, now_s
        return order

    def _pace(self, known: Known, bulk: Bulk) -> _Pace:
        model = bulk.key.model
        found = known.paces.get(model)
        if found is None:
            usual = self._usual.get(model, 0.0)
            found = known.paces[model] = _Pace(Slowness(exp(usual)))
        return found

    def _calibrated(
        self, known: Known, parts: Sequence[Bulk], found: Sequence[Outlook], now_s: float
    ) -> Quantiles:
        foretold = max([one.p50_s for one in found]), max([one.p90_s for one in found])
        done = sum(one.ended for one in parts)
        share = done / max(1, done + sum(one.left for one in parts))
        stage = next(number for number, most in enumerate(STAGES) if share <= most)
        told = self._records[stage].told(*foretold)
        known.stages.setdefault(stage, (now_s, foretold, told))
        return told

    def _work(self, bulk: Bulk, slowness: float) -> Work:
        together = self._bulks.released_by_turns(bulk)
        before = [one for one in together if (one.due_s, one.number) < (bulk.due_s, bulk.number)]
        return Work(
            key=bulk.key,
            waiting=bulk.waiting,
            running=bulk.held,
            together=dict.fromkeys(one.key for one in together),
            before=tuple((one.key, one.waiting) for one in before if one.waiting),
            slowness=slowness,
        )


def first_told(finishes: Finishes, outlooks: Sequence[Outlook]) -> Quantiles:
    """p50 and p90 of the finish of a batch that is looked at for the first time."""
    foretold = max([one.p50_s for one in outlooks]), max([one.p90_s for one in outlooks])
    return finishes.records[0].told(*foretold)


def verdict_s(p50_s: float, p90_s: float) -> float:
    """The finish time by which a batch is called feasible or not: a little after p50, where both errors together are rarest."""
    return p50_s * (p90_s / p50_s) ** VERDICT if p50_s else 0.0


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
