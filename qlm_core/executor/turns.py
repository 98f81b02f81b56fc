"""Whose turn it is on an engine of several models: which group is next, when the awake model is left, and who is cut for that.

The plan's order says which group is next. Between two models lie a swap and the way back, so an engine does not follow that order
blindly:

* A group that has started is gone on with until the next one's requests would be late (`Turns.head`).
* A model is not left while that costs more requests in time than it saves (`_pays`): targets shorter than the way there and
  back can be kept only while their model is awake.
* Once somebody who is due within minutes can be in time on the next model, outputs that may pause are cut for it at once. Others
  run on, for `drain_s_max` at most (`Turns.cut`).
* Outputs that were cut wait again, and most plans put them first. The turn goes to the other model all the same (`Turns.next`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from math import inf

from qlm_core.config import ExecutorConfig
from qlm_core.executor.attempts import Attempts
from qlm_core.executor.batch import InFlight
from qlm_core.executor.models import Models
from qlm_core.executor.urgency import LOOKAHEAD, latest_begin_s
from qlm_core.grouping import TIGHT_S
from qlm_core.model import GroupId, ModelName, QueuedGroup, RequestRef
from qlm_core.rwt.rates import ArrivalRate

CHECK_S = 0.25
"""How often a model that waits is looked at again."""

PATIENCE = 1.0
"""A model is left in any case once somebody is late by so many times the target, or the time away if that is longer.

