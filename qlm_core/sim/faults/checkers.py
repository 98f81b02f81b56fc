"""What must hold in every run, checked from outside: none of it asks the code that is checked for its opinion.

Most checks are made as things happen, so that a run ends at the first thing that is wrong; the rest is looked at now and then
(`look`) and at the end (`run`). A check that fails raises `Violation` with the checker's name and what it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qlm_core import executor as ex
from qlm_core import ledger as lg
from qlm_core.messages import Attempt, AttemptReturned, Payload, QueueUpdate, ReturnReason
from qlm_core.model import AgentId, GatewayId, Phase, RequestId
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.faults.schedule import Ask
from qlm_core.sim.faults.store import StoredRequest
from qlm_core.sim.faults.tokens import Text
from qlm_core.sim.faults.wishes import Refusal

STOPS_WITHIN_S = 2.0
"""In calm, an engine still works so long at most on what has ended at its gateway."""

_COUNT_MAX = 1 << 32
_SLOTS_KEPT_FROM = 4
"""Engines of so many slots may evict in order to keep one free for who comes next."""


class Violation(Exception):
    """Something happened that must not."""

    def __init__(self, checker: str, words: str):
        super().__init__(f"{checker}: {words}")
        self.checker = checker
        self.words = words


@dataclass(slots=True)
class _Request:
    """What is known from outside of one request."""

    ask: Ask
    durable: bool = False
    acknowledged: bool = False
    attempt: int = 0
    records: int = 0
    told: lg.EndRecord | None = None
    ended_s: float | None = None
    lied: bool = False
    miscounted: bool = False


@dataclass(slots=True)
class _Seen:
    """What stood in a machine before it was given an event."""

    holders: dict[RequestId, AgentId | None] = field(default_factory=dict)
    epoch: int = 0
    references: int = 0
    order: object = None


class Checkers:
    """All that is watched in one run.

    Attributes:
        troubled_until_s: faults are at work until then; kept up to date by the run.
    """

    def __init__(self, agenda: Agenda):
        self.troubled_until_s = 0.0
        self.requests: dict[RequestId, _Request] = {}
        self._agenda = agenda
        self._salts = 0
        self._started: dict[tuple[RequestId, int], str] = {}
        self._epochs: dict[AgentId, int] = {}
        self._by_key: dict[str, RequestId] = {}

    def fail(self, checker: str, words: str) -> None:
        """Something must not be as it is."""
        raise Violation(checker, words)

    def of(self, id: RequestId) -> _Request:
        """The notes on a request."""
        return self.requests[id]

    # ------------------------------------------------------------------ gateways

    def entered(self, request: StoredRequest, *, durable: bool) -> None:
        """A gateway has taken a request into its ledger, newly or from its store."""
        known = self.requests.get(request.id)
        if known is None:
            self.requests[request.id] = _Request(request.ask, durable)
        else:
            # What an earlier life of the gateway made of it is void, unless it was stored.
            known.ended_s = None
            known.records = 0
            known.attempt = 0

    def acknowledged(self, request: StoredRequest, *, durable: bool) -> None:
        """A gateway tells a client that it has a request."""
        known = self.requests.get(request.id)
        if known is None:
            raise Violation("acknowledged", f"{request.id} is acknowledged and not in the ledger")
        known.acknowledged = True
        known.durable = durable

    def before_ledger(self, ledger: lg.Ledger, event: lg.Event) -> _Seen:
        """What to remember of a ledger before an event."""
        seen = _Seen()
        if isinstance(event, lg.PullAsked):
            for id in event.ids:
                row = ledger.row(id)
                seen.holders[id] = None if row is None else row.agent
        return seen

    def after_ledger(
        self, gateway: GatewayId, seen: _Seen, event: lg.Event, effects: Sequence[lg.Effect]
    ) -> None:
        """What an event made of a ledger."""
        for effect in effects:
            match effect:
                case lg.Grant(agent, id, attempt, _):
                    self._granted(gateway, seen, agent, id, attempt)
                case lg.Welcome(_, going_on):
                    for run in going_on:
                        self._brought_along(run)
                case lg.Deliver(chunk):
                    self._counts("output", chunk.id, chunk.attempt)
                case lg.EndRequest(id, record, _):
                    self._recorded(id, record)
                    if isinstance(event, lg.AttemptFinished):
                        self._counts("end", id, event.end.attempt)
                case _:
                    pass

    def _granted(
        self, gateway: GatewayId, seen: _Seen, agent: AgentId, id: RequestId, attempt: int
    ) -> None:
        holder = seen.holders.get(id)
        if holder is not None:
            self.fail(
                "one holder", f"{gateway} grants {id} to {agent} while {holder} holds attempt of it"
            )
        request = self.of(id)
        if attempt <= request.attempt:
            self.fail(
                "attempts grow", f"{id} gets attempt {attempt} after attempt {request.attempt}"
            )
        request.attempt = attempt

    def _brought_along(self, run: Attempt) -> None:
        """An attempt goes on: the newest, or one that began in an earlier life of the gateway, which knows of none."""
        request = self.of(run.id)
        if request.attempt and run.attempt != request.attempt:
            self.fail(
                "the newest attempt wins",
                f"attempt {run.attempt} of {run.id} goes on, whose newest is {request.attempt}",
            )
        request.attempt = run.attempt

    def _counts(self, what: str, id: RequestId, attempt: int) -> None:
        newest = self.of(id).attempt
        if attempt != newest:
            self.fail(
                "the newest attempt wins",
                f"the {what} of attempt {attempt} of {id} counts, whose newest is {newest}",
            )

    def _recorded(self, id: RequestId, record: lg.EndRecord) -> None:
        request = self.of(id)
        request.records += 1
        request.ended_s = self._agenda.now_s
        if request.records > 1:
            self.fail("one terminal record", f"{id} gets {request.records} of them from one life")
        numbers = record.prompt_tokens, record.output_tokens, record.attempts, record.evictions
        if min(numbers) < 0 or max(numbers) > _COUNT_MAX:
            self.fail("counts are sane", f"the record of {id} counts {numbers}")
        if record.e2e_s < 0.0 or (record.ttft_s or 0.0) < 0.0:
            self.fail("counts are sane", f"{id} took {record.e2e_s} s, {record.ttft_s} s to start")

    # ------------------------------------------------------------------ agents

    def agent_started(self, agent: AgentId) -> None:
        """An agent has begun a life; it knows of no epoch."""
        self._epochs[agent] = 0

    def before_order(self, executor: ex.Executor, event: ex.Event) -> _Seen:
        """What to remember of an executor before an event."""
        if not isinstance(event, QueueUpdate):
            return _NOTHING
        window = executor.window
        return _Seen(epoch=window.epoch, references=len(window), order=window.order)

    def after_event(
        self,
        agent: AgentId,
        executor: ex.Executor,
        event: ex.Event,
        effects: Sequence[ex.Effect],
        seen: _Seen,
        now_s: float,
    ) -> None:
        """What an event made of an executor."""
        window = executor.window
        if isinstance(event, QueueUpdate) and event.epoch < seen.epoch:
            after = window.epoch, len(window), window.order
            if after != (seen.epoch, seen.references, seen.order):
                self.fail(
                    "older epochs never win",
                    f"{agent} obeys epoch {event.epoch} though it knows {seen.epoch}",
                )
        if window.epoch < self._epochs[agent]:
            self.fail("older epochs never win", f"{agent} went back to epoch {window.epoch}")
        self._epochs[agent] = window.epoch
        for effect in effects:
            if isinstance(effect, ex.Send) and isinstance(effect.event, AttemptReturned):
                self._returned(agent, executor, effect.event, effects, now_s)

    def _returned(
        self,
        agent: AgentId,
        executor: ex.Executor,
        returned: AttemptReturned,
        effects: Sequence[ex.Effect],
        now_s: float,
    ) -> None:
        """A running request gives way: to somebody who can still be in time, or because the KV cache is full."""
        aborted = ex.Abort(returned.id, returned.attempt)
        if returned.reason is not ReturnReason.EVICTED or aborted not in effects:
            return
        if executor.state is not ex.ExecutorState.SERVING:
            return
        batch, window = executor.batch, executor.window
        if batch.slots >= _SLOTS_KEPT_FROM:
            return
        request = self.of(returned.id)
        freed = request.ask.prompt_tokens + request.ask.output_tokens
        if batch.resident_tokens + freed > batch.kv_tokens:
            return
        in_line = [item.ref.due_s for item in (*batch.pulling.values(), *batch.held.values())]
        started = [item.ref.due_s for item in batch.running.values() if not item.begun]
        waiting = [ref.due_s for group in window.order for ref in window.peek(group.id)]
        latest_s = max((*in_line, *started, *waiting), default=now_s)
        if latest_s < now_s:
            self.fail(
                "expired work is never urgent",
                f"{agent} evicts {returned.id} at {now_s:.3f}; all that waits was due by {latest_s:.3f}",
            )

    # ------------------------------------------------------------------ engines

    def new_salt(self) -> int:
        """A salt for an output that is begun."""
        self._salts += 1
        return self._salts

    def job_started(self, agent: str, payload: Payload, *, awake: str) -> None:
        """An agent gives its engine a job."""
        if payload.model != awake:
            self.fail(
                "jobs run on their model",
                f"{agent} gives {payload.id} of {payload.model} to an engine with {awake} awake",
            )
        run = payload.id, payload.attempt
        earlier = self._started.get(run)
        if earlier is not None:
            self.fail(
                "one agent runs an attempt",
                f"{agent} starts attempt {payload.attempt} of {payload.id}, which {earlier} has started",
            )
        self._started[run] = agent

    def job_continues(self, payload: Payload, so_far: Text) -> None:
        """An engine goes on from a text."""
        if payload.produced_tokens != so_far.tokens:
            self.fail(
                "tokens are counted once",
                f"{payload.id} goes on after {so_far.tokens} tokens, counted as {payload.produced_tokens}",
            )

    def job_worked(self, agent: str, payload: Payload) -> None:
        """An engine has put out tokens of a job."""
        ended_s = self.of(payload.id).ended_s
        if ended_s is None:
            return
        now_s = self._agenda.now_s
        if now_s - max(ended_s, self.troubled_until_s) > STOPS_WITHIN_S:
            self.fail(
                "ended work stops",
                f"the engine of {agent} works on {payload.id}, which ended {now_s - ended_s:.1f} s ago",
            )

    def lied(self, id: RequestId) -> None:
        """An engine keeps output of this request back."""
        self.of(id).lied = True

    def miscounted(self, id: RequestId) -> None:
        """An engine counts the tokens of this request wrongly."""
        self.of(id).miscounted = True

    # ------------------------------------------------------------------ clients

    def client_accepted(self, ask: Ask, id: RequestId) -> None:
        """A client has an id; the same key under the same body has one until its request is turned away."""
        owned = f"{ask.gateway}/{ask.key}/{ask.variant}"
        if not ask.key:
            return
        earlier = self._by_key.setdefault(owned, id)
        if earlier != id and not self._was_shed(earlier):
            self.fail("a key is one request", f"key {ask.key} names {earlier} and then {id}")
        self._by_key[owned] = id

    def _was_shed(self, id: RequestId) -> bool:
        told = self.of(id).told
        return told is not None and told.phase is Phase.SHED

    def client_denied(self, ask: Ask, id: RequestId | None, refusal: Refusal) -> None:
        """A client's wish is not granted for good."""
        if refusal is Refusal.NOT_FOUND and id is not None and self.of(id).durable:
            self.fail("nothing acknowledged is lost", f"{id} was acknowledged and is not found")
        if refusal is Refusal.KEY_REUSED and not ask.key.startswith("key-"):
            self.fail("a key is one request", f"key {ask.key} of one client is said to be reused")

    def client_sees(self, ask: Ask, id: RequestId | None, text: Text) -> None:
        """More output has come to a client."""
        if text.flaw:
            self.fail("each token once and in order", f"client {ask.number} of {id}: {text.flaw}")

    def client_told(
        self, ask: Ask, id: RequestId, record: lg.EndRecord, answer: Text, seen: Text
    ) -> None:
        """A client is told how its request ended."""
        request = self.of(id)
        if request.told is not None and request.told != record:
            self.fail("one terminal record", f"clients of {id} are told of two ends")
        request.told = record
        if answer.flaw:
            self.fail("each token once and in order", f"the answer of {id}: {answer.flaw}")
        if record.phase is not Phase.FINISHED:
            return
        if seen.tokens and seen != answer:
            self.fail(
                "each token once and in order",
                f"client {ask.number} of {id} saw {seen}, its answer is {answer}",
            )
        whole = min(request.ask.output_tokens, request.ask.max_output_tokens)
        if not request.lied and answer.tokens != whole:
            self.fail("answers are whole", f"{id} finished with {answer.tokens} tokens of {whole}")
        if not request.lied and not request.miscounted and record.output_tokens != whole:
            self.fail(
                "tokens are counted once", f"{id} counts {record.output_tokens} tokens of {whole}"
            )


_NOTHING = _Seen()
