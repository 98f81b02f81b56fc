"""The ledger's rules.

One row per open request; a row leaves the ledger with its one terminal record. A request is held by at most one
attempt at a time; attempts are numbered, upwards only, and whatever arrives under another number or from another
agent than the row's is refused, output with a revocation. What an agent holds when its stream breaks stays its own
for a grace period: it goes on if the agent comes back in time and can send again what did not arrive, else it waits
again. What was read back from the store rests for the same time, so that an agent that still runs it may bring its attempt
along. An attempt that stops early continues from what was produced if it can; starts over if nobody has seen
output of it; and fails otherwise. Lost attempts are bounded, and more tightly those that an engine answers with an error
while it serves others: then the request is what is wrong. Evictions are not bounded, nor is being turned away by an engine
without room, after which a request rests before it waits again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from qlm_core.ledger import events as ev
from qlm_core.ledger.effects import (
    Deliver,
    DropOutput,
    Effect,
    EndRequest,
    Estimated,
    Grant,
    Refuse,
    Revoke,
    Tell,
    Welcome,
)
from qlm_core.ledger.row import Row
from qlm_core.ledger.table import TRANSITIONS, Step
from qlm_core.messages import (
    AnnounceDone,
    Arrived,
    Attempt,
    AttemptEnded,
    Ended,
    FirstToken,
    Pulled,
    Returned,
    ReturnReason,
)
from qlm_core.model import AgentId, Phase, RequestId
from qlm_core.outcome import FinishReason, PullRefusal, ShedReason
from qlm_core.resume import Resume

# A request fails when engines that serve others have answered it with this many errors.
_ERRORS_MAX = 3
# It rests this long after the first of them, and twice as long after the next: a server may be about to restart.
_ERROR_REST_S = 1.0
# How long a request rests at least that was turned away: the first time, and at most.
_TURNED_AWAY_S_MIN = 0.5
_TURNED_AWAY_S_MAX = 30.0
# Ended ids that are still told apart from unknown ones when an agent asks for them.
_ENDED_IDS_KEPT = 4096


class Ledger:
    """The request ledger of one gateway.

    Args:
        agent_grace_s: how long a disconnected agent may take to come back to its attempts.
        attempts_max: a request fails when it has lost this many attempts.
        first_attempt: attempt numbers start here; a restarted gateway passes a value above every
            number that it may have given before.
    """

    def __init__(
        self, *, agent_grace_s: float = 1.0, attempts_max: int = 10, first_attempt: int = 1
    ):
        self._agent_grace_s = agent_grace_s
        self._attempts_max = max(1, attempts_max)
        self._first_attempt = first_attempt
        self._rows: dict[RequestId, Row] = {}
        self._held: dict[AgentId, dict[RequestId, None]] = {}
        self._connected: dict[AgentId, None] = {}
        self._missing: dict[AgentId, float] = {}
        self._expiries: list[tuple[float, int, RequestId]] = []
        self._resting: list[tuple[float, int, RequestId]] = []
        self._ended_ids: dict[RequestId, None] = {}
        self._numbers = 0
        self._now_s = float("-inf")
        self._counts = {phase: 0 for phase in Phase if not phase.terminal}
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            ev.Submitted: self._submitted,
            ev.PullAsked: self._pull_asked,
            ev.ChunkCame: self._chunk_came,
            ev.AttemptFinished: self._attempt_finished,
            ev.AttemptCameBack: self._attempt_came_back,
            ev.AgentConnected: self._agent_connected,
            ev.AgentDisconnected: self._agent_disconnected,
            ev.CancelAsked: self._cancel_asked,
            ev.FailAsked: self._fail_asked,
            ev.ShedOrdered: self._shed_ordered,
            ev.EstimateCame: self._estimate_came,
            ev.OutputWatched: self._output_watched,
            ev.SolverConnected: self._solver_connected,
            ev.Slept: self._slept,
            ev.Woken: self._woken,
        }

    # ---------------------------------------------------------------- what a driver needs

    def handle(self, event: ev.Event, *, now_s: float) -> list[Effect]:
        """Take one event to completion and say what to do, in order. Time never goes back."""
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        self._now_s = now_s
        return self._handlers[type(event)](event)

    @property
    def wakeup_s(self) -> float | None:
        """When to send `Woken`, if ever."""
        due = [*self._missing.values(), *(expiry for expiry, _, _ in self._expiries[:1])]
        due += [until_s for until_s, _, _ in self._resting[:1]]
        return min(due, default=None)

    def row(self, id: RequestId) -> Row | None:
        """The row of an open request; read only."""
        return self._rows.get(id)

    def newest(self) -> Iterator[Row]:
        """Open rows, latest submission first; read only, and only until the next event."""
        return reversed(self._rows.values())

    def count(self, phase: Phase) -> int:
        """Open requests in a phase."""
        return self._counts.get(phase, 0)

    def __len__(self) -> int:
        return len(self._rows)

    # ---------------------------------------------------------------- clients

    def _submitted(self, event: ev.Submitted) -> list[Effect]:
        meta = event.request
        if meta.id in self._rows or meta.id in self._ended_ids:
            return []
        self._numbers += 1
        self._rows[meta.id] = row = Row(
            meta=meta,
            number=self._numbers,
            durable=event.durable,
            resume=event.resume,
            watched=event.watched,
            expires_s=event.expires_s,
            attempt=self._first_attempt - 1,
            restored=event.restored,
        )
        self._counts[Phase.WAITING] += 1
        heapq.heappush(self._expiries, (event.expires_s, self._numbers, meta.id))
        if len(self._expiries) > 2 * len(self._rows) + 64:
            # Ended requests leave their entry behind; rebuilding now and then keeps this linear.
            self._expiries = [
                (row.expires_s, row.number, row.meta.id) for row in self._rows.values()
            ]
            heapq.heapify(self._expiries)
        if event.restored and self._agent_grace_s > 0.0:
            # The solver hears of it when it may be granted.
            self._rest(row, self._agent_grace_s)
            return []
        return [Tell(Arrived(meta))]

    def _cancel_asked(self, event: ev.CancelAsked) -> list[Effect]:
        row = self._rows.get(event.id)
        if row is None:
            return []
        return self._end(row, Step.CANCEL, FinishReason.CANCELLED.value)

    def _fail_asked(self, event: ev.FailAsked) -> list[Effect]:
        row = self._rows.get(event.id)
        return [] if row is None else self._fail(row, event.reason)

    def _output_watched(self, event: ev.OutputWatched) -> list[Effect]:
        row = self._rows.get(event.id)
        if row is not None:
            row.watched = True
        return []

    # ---------------------------------------------------------------- solver

    def _solver_connected(self, event: ev.SolverConnected) -> list[Effect]:  # noqa: ARG002
        effects: list[Effect] = []
        for row in self._rows.values():
            if row.restored and row.rest_until_s is not None:
                continue
            produced = row.output_tokens
            meta = replace(row.meta, produced_tokens=produced) if produced else row.meta
            effects.append(Tell(Arrived(meta, estimated=row.estimate is not None)))
            # For the solver, who rests is still where it came from: nobody is to be sent for it.
            away = row.agent if row.rest_until_s is None else row.rested_by
            if away is not None:
                effects.append(Tell(Pulled(row.meta.id, away)))
        effects.append(Tell(AnnounceDone()))
        return effects

    def _estimate_came(self, event: ev.EstimateCame) -> list[Effect]:
        row = self._rows.get(event.id)
        if row is None:
            return []
        if row.estimate is None:
            row.estimate = event.estimate
        return [Estimated(event.id, event.estimate)]

    def _shed_ordered(self, event: ev.ShedOrdered) -> list[Effect]:
        row = self._rows.get(event.id)
        if row is None:
            return []
        return self._end(row, Step.SHED, event.reason.value, retry_after_s=event.retry_after_s)

    # ---------------------------------------------------------------- agents

    def _pull_asked(self, event: ev.PullAsked) -> list[Effect]:
        effects: list[Effect] = []
        for id in event.ids:
            row = self._rows.get(id)
            if row is None:
                done = id in self._ended_ids
                reason = PullRefusal.DONE if done else PullRefusal.UNKNOWN
                effects.append(Refuse(event.agent, id, reason))
            elif row.rest_until_s is not None or not self._move(row, Step.GRANT):
                effects.append(Refuse(event.agent, id, PullRefusal.TAKEN))
            else:
                effects += self._grant(row, event.agent)
        return effects

    def _grant(self, row: Row, agent: AgentId) -> list[Effect]:
        # An attempt that was brought along has an older start's number.
        self._hold(row, agent, max(row.attempt + 1, self._first_attempt))
        grant = Grant(agent, row.meta.id, row.attempt, row.produced_tokens)
        return [grant, Tell(Pulled(row.meta.id, agent))]

    def _hold(self, row: Row, agent: AgentId, attempt: int) -> None:
        """From now on an agent runs this attempt."""
        row.attempt = attempt
        row.attempts += 1
        row.agent = agent
        row.restored = False
        if row.pulled_s is None:
            row.pulled_s = self._now_s
        self._held.setdefault(agent, {})[row.meta.id] = None

    def _chunk_came(self, event: ev.ChunkCame) -> list[Effect]:
        chunk = event.chunk
        row = self._rows.get(chunk.id)
        if row is None or row.attempt != chunk.attempt or row.agent != event.agent:
            return [Revoke(event.agent, chunk.id, chunk.attempt)]
        row.chunks += 1
        if not chunk.plain:
            row.resume = Resume.NEVER
        if chunk.ids is not None and chunk.ids.prompt and not chunk.ids.position:
            row.counted_prompt_tokens = len(chunk.ids.prompt)
        if not chunk.tokens:
            return [Deliver(chunk)]
        row.has_ids &= chunk.ids is not None
        row.attempt_tokens += chunk.tokens
        row.token_came(self._now_s)
        if row.phase is Phase.PULLED:
            self._move(row, Step.OUTPUT)
            if row.first_token_s is None and not chunk.whole:
                row.first_token_s = self._now_s
                first = FirstToken(chunk.id, self._now_s - row.meta.arrival_s)
                return [Deliver(chunk), Tell(first)]
        return [Deliver(chunk)]

    def _attempt_finished(self, event: ev.AttemptFinished) -> list[Effect]:
        end = event.end
        row = self._current(event.agent, end.id, end.attempt)
        if row is None:
            return []
        self._release(row)
        if end.finish_reason == FinishReason.ERROR.value:
            reason = FinishReason.ERROR.value
            error = end.error or "the engine refused the request without a reason"
            return self._end(row, Step.FAIL, reason, engine=end, error=error)
        told: list[Effect] = []
        if not row.meta.max_output_tokens:
            # Its whole answer is what others begin with.
            row.first_token_s = self._now_s
            told.append(Tell(FirstToken(end.id, self._now_s - row.meta.arrival_s)))
        return [*told, *self._end(row, Step.FINISH, end.finish_reason, engine=end)]

    def _attempt_came_back(self, event: ev.AttemptCameBack) -> list[Effect]:
        returned = event.returned
        row = self._current(event.agent, returned.id, returned.attempt)
        if row is None:
            return []
        row.evictions += returned.reason is ReturnReason.EVICTED
        rest_s = returned.rest_s
        if returned.reason is ReturnReason.TURNED_AWAY:
            rest_s = self._rest_s(row, returned.rest_s)
        if returned.reason is ReturnReason.ENGINE_ERROR:
            row.errors += 1
            if row.errors >= _ERRORS_MAX:
                self._release(row)
                error = f"{row.errors} attempts ended in errors of the engine, the last in: {returned.detail}"
                return self._fail(row, error)
            rest_s = _ERROR_REST_S * row.errors
        lost = returned.reason is ReturnReason.ENGINE_LOST
        return self._return(row, lost=lost, detail=returned.detail, rest_s=rest_s)

    def _agent_connected(self, event: ev.AgentConnected) -> list[Effect]:
        self._missing.pop(event.agent, None)
        self._connected[event.agent] = None
        effects: list[Effect] = []
        going_on: dict[RequestId, Attempt] = {}
        for run in event.running:
            effects += self._bring_along(event.agent, run)
            row = self._current(event.agent, run.id, run.attempt)
            if row is not None and run.first_chunk <= row.chunks <= run.chunks:
                going_on[run.id] = Attempt(run.id, run.attempt, row.chunks)
            else:
                effects.append(Revoke(event.agent, run.id, run.attempt))
        for id in list(self._held.get(event.agent, ())):
            if id not in going_on:
                effects += self._return(self._rows[id], lost=True)
        return [Welcome(event.agent, tuple(going_on.values())), *effects]

    def _bring_along(self, agent: AgentId, run: Attempt) -> list[Effect]:
        """Take over an attempt of an earlier start of the gateway, if its agent can send all of its output again."""
        row = self._rows.get(run.id)
        if row is None or not row.restored or run.attempt >= self._first_attempt:
            return []
        if run.continued or run.first_chunk or not self._move(row, Step.GRANT):
            return []
        told = row.rest_until_s is None
        row.rest_until_s = None
        self._hold(row, agent, run.attempt)
        arrived = [] if told else [Tell(Arrived(row.meta))]
        return [*arrived, Tell(Pulled(run.id, agent))]

    def _agent_disconnected(self, event: ev.AgentDisconnected) -> list[Effect]:
        self._connected.pop(event.agent, None)
        if self._held.get(event.agent):
            self._missing[event.agent] = self._now_s + self._agent_grace_s
        return []

    # ---------------------------------------------------------------- time

    def _slept(self, event: ev.Slept) -> list[Effect]:
        for agent in self._missing:
            self._missing[agent] += event.seconds
        return []

    def _woken(self, event: ev.Woken) -> list[Effect]:  # noqa: ARG002
        effects: list[Effect] = []
        for agent, due_s in list(self._missing.items()):
            if due_s <= self._now_s:
                del self._missing[agent]
                for id in list(self._held.get(agent, ())):
                    effects += self._return(self._rows[id], lost=True)
        while self._resting and self._resting[0][0] <= self._now_s:
            _, number, id = heapq.heappop(self._resting)
            row = self._rows.get(id)
            if row is None or row.number != number or row.rest_until_s is None:
                continue
            # One whose attempt was brought along may rest again by now, for longer.
            if row.rest_until_s <= self._now_s:
                row.rest_until_s = row.rested_by = None
                news = Arrived(row.meta) if row.restored else Returned(id, row.produced_tokens)
                effects.append(Tell(news))
        while self._expiries and self._expiries[0][0] <= self._now_s:
            _, number, id = heapq.heappop(self._expiries)
            row = self._rows.get(id)
            if row is not None and row.number == number:
                effects += self._end(row, Step.EXPIRE, ShedReason.TTL_EXPIRED.value)
        return effects

    # ---------------------------------------------------------------- shared steps

    def _current(self, agent: AgentId, id: RequestId, attempt: int) -> Row | None:
        """The row that this agent's attempt still holds, if it does."""
        row = self._rows.get(id)
        if row is None or row.attempt != attempt or row.agent != agent:
            return None
        return row

    def _move(self, row: Row, step: Step) -> bool:
        phase = TRANSITIONS.get((row.phase, step))
        if phase is None:
            return False
        self._counts[row.phase] -= 1
        if not phase.terminal:
            self._counts[phase] += 1
        row.phase = phase
        return True

    def _release(self, row: Row) -> None:
        """Take the row from its agent."""
        if row.agent is None:
            return
        held = self._held[row.agent]
        del held[row.meta.id]
        if not held:
            del self._held[row.agent]
        row.agent = None

    def _return(
        self, row: Row, *, lost: bool, detail: str = "", rest_s: float = 0.0
    ) -> list[Effect]:
        """An attempt stopped early: continue, start over, finish or fail."""
        id, agent = row.meta.id, row.agent
        self._release(row)
        row.losses += lost
        if row.losses >= self._attempts_max:
            last = f", the last time by: {detail}" if detail else ""
            return self._fail(row, f"lost with {row.losses} agents or engines{last}")
        effects: list[Effect] = []
        produced = row.output_tokens
        if row.resumable:
            if produced >= row.meta.max_output_tokens:
                # All tokens are here; only the word that it was over is missing.
                return self._end(row, Step.FINISH, FinishReason.LENGTH.value)
        elif not row.watched:
            effects.append(DropOutput(id))
            row.begin_anew()
            produced = 0
        elif produced:
            cause = "its engine was lost" if lost else "it was evicted"
            return self._fail(row, f"{cause}, and output like this cannot be continued")
        self._move(row, Step.RETURN)
        row.produced_tokens = produced
        row.attempt_tokens = row.chunks = 0
        if rest_s > 0.0:
            row.rested_by = agent
            self._rest(row, rest_s)
            return effects
        return [*effects, Tell(Returned(id, produced))]

    def _rest(self, row: Row, rest_s: float) -> None:
        """Let a waiting request be granted to nobody for a while."""
        row.rest_until_s = self._now_s + rest_s
        heapq.heappush(self._resting, (row.rest_until_s, row.number, row.meta.id))

    def _rest_s(self, row: Row, told_s: float) -> float:
        """How long a request rests that an engine had no room for: as long as told, and longer each time.

        Where other agents are, one of them may have room sooner; the one that turned it away remembers what it was told.
        """
        row.turned_away += 1
        pause_s = min(_TURNED_AWAY_S_MAX, _TURNED_AWAY_S_MIN * 2.0 ** min(row.turned_away - 1, 10))
        return pause_s if len(self._connected) > 1 else max(told_s, pause_s)

    def _fail(self, row: Row, error: str) -> list[Effect]:
        return self._end(row, Step.FAIL, FinishReason.ERROR.value, error=error)

    def _end(
        self,
        row: Row,
        step: Step,
        reason: str,
        *,
        engine: AttemptEnded | None = None,
        error: str = "",
        retry_after_s: float = 0.0,
    ) -> list[Effect]:
        """Move to a terminal phase, if that is legal, and let go of the row."""
        if not self._move(row, step):
            return []
        id = row.meta.id
        effects: list[Effect] = []
        if row.agent is not None:
            effects.append(Revoke(row.agent, id, row.attempt))
            self._release(row)
        del self._rows[id]
        self._ended_ids[id] = None
        if len(self._ended_ids) > _ENDED_IDS_KEPT:
            del self._ended_ids[next(iter(self._ended_ids))]
        record = row.end_record(row.phase, reason, now_s=self._now_s, engine=engine, error=error)
        if retry_after_s:
            record = replace(record, retry_after_s=retry_after_s)
        ended = Ended(id, row.phase, record.prompt_tokens, record.output_tokens)
        return [*effects, Tell(ended), EndRequest(id, record, row.durable)]