An engine does not know what is awake elsewhere. Where several share models, one that stays for long keeps a model from everybody.
"""

WORTH_STAYING = 0.25
"""Less weight than this is not stayed for: arrivals fade, and an engine must not stay for what hardly comes any more."""


class Turns:
    """Decides about one engine's models.

    Attributes:
        started: the group that requests were last pulled from.
        hold_s: when the awake model is looked at again, while another one waits for its turn.
        empty_by_s: when all that still runs is cut, while the engine empties.
    """

    __slots__ = (
        "_arrivals",
        "_attempts",
        "_config",
        "_cut_for",
        "_latest_swap",
        "_models",
        "empty_by_s",
        "hold_s",
        "started",
    )

    def __init__(self, attempts: Attempts, models: Models, config: ExecutorConfig) -> None:
        self._attempts = attempts
        self._models = models
        self._config = config
        self._arrivals: dict[tuple[ModelName, str], ArrivalRate] = {}
        self._latest_swap: tuple[GroupId, float] | None = None
        self._cut_for: ModelName | None = None
        self.started: GroupId | None = None
        self.hold_s = inf
        self.empty_by_s = inf

    # ------------------------------------------------------------------- what is heard

    def arrived(self, refs: Iterable[RequestRef]) -> None:
        """References have come to this instance."""
        window, now_s = self._attempts.window, self._attempts.now_s
        for ref in refs:
            model, slo_class = window.model(ref.group), window.slo_class(ref.group)
            if model is None or slo_class is None or ref.produced_tokens:
                continue
            key = self._models.base(model), slo_class
            if key not in self._arrivals:
                self._arrivals[key] = ArrivalRate(now_s)
            self._arrivals[key].observe(now_s)

    def changed(self) -> None:
        """The window is not what it was."""
        self._latest_swap = None

    # ------------------------------------------------------------------- whose turn it is

    def head(self, *, serving: bool) -> QueuedGroup | None:
        """The group to serve next.

        Args:
            serving: whether the engine may go on as it is; False while it empties.
        """
        attempts, models = self._attempts, self._models
        head = attempts.window.head(models.passed_over)
        self.hold_s = inf
        if head is None or models.serves(head.model) or not serving:
            return head
        if not self._pays(head):
            self.hold_s = attempts.now_s + CHECK_S
            return self._first_of(models.awake)
        started = None if self.started is None else attempts.window.group(self.started)
        if started is None or not models.serves(started.model):
            return head
        latest_s = self.latest_swap_s(head)
        if attempts.now_s >= latest_s:
            return head
        self.hold_s = latest_s
        return started

    def others_wait(self) -> bool:
        """Whether another model is to have its turn here: what is left undone now waits for the next turn of this one."""
        window, models = self._attempts.window, self._models
        return any(
            not models.serves(group.model) and window.group(group.id) is not None
            for group in islice(window.order, LOOKAHEAD)
        )

    def next(self, *, emptying: bool) -> QueuedGroup | None:
        """The next group of the model for which outputs were cut; None if none were, or nobody waits for it any more."""
        if not emptying or self._cut_for is None:
            self._cut_for = None
            return None
        return self._first_of(self._cut_for)

    def latest_swap_s(self, head: QueuedGroup) -> float:
        """When a swap, or making place, has to begin at the latest for the next request that can still be in time."""
        if self._latest_swap is not None and self._latest_swap[0] == head.id:
            return self._latest_swap[1]
        latest_s = self._latest_begin_s(self._attempts.window.peek(head.id), head)
        self._latest_swap = (head.id, latest_s - self._config.evict_margin_s)
        return self._latest_swap[1]

    def _first_of(self, base: ModelName | None) -> QueuedGroup | None:
        """The first group that is served while a base is awake."""
        models = self._models
        return self._attempts.window.head([*models.passed_over, *models.apart(base)])

    # ------------------------------------------------------------------- leaving a model

    def leave(self) -> None:
        """The engine begins to empty."""
        longest_s = self._config.drain_s_max if self._config.eviction else inf
        self.empty_by_s = self._attempts.now_s + longest_s

    def cut(self, head: QueuedGroup) -> list[InFlight]:
        """Whom to cut now for the turn of a group's model."""
        attempts, batch = self._attempts, self._attempts.batch
        loaded = list(chain(batch.held.values(), batch.running.values()))
        if self._config.eviction and attempts.now_s < self.empty_by_s:
            pause_s = 2.0 * self._models.swap_s(head.model) + self._config.evict_margin_s
            laxity_s = attempts.laxity(head.slo_class)
            all_may_pause = all(
                item.laxity_s > laxity_s or attempts.may_pause_s(item) > pause_s
                for item in chain(batch.pulling.values(), loaded)
            )
            if all_may_pause and self._somebody_presses(head):
                self.empty_by_s = attempts.now_s
        if attempts.now_s < self.empty_by_s:
            return []
        self._cut_for = self._models.base(head.model)
        return [item for item in loaded if attempts.may_evict(item)]

    def _somebody_presses(self, head: QueuedGroup) -> bool:
        """Whether a swap begun now serves anybody of the head's model in time who would not have minutes to wait.

        Where all can wait, cutting wins nobody, and models that have only lax work left would take turns without end.
        """
        latest_s = self._latest_begin_s(self._of_its_model(head), head)
        return latest_s <= self._attempts.now_s + TIGHT_S

    def _of_its_model(self, head: QueuedGroup) -> Iterable[RequestRef]:
        """What waits from a group on, until the order comes to another model."""
        return self._attempts.window.upcoming(head, lambda _: True)

    def _latest_begin_s(self, waiting: Iterable[RequestRef], head: QueuedGroup) -> float:
        return latest_begin_s(
            islice(waiting, LOOKAHEAD),
            before_s=self._models.swap_s(head.model),
            prefill_s_per_token=self._attempts.batch.reading.token_s,
            now_s=self._attempts.now_s,
        )

    # ------------------------------------------------------------------- whether it pays

    def _pays(self, head: QueuedGroup) -> bool:
        """Whether the awake model is left for a group's: that saves more weight of requests in time than it costs.

        A rule of thumb. Its reason is that a plan knows only who waits, not who comes while the engine is away. Somebody who
        is late by far is served all the same.
        """
        attempts, models = self._attempts, self._models
        if models.awake is None:
            return True
        there_s = models.swap_s(head.model)
        saved, visit_s = self._saved(head, there_s)
        away_s = there_s + visit_s + models.back_s(head.model)
        lost = self._given_up(models.awake, away_s)
        if lost < WORTH_STAYING:
            return True
        if saved + self._given_up(models.base(head.model), away_s) >= lost:
            return True
        target_s = max(attempts.laxity(head.slo_class), away_s)
        return attempts.now_s > attempts.window.first(head.id).due_s + PATIENCE * target_s

    def _saved(self, head: QueuedGroup, there_s: float) -> tuple[float, float]:
        """Weight of those of a group's model that a swap now serves in time, and how long the prompts of all of them take."""
        attempts = self._attempts
        saved = visit_s = 0.0
        for ref in islice(self._of_its_model(head), LOOKAHEAD):
            if ref.produced_tokens:
                continue
            visit_s += ref.prompt_tokens * self._attempts.batch.reading.token_s
            if attempts.now_s + there_s + visit_s <= ref.due_s:
                saved += attempts.weight(attempts.window.slo_class(ref.group) or "")
        return saved, visit_s

    def _given_up(self, base: ModelName, away_s: float) -> float:
        """Weight of those for a base that come so early in such a time without it that they cannot wait for its end."""
        attempts = self._attempts
        return sum(
            rate.per_s(attempts.now_s)
            * attempts.weight(slo_class)
            * max(0.0, away_s - attempts.laxity(slo_class))
            for (model, slo_class), rate in self._arrivals.items()
            if model == base
        )
