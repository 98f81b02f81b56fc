"""What can be done to one attempt, and what everybody has to be told about it.

The decisions are the machine's; here each of them becomes a move in the batch, effects in order, and an account of
how often a request has been evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from math import inf

from qlm_core.config import ExecutorConfig
from qlm_core.executor.batch import Batch, InFlight, expected_output
from qlm_core.executor.events import Abort, Effect, JobLost, JobTurnedAway, Send, Submit
from qlm_core.executor.fullness import Fullness
from qlm_core.executor.pace import Pace
from qlm_core.executor.states import AttemptState
from qlm_core.executor.trust import Trust
from qlm_core.executor.urgency import LOOKAHEAD
from qlm_core.executor.window import Window
from qlm_core.messages import AttemptEnded, AttemptReturned, ReturnReason
from qlm_core.model import PAUSE_SHARE, ModelName, QueuedGroup, RequestId, RequestRef, SloClass

# How many requests are remembered that were evicted, to bound how often each is, or turned away.
_REMEMBERED = 4096
# An output that rests is allowed so much more time than is expected: lengths vary as much as they are long.
_LONGER = 1.5


def engine_priority(place_s: float) -> int:
    """What engines go by, lower first: who is due first has its prompt computed first and is preempted last."""
    return round(place_s * 1000.0)


class Attempts:
    """Moves attempts between window, batch and gateways.

    Attributes:
        now_s, effects: of the event being handled; set by the machine.
    """

    def __init__(self, config: ExecutorConfig, classes: Iterable[SloClass]) -> None:
        # Without eviction nothing gives way to a batch that has grown.
        share = config.output_share if config.eviction else 1.0
        self.batch = Batch(1, 1, output_share=share)
        self.window = Window()
        self.pace = Pace()
        self.trust = Trust()
        self.fullness = Fullness()
        self.now_s = 0.0
        self.effects: list[Effect] = []
        self._evictions_max = config.evictions_max
        classes = tuple(classes)
        self._slos = {one.name: one.slo for one in classes}
        self._weights = {one.name: one.weight for one in classes}
        self._evictions: OrderedDict[RequestId, int] = OrderedDict()
        self._rests: OrderedDict[RequestId, float] = OrderedDict()

    def laxity(self, slo_class: str) -> float:
        """How lax the work of a class is; that of an unknown one not at all."""
        slo = self._slos.get(slo_class)
        return slo.start_s if slo is not None else 0.0

    def weight(self, slo_class: str) -> float:
        """What a request of a class in time is worth."""
        return self._weights.get(slo_class, 1.0)

    def first_token_only(self, slo_class: str) -> bool:
        """Whether a class promises nothing but a first token. Of an unknown one that is not assumed."""
        slo = self._slos.get(slo_class)
        return slo is not None and slo.first_token_only

    def pace_of(self, slo_class: str) -> float:
        """Seconds a token that a class promises; infinite for none."""
        slo = self._slos.get(slo_class)
        return inf if slo is None or slo.tpot_s is None else slo.tpot_s

    def pauses_until_s(self, slo_class: str) -> float:
        """Work of a class that has begun lets first tokens pass that are due by then."""
        if not self.first_token_only(slo_class):
            return -inf
        return self.now_s + PAUSE_SHARE * self.laxity(slo_class)

    def next(self, head: QueuedGroup) -> tuple[QueuedGroup, RequestRef]:
        """The request to pull, and its group, when it is the turn of `head`: of its class who can be in time first."""
        group, ref = self.window.next(head, self.pauses_until_s(head.slo_class))
        reading = self.batch.reading
        if not reading.in_time(ref, self.now_s):
            for other, one in islice(self.window.alike(head), LOOKAHEAD):
                if not one.produced_tokens and reading.in_time(one, self.now_s):
                    return other, one
        return group, ref

    def ask(self, ref: RequestRef, model: ModelName, slo_class: str = "") -> InFlight:
        """The payload of a request is asked for."""
        item = InFlight(
            ref=ref,
            model=model,
            slo_class=slo_class,
            class_ttft_s=self.laxity(slo_class),
            first_token_only=self.first_token_only(slo_class),
            # Whoever ends with his first token has no pace after it.
            pace_s=self.pace_of(slo_class) if ref.max_output_tokens > 1 else inf,
            pulled_s=self.now_s,
            charged_tokens=self.batch.charge(ref),
            foreseen_tokens=self.batch.foreseen(ref),
            expected_tokens=expected_output(ref),
        )
        self.batch.ask(item)
        return item

    def place_s(self, item: InFlight) -> float:
        """When a request is due as far as the engine is to know."""
        return self.batch.reading.place_s(item.ref, item.class_ttft_s, self.now_s)

    def start(self, item: InFlight) -> None:
        """A held request goes onto the engine."""
        place_s = self.place_s(item)
        priority = engine_priority(place_s)
        job = self.batch.start(item, place_s=place_s, resume_share=self.pace.resume_share)
        self.effects.append(Submit(item.ref.gateway, job, priority))
        self.pace.resize(len(self.batch.running), self.now_s)

    def grow(self, item: InFlight, tokens: int, *, whole: bool = False) -> bool:
        """A running request has produced so many more tokens; whether the engine had been doubted.

        Args:
            whole: this is all of its answer, be there a token in it or not.
        """
        if not item.produced and (tokens or whole):
            item.begun_s = self.now_s
            self.batch.reading.end(item.ref.id)
            self.pace.read(item.resident_tokens, resumed=item.begun)
            self.fullness.worked()
        self.batch.grow(item, tokens)
        self.pace.produce(tokens)
        return self.trust.worked()

    def end(self, ended: AttemptEnded) -> bool:
        """The engine is through with an attempt; False if it is none of ours."""
        item = self.batch.running.get(ended.id)
        if item is None or item.attempt != ended.attempt:
            return False
        self.trust.worked()
        self.fullness.worked()
        self._leave(item, AttemptState.ENDED)
        self._evictions.pop(ended.id, None)
        self.effects.append(Send(item.ref.gateway, ended))
        return True

    def admits(self, in_flight: int) -> bool:
        """Whether the engine is to get one more request beside so many: it works, and has not said that it is full."""
        now_s = self.now_s
        return self.trust.admits(in_flight, now_s=now_s) and self.fullness.admits(
            in_flight, now_s=now_s
        )

    def is_counted_on(self) -> bool:
        """Whether new work may be planned onto the engine: it has not lost or turned away what it was given."""
        in_flight, now_s = len(self.batch), self.now_s
        return not (
            self.trust.doubted(in_flight, now_s=now_s)
            or self.fullness.takes_nothing(in_flight, now_s=now_s)
        )

    def lose(self, lost: JobLost) -> bool:
        """The engine has lost an attempt; False if it is none of ours."""
        item = self.batch.running.get(lost.id)
        if item is None or item.attempt != lost.attempt:
            return False
        if lost.answered and self.trust.blames(lost.id):
            reason = ReturnReason.ENGINE_ERROR
        else:
            self.trust.lost(self.now_s)
            reason = ReturnReason.ENGINE_LOST
        self.give_back(item, reason, on_engine=False, detail=lost.reason)
        return True

    def turned_away(self, event: JobTurnedAway) -> bool:
        """The engine has no room for an attempt; False if it is none of ours."""
        item = self.batch.running.get(event.id)
        if item is None or item.attempt != event.attempt:
            return False
        rest_s = max(
            event.rest_s, self.fullness.turned_away(len(self.batch.running) - 1, self.now_s)
        )
        self._rests[event.id] = self.now_s + rest_s
        self._rests.move_to_end(event.id)
        if len(self._rests) > _REMEMBERED:
            self._rests.popitem(last=False)
        self.give_back(
            item,
            ReturnReason.TURNED_AWAY,
            on_engine=False,
            detail=event.reason,
            rest_s=rest_s,
        )
        return True

    def rest_s(self, id: RequestId) -> float:
        """How long this engine does not want to be asked again for a request; other engines may be."""
        return self._rests.get(id, self.now_s) - self.now_s

    def give_back(
        self,
        item: InFlight,
        reason: ReturnReason,
        *,
        on_engine: bool = True,
        detail: str = "",
        rest_s: float = 0.0,
    ) -> None:
        """Return an attempt to its gateway; `on_engine` says whether the engine still has it."""
        if on_engine and item.state is AttemptState.RUNNING:
            self.effects.append(Abort(item.ref.id, item.attempt))
        self._leave(item, AttemptState.RETURNED)
        returned = AttemptReturned(item.ref.id, item.attempt, reason, detail, rest_s)
        self.effects.append(Send(item.ref.gateway, returned))

    def may_evict(self, item: InFlight) -> bool:
        """Whether a request can be continued elsewhere and has not been evicted too often."""
        if item.state is AttemptState.RUNNING and not item.evictable:
            return False
        return self._evictions.get(item.ref.id, 0) < self._evictions_max

    def gives_way(self, item: InFlight, laxity_s: float) -> bool:
        """Whether a request may be evicted for one of such laxity that waits for its first token.

        It is of a laxer class; or of any, and it owes nothing. So no two requests evict each other in turn.
        """
        return item.laxity_s > laxity_s and self.may_evict(item)

    def may_pause_s(self, item: InFlight) -> float:
        """How long an output may rest from now on with all that was promised of it kept; 0 before its first token."""
        slo = self._slos.get(item.slo_class)
        if slo is None or not item.produced:
            return 0.0
        rest_s = _LONGER * item.remaining_tokens * self.pace.token_s
        spare_s = inf
        if slo.e2e_s is not None:
            spare_s = item.ref.due_s - slo.start_s + slo.e2e_s - self.now_s - rest_s
        if slo.tpot_s is not None:
            produced_s = slo.tpot_s * (item.produced + item.remaining_tokens - 1)
            spare_s = min(spare_s, item.begun_s + produced_s - self.now_s - rest_s)
        return spare_s

    def evict(self, item: InFlight, *, counts: bool = True) -> None:
        """Return an attempt for a more urgent one.

        Args:
            counts: whether it is one of the `evictions_max` that a request bears; not where it has come on since the last.
        """
        if counts and item.state is AttemptState.RUNNING:
            id = item.ref.id
            self._evictions[id] = self._evictions.get(id, 0) + 1
            self._evictions.move_to_end(id)
            if len(self._evictions) > _REMEMBERED:
                self._evictions.popitem(last=False)
        self.give_back(item, ReturnReason.EVICTED)

    def drop(self, item: InFlight) -> None:
        """Stop an attempt about which nobody wants to hear."""
        if item.state is AttemptState.RUNNING:
            self.effects.append(Abort(item.ref.id, item.attempt))
        self._leave(item, AttemptState.DROPPED)

    def requeue(self, items: list[InFlight]) -> None:
        """Put requests whose payloads did not come back into the window, in their order.

        Not those of a group that is gone: another solver may have given its id to another one.
        """
        for item in reversed(items):
            self.batch.leave(item, AttemptState.REQUEUED)
            self.window.landed(item.ref.id)
            newer = self.window.take(item.ref.id)
            ref = newer or item.ref
            if self.window.model(ref.group) == item.model:
                self.window.put_back(ref)

    def refuse(self, item: InFlight) -> None:
        """The gateway does not hand out the payload that was asked for."""
        self._leave(item, AttemptState.DROPPED)

    def _leave(self, item: InFlight, state: AttemptState) -> None:
        self.batch.leave(item, state)
        self.window.landed(item.ref.id)
        self.pace.resize(len(self.batch.running), self.now_s)
