"""The executor's decisions: what to pull, evict, swap and warm next.

The rules (paper §4-5):

* Pull first come first served from the head group while there is room by our own count (`batch`), and a few requests
  beyond it; go on with the next group of the same model when the head group is exhausted.
* A model and its LoRA adapters are served together (`models`). A head group of another base ends pulling: the batch
  drains, then the base is swapped. A drain that takes too long, or would make the head late, is cut short by eviction.
  A group that was started is finished first, as long as the new head can wait.
* Evict running requests that may give way when more urgent ones would be late otherwise (`relief`). Keep room free of lax
  work for those that are promised a first token sooner than an eviction takes effect (`reserve`).
* Whatever happens to engine, gateway or solver, each pulled request ends or returns exactly once. Without
  a solver the window is worked off as it stands.

States and moves are in `states`. Work per event is O(1), except for checks of urgency, which are bounded and rare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from math import inf
from typing import Any

from qlm_core.config import ExecutorConfig
from qlm_core.executor import events as e
from qlm_core.executor.attempts import Attempts
from qlm_core.executor.batch import InFlight, stricter
from qlm_core.executor.disturbance import disturbs
from qlm_core.executor.models import Models, cheapest_to_leave
from qlm_core.executor.relief import Relief
from qlm_core.executor.reserve import Reserve
from qlm_core.executor.states import EXECUTOR_MOVES, AttemptState, ExecutorState, Trigger
from qlm_core.executor.turns import Turns
from qlm_core.executor.urgency import overflow
from qlm_core.messages import (
    AttemptReturned,
    Pull,
    QueueUpdate,
    Refused,
    ReturnReason,
    Revoked,
)
from qlm_core.model import (
    GatewayId,
    InstanceState,
    ModelName,
    QueuedGroup,
    RequestId,
    RequestRef,
    SloClass,
)
from qlm_core.profile import EngineProfile

_S = ExecutorState


class Executor:
    """The machine beside one engine. Mutable; owned by one task.

    Args:
        profiles: one per model that the engine can serve.
        classes: what each promises: how lax its work is. The work of a class that is not named here is never evicted.
        report_interval_s: how often the state is reported when nothing changes.
    """

    def __init__(
        self,
        profiles: Iterable[EngineProfile],
        config: ExecutorConfig,
        *,
        classes: Iterable[SloClass],
        report_interval_s: float,
    ) -> None:
        self.state = _S.DOWN
        self._attempts = Attempts(config, classes)
        self.window = self._attempts.window
        self.batch = self._attempts.batch
        self._models = Models(profiles)
        self._config = config
        self._report_interval_s = report_interval_s
        self._relief = Relief(self._attempts, config)
        self._reserve = Reserve(self._attempts, config)
        self._turns = Turns(self._attempts, self._models, config)
        self._starved = False
        self._lacks_place: QueuedGroup | None = None
        self._drain_deadline_s = inf
        self._report_s = 0.0
        self._now_s = 0.0
        self._effects: list[e.Effect] = []
        self._handlers: dict[type, Callable[[Any], bool]] = {
            QueueUpdate: self._on_queue,
            e.Granted: self._on_granted,
            Refused: self._on_refused,
            Revoked: self._on_revoked,
            e.JobOutput: self._on_output,
            e.JobDone: self._on_done,
            e.JobRefused: self._on_job_refused,
            e.JobLost: self._on_job_lost,
            e.JobTurnedAway: self._on_job_turned_away,
            e.EngineReady: self._on_ready,
            e.EngineDown: self._on_down,
            e.SwapFailed: self._on_swap_failed,
            e.GatewayUp: self._on_gateway_up,
            e.GatewayLost: self._on_gateway_lost,
            e.Drain: self._on_drain,
            e.Wakeup: self._on_wakeup,
        }

    # ------------------------------------------------------------------- interface

    def handle(self, event: e.Event, *, now_s: float) -> list[e.Effect]:
        """Take one event in; returns what to do about it, in order. `now_s` never goes back."""
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        effects: list[e.Effect] = []
        self._now_s = self._attempts.now_s = now_s
        self._effects = self._attempts.effects = effects
        if self._handlers[type(event)](event):
            self._advance()
        # A report between two outputs of one iteration would tell of half of it.
        if now_s >= self._report_s and not isinstance(event, e.JobOutput):
            self._attempts.pace.roll(now_s)
            self._report_s = now_s + self._report_interval_s
            effects.append(e.Report(self.instance_state()))
        return effects

    @property
    def wakeup_s(self) -> float:
        """When to call `handle(Wakeup())` next; always later than the last event."""
        due_s = self._report_s
        if self.batch.pulling:
            oldest = next(iter(self.batch.pulling.values()))
            due_s = min(due_s, oldest.pulled_s + self._config.pull_timeout_s)
        if self.state is _S.SERVING:
            due_s = min(due_s, self._turns.hold_s)
            if self._starved:
                due_s = min(due_s, self._relief.due_s)
            due_s = min(due_s, self._attempts.trust.wakeup_s(self._now_s))
            due_s = min(due_s, self._attempts.fullness.wakeup_s(self._now_s))
        elif self.state is _S.EMPTYING and self._now_s < self._turns.empty_by_s:
            due_s = min(due_s, self._turns.empty_by_s)
        elif self.state is _S.LEAVING:
            due_s = min(due_s, self._drain_deadline_s)
        return min([due_s, *self._models.passed_over.values()])

    def instance_state(self) -> InstanceState:
        """What the solver should know."""
        swapping = self.state is _S.SWAPPING
        return InstanceState(
            ready=self.state in (_S.SERVING, _S.EMPTYING, _S.SWAPPING)
            and self._attempts.is_counted_on(),
            awake_model=None if swapping else self._models.awake,
            swapping_to=self._models.swapping_to if swapping else None,
            tiers=self._models.tiers,
            running=self.batch.progress(),
            kv_used_tokens=self.batch.resident_tokens,
            tokens_per_s=self._attempts.pace.tokens_per_s,
            prompt_tokens_per_s=self._attempts.pace.prompt_tokens_per_s,
            resumed_tokens_per_s=self._attempts.pace.resumed_tokens_per_s,
            mean_batch=self._attempts.pace.mean_batch,
            resume_share=self._attempts.pace.resume_share,
            draining=self.state in (_S.LEAVING, _S.GONE),
        )

    # ------------------------------------------------------------------- events: queue and gateways
    # Each returns whether decisions may change.

    def _on_queue(self, update: QueueUpdate) -> bool:
        new = [ref for ref in update.add if ref.id not in self.window and ref.id not in self.batch]
        if not self.window.apply(update, self.batch):
            return False
        self._turns.changed()
        self._relief.soon(self._now_s, self._reserve.arrived(new, self._now_s) / 4)
        self._turns.arrived(new)
        if update.order is not None or update.snapshot:
            self._models.wanted = update.wake
            self._relief.due_s = 0.0
            self._models.pass_over_unknown(self.window.order)
            self._effects += self._models.hints(self.window.order)
        return True

    def _on_granted(self, event: e.Granted) -> bool:
        job = event.job
        item = self.batch.get(job.id)
        if item is not None and item.state is not AttemptState.PULLING:
            if job.attempt <= item.attempt:
                return False
            # The gateway gave our attempt up and made a newer one.
            self._attempts.drop(item)
            ref = self.window.take(job.id) or item.ref
        elif item is None:
            found = self.window.take(job.id)
            if found is None:
                returned = AttemptReturned(job.id, job.attempt, ReturnReason.EVICTED)
                self._effects.append(e.Send(event.gateway, returned))
                return False
            ref = found
        if item is None or item.state is not AttemptState.PULLING:
            item = self._attempts.ask(ref, job.model)
        self.batch.hold(item, job)
        item.evictable = event.evictable
        rest_s = self._attempts.rest_s(job.id)
        if rest_s > 0.0:
            self._attempts.give_back(item, ReturnReason.TURNED_AWAY, rest_s=rest_s)
        elif self.state in (_S.DOWN, _S.SWAPPING):
            self._attempts.give_back(item, ReturnReason.ENGINE_LOST)
        elif self.state in (_S.LEAVING, _S.GONE):
            self._attempts.give_back(item, ReturnReason.DRAINING)
        return True

    def _on_refused(self, event: Refused) -> bool:
        item = self.batch.pulling.get(event.id)
        if item is not None:
            self._attempts.refuse(item)
        elif event.id not in self.batch:
            self.window.take(event.id)
        return True

    def _on_revoked(self, event: Revoked) -> bool:
        item = self.batch.get(event.id)
        if item is None or item.state is AttemptState.PULLING or item.attempt > event.attempt:
            return False
        self._attempts.drop(item)
        return True

    def _on_gateway_up(self, event: e.GatewayUp) -> bool:
        self.window.set_reachable(event.gateway, True)
        self._turns.changed()
        return True

    def _on_gateway_lost(self, event: e.GatewayLost) -> bool:
        self.window.set_reachable(event.gateway, False)
        self._turns.changed()
        unanswered = [
            item for item in self.batch.pulling.values() if item.ref.gateway == event.gateway
        ]
        self._attempts.requeue(unanswered)
        if event.forget:
            for item in list(chain(self.batch.held.values(), self.batch.running.values())):
                if item.ref.gateway == event.gateway:
                    self._attempts.drop(item)
        return True

    # ------------------------------------------------------------------- events: engine

    def _on_output(self, event: e.JobOutput) -> bool:
        item = self.batch.running.get(event.id)
        if item is None or item.attempt != event.attempt:
            return False
        item.evictable &= event.plain
        to_read = self.batch.reading.unread_tokens
        doubted = self._attempts.grow(item, event.tokens, whole=event.whole)
        if self.state is _S.SERVING and self.batch.reading.unread_tokens < to_read:
            self._fill()
        return doubted

    def _on_done(self, event: e.JobDone) -> bool:
        item = self.batch.running.get(event.id)
        if item is not None and item.attempt == event.attempt:
            if item.ref.produced_tokens:
                self._attempts.pace.resume(event.prompt_tokens, event.cached_tokens)
            else:
                self.batch.reading.cached(event.prompt_tokens, event.cached_tokens)
        return self._attempts.end(event.ended())

    def _on_job_refused(self, event: e.JobRefused) -> bool:
        return self._attempts.end(event.ended())

    def _on_job_lost(self, event: e.JobLost) -> bool:
        return self._attempts.lose(event)

    def _on_job_turned_away(self, event: e.JobTurnedAway) -> bool:
        return self._attempts.turned_away(event)

    def _on_ready(self, event: e.EngineReady) -> bool:
        profile = self._models.ready(event)
        self._attempts.pace.expect(profile.resume_share)
        self._attempts.trust.worked()
        self._attempts.fullness.worked()
        kv_tokens = int(profile.kv_cache_tokens * (1.0 - self._config.kv_headroom))
        self.batch.resize(profile.max_num_seqs, kv_tokens)
        self.batch.tempo.engine(profile)
        self.batch.reading.engine(profile)
        self._attempts.pace.token_s = profile.iteration_s(
            decode_batch=profile.max_num_seqs / 2, context_tokens=kv_tokens / 2
        )
        self._move(Trigger.ENGINE_READY)
        self._effects += self._models.hints(self.window.order)
        return True

    def _on_down(self, _: e.EngineDown) -> bool:
        self._move(Trigger.ENGINE_DOWN)
        self._models.awake = None
        for item in list(chain(self.batch.held.values(), self.batch.running.values())):
            self._attempts.give_back(item, ReturnReason.ENGINE_LOST, on_engine=False)
        return True

    def _on_swap_failed(self, event: e.SwapFailed) -> bool:
        self._models.failed(event.model, self._now_s + self._config.swap_retry_s)
        if self._models.is_adapter(event.model):
            # Its base serves on. What was to run on the adapter has not begun.
            for item in list(chain(self.batch.held.values(), self.batch.running.values())):
                if item.model == event.model:
                    self._attempts.give_back(item, ReturnReason.EVICTED)
            return True
        self._move(Trigger.SWAP_FAILED)
        return True

    def _on_drain(self, event: e.Drain) -> bool:
        self._drain_deadline_s = event.deadline_s
        self._move(Trigger.DRAIN)
        return True

    def _on_wakeup(self, _: e.Wakeup) -> bool:
        overdue = []
        for item in self.batch.pulling.values():
            if self._now_s < item.pulled_s + self._config.pull_timeout_s:
                break
            overdue.append(item)
        self._attempts.requeue(overdue)
        self._models.try_again(self._now_s)
        return True

    # ------------------------------------------------------------------- decisions

    def _advance(self) -> None:
        """Do everything that can be done now."""
        self._starved = False
        if self.state is _S.LEAVING:
            self._leave()
        if self.state not in (_S.SERVING, _S.EMPTYING):
            return
        next_turn = self._turns.next(emptying=self.state is _S.EMPTYING)
        if next_turn is not None:
            self._empty(next_turn)
            return
        head = self._head()
        turns_to = self._models.turns_to
        if head is None and turns_to is not None and not len(self.batch):
            if self.state is _S.SERVING:
                self._move(Trigger.HEAD_NEEDS_SWAP)
            self._swap(turns_to)
            return
        if head is None or self._models.serves(head.model):
            if self.state is _S.EMPTYING:
                self._move(Trigger.HEAD_FITS)
            if self._config.eviction:
                for item in overflow(self.batch, self._attempts.may_evict):
                    self._attempts.evict(item)
            self._reserve.look(self._now_s)
            self._fill()
            if self._config.eviction:
                self._relieve()
            return
        if self.state is _S.SERVING:
            self._move(Trigger.HEAD_NEEDS_SWAP)
            self._turns.leave()
        self._empty(head)

    def _head(self) -> QueuedGroup | None:
        """The group to serve next."""
        return self._turns.head(serving=self.state is _S.SERVING)

    def _fill(self) -> None:
        """Give the engine what there is room for, and ask for more."""
        self._start_held()
        self._pull()
        self._starved = self._config.eviction and (self._starved or bool(self.batch.held))

    def _pull(self) -> None:
        """Ask for payloads from the head on, as far as there is room, and a few beyond it.

        Laxer requests that wait for room here take none away: they start later.
        """
        batch = self.batch
        wanted: dict[GatewayId, list[RequestId]] = {}
        places = self._models.places(batch)
        self._lacks_place = None
        while True:
            group = self._head()
            if group is None or not self._models.serves(group.model):
                break
            if not self._attempts.admits(len(batch)):
                break
            group, ref = self._attempts.next(group)
            laxity_s = self._attempts.laxity(group.slo_class)
            fits = batch.has_room_for(
                batch.charge(ref), laxity_s, self._reserve.spare(ref, laxity_s)
            )
            fits &= self._takes(ref, batch.reading.place_s(ref, laxity_s, self._now_s))
            if not fits and batch.line.before(laxity_s)[0] >= self._config.pull_ahead:
                self._starved = True
                break
            if not places.take(group.model):
                self._starved, self._lacks_place = True, group
                break
            self.window.take(ref.id)
            self._attempts.ask(ref, group.model, group.slo_class)
            if self._turns.started != group.id:
                self._turns.started = group.id
                self._relief.soon(self._now_s)
            wanted.setdefault(ref.gateway, []).append(ref.id)
        for gateway, ids in wanted.items():
            self._effects.append(e.Send(gateway, Pull(tuple(ids))))

    def _takes(self, ref: RequestRef, place_s: float) -> bool:
        """Whether the engine is to have a prompt now: it reads it soon, and nobody loses a promised pace for it without need."""
        batch, attempts = self.batch, self._attempts
        return batch.reading.takes(place_s) and (
            self._turns.others_wait()
            or not disturbs(ref, batch, attempts.may_pause_s, now_s=self._now_s)
        )

    def _start_held(self) -> None:
        """Put held requests onto the engine, as long as they fit: the strictest class first, and in it who is due first.

        What is on its way keeps its place before laxer ones, so that they do not take what was freed for it.
        """
        batch, reserve = self.batch, self._reserve
        everybody_fits = (
            min(batch.room(inf)) >= 0
            and batch.reading.takes_all(batch.line.before(inf)[1])
            and batch.tempo.pace_s == inf
        )
        on_their_way: list[InFlight] = []
        for item in list(batch.held.values()) if everybody_fits else batch.in_line(self._now_s):
            if item.job is None:
                on_their_way.append(item)
            elif not self._models.starts(item.model):
                self._attempts.give_back(item, ReturnReason.EVICTED)
            elif not self._attempts.admits(len(batch.running)) or not self._takes(
                item.ref, self._attempts.place_s(item)
            ):
                break
            elif batch.can_start(
                item, stricter(on_their_way, item), reserve.spare(item.ref, item.class_ttft_s)
            ):
                self._attempts.start(item)
            elif not batch.can_start(item):
                break

    def _relieve(self) -> None:
        """Evict what gives way to requests that would wait too long, and ask for these before laxer ones take the room."""
        head = self._head()
        givers = self._reserve.givers(head)
        if givers:
            self._relief.later(self._now_s)
        elif self._starved and self._now_s >= self._relief.due_s:
            if self._lacks_place is None:
                givers = self._relief.givers(head, self._now_s)
            else:
                givers = self._leavers(self._lacks_place)
        for item in givers:
            self._attempts.evict(item)
        if givers:
            self._pull()
            self._fill()

    def _leavers(self, head: QueuedGroup) -> list[InFlight]:
        """Requests of one adapter that leaves the batch if the head group's next request would be late otherwise."""
        latest_s = self._turns.latest_swap_s(head)
        self._relief.at(latest_s, self._now_s)
        if self._now_s < latest_s:
            return []
        laxity_s = self._attempts.laxity(head.slo_class)
        held = [
            item for item in self.batch.held.values() if self._attempts.gives_way(item, laxity_s)
        ]
        behind = self._relief.behind(head, laxity_s)
        return cheapest_to_leave(self.batch, self._models, [*held, *behind])

    def _empty(self, head: QueuedGroup) -> None:
        """Swap once nothing is in flight; cut the drain short when its time is up."""
        for item in self._turns.cut(head):
            self._attempts.evict(item, counts=not item.produced)
        self._start_held()
        if not len(self.batch):
            self._swap(self._models.base(head.model))

    def _swap(self, base: ModelName) -> None:
        self._models.swapping_to = base
        self._move(Trigger.EMPTIED)
        self._effects.append(e.SwapModel(base))

    def _leave(self) -> None:
        """Hand back what does not run; at the deadline, everything."""
        for item in list(self.batch.held.values()):
            self._attempts.give_back(item, ReturnReason.DRAINING)
        if self._now_s >= self._drain_deadline_s:
            for item in list(self.batch.running.values()):
                self._attempts.give_back(item, ReturnReason.DRAINING)
            self._attempts.requeue(list(self.batch.pulling.values()))
        if not len(self.batch):
            self._move(Trigger.EMPTIED)
            self._effects.append(e.Drained())

    def _move(self, trigger: Trigger) -> None:
        self.state = EXECUTOR_MOVES[self.state, trigger]
        self._report_s = self._now_s
