"""A gateway: the Ledger, its store and the open requests, driven as the service drives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Protocol

from qlm_core import ledger as lg
from qlm_core.endpoint import Endpoint
from qlm_core.messages import (
    Chunk,
    GatewayFact,
    Joined,
    Payload,
    Pulled,
    Refused,
    Revoked,
    WorkOrder,
)
from qlm_core.model import AgentId, GatewayId, ModelName, RequestId, RequestMeta, Slo, SloClass
from qlm_core.presence import PULSE_S, SleepWatch
from qlm_core.resume import Resume
from qlm_core.sim.faults.batch_lines import Line
from qlm_core.sim.faults.batch_part import BatchPart
from qlm_core.sim.faults.checkers import Checkers
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Ask
from qlm_core.sim.faults.sessions import Session
from qlm_core.sim.faults.store import Store, StoredBatch, StoredEnd, StoredRequest
from qlm_core.sim.faults.tokens import Span, Text
from qlm_core.sim.faults.wishes import Over, Reply, Shown

AGENT_GRACE_S = 1.0
ATTEMPTS_MAX = 10
_ATTEMPTS_PER_START = 1 << 16
_STORE_RETRY_S = 0.5
_RESTART_S = 1.0

Tell = Callable[[Reply], None]


class Origin(Protocol):
    """Who keeps the end of a request in place of the store."""

    def taken(self) -> None:
        """An agent holds it."""

    def keep_end(self, record: lg.EndRecord, answer: Text, done: Callable[[], None]) -> None:
        """It has ended; `done` once that is kept, or need not be."""


@dataclass(slots=True, eq=False)
class Live:
    """An open request: its output so far, and who follows it.

    Attributes:
        waiters: those who want its end, each once; followers also get the output.
        origin: who keeps its end; None for the store itself, or for nobody if it is not durable.
    """

    request: StoredRequest
    durable: bool
    spans: list[Span] = field(default_factory=list)
    text: Text = field(default_factory=Text)
    followers: dict[int, Tell] = field(default_factory=dict)
    record: lg.EndRecord | None = None
    origin: Origin | None = None


class GatewayPart:
    """One gateway. Its state is that of its present life, but for the store."""

    ledger: lg.Ledger
    live: dict[RequestId, Live]
    agents: dict[AgentId, Session]

    def __init__(
        self,
        process: Process,
        store: Store,
        classes: tuple[SloClass, ...],
        checkers: Checkers,
        rng: Random,
    ):
        self.process = process
        self.store = store
        self.rng = rng
        self.id = GatewayId(process.name)
        self.checkers = checkers
        self._classes = {one.name: one for one in classes}
        self._numbers = 0
        self.tell_solver: Callable[[GatewayFact], None] = lambda _fact: None
        self.on_start: Callable[[], None] = lambda: None
        self.batches = BatchPart(self)

    # ------------------------------------------------------------------ lives

    def start(self) -> None:
        """Begin a life: take up what the store holds. Without a disk it is tried again later."""
        self.process.start()
        self.live, self.agents = {}, {}
        self._events: deque[lg.Event] = deque()
        self._handling = False
        self._wake_s = inf
        self._watch = SleepWatch(self.process.now_s)
        start = self.store.open()
        if start is None:
            self.process.die(said=True)
            self.process.restart_after(_RESTART_S, self.start)
            return
        self.ledger = lg.Ledger(
            agent_grace_s=AGENT_GRACE_S,
            attempts_max=ATTEMPTS_MAX,
            first_attempt=start * _ATTEMPTS_PER_START,
        )
        for request in self.store.open_requests():
            self.enter(request, durable=True, watched=False, restored=True)
        self.batches.start()
        self.on_start()
        self._beat()

    def stop(self, *, said: bool) -> None:
        """The process dies; `said` is whether its host tells its peers."""
        self.process.die(said=said)
        self.store.crash()

    # ------------------------------------------------------------------ requests

    def request(self, ask: Ask) -> StoredRequest:
        """A request with an id of its own."""
        self._numbers += 1
        unix_s = self.process.unix_s
        return StoredRequest(
            id=RequestId(f"{self.id}/{self._numbers}/ask-{ask.number}"),
            ask=ask,
            arrived_at=unix_s,
            expires_at=unix_s + ask.ttl_s,
        )

    def enter(
        self, request: StoredRequest, *, durable: bool, watched: bool, restored: bool = False
    ) -> Live:
        """Give a request to the ledger."""
        now_s, unix_s = self.process.now_s, self.process.unix_s
        live = self.live[request.id] = Live(request, durable)
        meta = self._meta(request, now_s - max(0.0, unix_s - request.arrived_at))
        expires_s = now_s + (request.expires_at - unix_s)
        self._submit(live, meta, expires_s, watched=watched, restored=restored)
        return live

    def enter_line(self, line: Line, batch: StoredBatch, *, restored: bool) -> None:
        """Give a line of a batch to the ledger: it has arrived with the batch and is due with it."""
        ask = batch.ask
        arrived_at = batch.due_at - ask.window_s
        request = StoredRequest(
            id=line.request_id,
            ask=ask.line(line.number),
            arrived_at=arrived_at,
            expires_at=batch.due_at,
        )
        live = self.live[request.id] = Live(request, durable=True, origin=line)
        slo = Slo(ttft_s=ask.window_s, e2e_s=ask.window_s)
        meta = replace(self._meta(request, arrived_at), slo=slo, batch=batch.id)
        self._submit(live, meta, batch.due_at, watched=False, restored=restored)

    def _meta(self, request: StoredRequest, arrival_s: float) -> RequestMeta:
        ask = request.ask
        return RequestMeta(
            id=request.id,
            gateway=self.id,
            model=ModelName(ask.model),
            slo_class=ask.slo_class,
            slo=self._classes[ask.slo_class].slo,
            prompt_tokens=ask.prompt_tokens,
            max_output_tokens=ask.max_output_tokens,
            arrival_s=arrival_s,
        )

    def _submit(
        self, live: Live, meta: RequestMeta, expires_s: float, *, watched: bool, restored: bool
    ) -> None:
        self.checkers.entered(live.request, durable=live.durable)
        self.handle(
            lg.Submitted(
                request=meta,
                durable=live.durable,
                resume=Resume.FROM_TEXT if live.request.ask.resumable else Resume.NEVER,
                watched=watched,
                expires_s=expires_s,
                restored=restored,
            )
        )

    # ------------------------------------------------------------------ the machine

    def handle(self, event: lg.Event) -> None:
        """Give the ledger an event and carry out what it wants, before anything else happens."""
        # Whatever woke this process first: an agent's grace must not run out by the gateway's own sleep.
        slept_s = self._watch.slept_s(self.process.now_s)
        if slept_s:
            self._events.append(lg.Slept(slept_s))
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            one = self._events.popleft()
            seen = self.checkers.before_ledger(self.ledger, one)
            effects = self.ledger.handle(one, now_s=self.process.now_s)
            self.process.trace.event(self.process.name, one, effects)
            self.checkers.after_ledger(self.id, seen, one, effects)
            for effect in effects:
                self._apply(effect)
        self._handling = False
        due_s = self.ledger.wakeup_s
        if due_s is not None and due_s < self._wake_s:
            self._wake_s = due_s
            self.process.at(due_s, self._wake, due_s)

    def _beat(self) -> None:
        """Come by at least once a pulse, so that only sleep is taken for sleep."""
        self.handle(lg.Woken())
        self.process.after(PULSE_S, self._beat)

    def _wake(self, due_s: float) -> None:
        if due_s == self._wake_s:
            self._wake_s = inf
            self.handle(lg.Woken())

    def _apply(self, effect: lg.Effect) -> None:
        match effect:
            case lg.Tell(fact):
                if isinstance(fact, Pulled) and (origin := self.live[fact.id].origin) is not None:
                    origin.taken()
                self.tell_solver(fact)
            case lg.Grant():
                self._grant(effect)
            case lg.Refuse(agent, id, reason):
                self._order(agent, Refused(id, reason))
            case lg.Revoke(agent, id, attempt):
                self._order(agent, Revoked(id, attempt))
            case lg.Welcome(agent, going_on):
                self._order(agent, Joined(going_on))
            case lg.Deliver(chunk):
                self._deliver(chunk)
            case lg.DropOutput(id):
                self.live[id].spans.clear()
                self.live[id].text = Text()
            case lg.EndRequest(id, record, durable):
                self._end(id, record, durable=durable)
            case lg.Estimated():
                pass

    def _grant(self, effect: lg.Grant) -> None:
        live = self.live[effect.id]
        ask = live.request.ask
        payload = Payload(
            id=effect.id,
            attempt=effect.attempt,
            model=ModelName(ask.model),
            endpoint=Endpoint.COMPLETIONS,
            body=str(ask.number).encode(),
            resume_text=live.text.encode() if effect.produced_tokens else "",
            produced_tokens=effect.produced_tokens,
        )
        self._order(effect.agent, payload)

    def _order(self, agent: AgentId, order: WorkOrder) -> None:
        session = self.agents.get(agent)
        if session is not None:
            session.send([order])

    def _deliver(self, chunk: Chunk) -> None:
        live = self.live[chunk.id]
        span = Span.decode(chunk.data)
        live.spans.append(span)
        live.text.add(span)
        for tell in live.followers.values():
            tell(Shown(span))

    def _end(self, id: RequestId, record: lg.EndRecord, *, durable: bool) -> None:
        live = self.live[id]
        live.record = record
        if durable:
            self._store_end(live, StoredEnd(id=id, record=record, answer=live.text))
        else:
            del self.live[id]
            self._close(live)

    def _store_end(self, live: Live, end: StoredEnd) -> None:
        def done() -> None:
            del self.live[end.id]
            self._close(live)

        def told(id: RequestId | None) -> None:
            if id is None:
                self.process.after(_STORE_RETRY_S, self._store_end, live, end)
            else:
                done()

        if live.origin is not None:
            live.origin.keep_end(end.record, end.answer, done)
        else:
            self.store.write(end, told)

    def _close(self, live: Live) -> None:
        assert live.record is not None
        over = Over(live.request.id, live.record, live.text)
        for tell in live.followers.values():
            tell(over)
