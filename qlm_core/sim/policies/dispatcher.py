"""What rival policies share: knowledge of agents and requests, and windows kept in line with queues.

Every request is a group of its own here. A dispatcher keeps, for each agent, the line of requests bound to it and not yet
pulled, and sends the agent the front of that line. How requests get into lines is the rival's business: at once on arrival,
or from a shared queue when an agent has room.
"""

from __future__ import annotations

from dataclasses import replace

from qlm_core.manager.events import (
    AgentJoined,
    AgentReported,
    Effect,
    Event,
    GatewaySaid,
    TellAgent,
)
from qlm_core.messages import Arrived, Ended, Pulled, QueueUpdate, Returned
from qlm_core.model import (
    AgentId,
    GroupId,
    InstanceState,
    ModelName,
    QueuedGroup,
    RequestId,
    RequestMeta,
    RequestRef,
)
from qlm_core.profile import EngineProfile
from qlm_core.rwt.lengths import LengthModel, exponential_prior
from qlm_core.sim.policies.base import Context

WINDOW = 64


class Host:
    """An agent as a dispatcher sees it.

    Attributes:
        line: requests bound to it and not pulled, first to run first.
        sent: those of the line that it has a reference of.
        held: requests that it has pulled.
    """

    __slots__ = ("agent", "changed", "held", "line", "profiles", "sent", "sent_order", "state")

    def __init__(self, agent: AgentId, profiles: tuple[EngineProfile, ...], state: InstanceState):
        self.agent = agent
        self.profiles = {ModelName(profile.model): profile for profile in profiles}
        self.state = state
        self.line: dict[RequestId, RequestMeta] = {}
        self.sent: dict[RequestId, None] = {}
        self.sent_order: tuple[QueuedGroup, ...] = ()
        self.held: dict[RequestId, None] = {}
        self.changed = False

    @property
    def load(self) -> int:
        """Requests here, running or not."""
        return len(self.line) + len(self.held)

    @property
    def model(self) -> ModelName | None:
        """The model that serves here, or will when the swap under way has ended."""
        return self.state.swapping_to or self.state.awake_model

    @property
    def last_model(self) -> ModelName | None:
        """The model that will be awake once the line is done."""
        if not self.line:
            return self.model
        return self.line[next(reversed(self.line))].model

    def bind(self, request: RequestMeta) -> None:
        """Append a request to the line."""
        self.line[request.id] = request
        self.changed = True


class Dispatcher:
    """Base of the rivals. Subclasses say what to do with a request that waits, and when an agent has room."""

    def __init__(self, context: Context):
        self.context = context
        self.hosts: dict[AgentId, Host] = {}
        self.now_s = 0.0
        self._requests: dict[RequestId, RequestMeta] = {}
        self._bound: dict[RequestId, Host] = {}
        self._lengths: dict[tuple[ModelName, str], LengthModel] = {}
        self._seen: dict[RequestId, int] = {}
        self._numbers: dict[RequestId, GroupId] = {}
        self._next_number = 1
        self._epoch = 0

    # ------------------------------------------------------------------ what rivals define

    def waits(self, request: RequestMeta) -> None:
        """A request waits, newly or again."""
        raise NotImplementedError

    def room(self, host: Host) -> None:
        """Something ended or was pulled at an agent, or its model changed."""

    def reported(self, host: Host) -> None:
        """An agent told its state, which `host` has now."""

    @property
    def wakeup_s(self) -> float | None:
        """When the policy wants to be woken."""
        return None

    # ------------------------------------------------------------------ the contract

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """Take one event and say what to do."""
        self.now_s = now_s
        match event:
            case GatewaySaid(_, Arrived(request)):
                self._requests[request.id] = request
                self._numbers[request.id] = GroupId(self._next_number)
                self._next_number += 1
                self.waits(request)
            case GatewaySaid(_, Pulled(id, agent)):
                self._pulled(id, agent)
            case GatewaySaid(_, Ended(id, _, _, output_tokens)):
                self._ended(id, output_tokens)
            case GatewaySaid(_, Returned(id, produced)):
                self._returned(id, produced)
            case AgentJoined(hello):
                host = Host(hello.agent, hello.profiles, hello.state)
                self.hosts[hello.agent] = host
                self.room(host)
            case AgentReported(agent, state):
                host = self.hosts[agent]
                before, host.state = host.model, state
                self._learn(state)
                if host.model != before:
                    self.room(host)
                self.reported(host)
            case _:
                self.woken()
        return self._flush()

    def woken(self) -> None:
        """The time asked for has come, or something of no concern happened."""

    def _pulled(self, id: RequestId, agent: AgentId) -> None:
        bound, host = self._bound.get(id), self.hosts[agent]
        if id not in self._requests:
            return
        if bound is not None and bound is not host:
            # It was bound elsewhere while the pull was on its way.
            self.unbind(id)
        self._bound[id] = host
        host.line.pop(id, None)
        host.sent.pop(id, None)
        host.held[id] = None
        host.changed = True
        self.room(host)

    def _ended(self, id: RequestId, output_tokens: int) -> None:
        request = self._requests.pop(id, None)
        if request is None:
            return
        self._numbers.pop(id)
        self.lengths(request).observe(output_tokens, self._seen.pop(id, 0))
        host = self._bound.pop(id, None)
        if host is not None:
            host.held.pop(id, None)
            host.line.pop(id, None)
            host.sent.pop(id, None)
            self.room(host)

    def _learn(self, state: InstanceState) -> None:
        """Count how far running outputs have come."""
        for running in state.running:
            request = self._requests.get(running.id)
            if request is not None:
                seen = self._seen.get(running.id, 0)
                self._seen[running.id] = self.lengths(request).passed(running.produced_tokens, seen)

    def _returned(self, id: RequestId, produced_tokens: int) -> None:
        host = self._bound.pop(id, None)
        if host is not None:
            host.held.pop(id, None)
        request = replace(self._requests[id], produced_tokens=produced_tokens)
        self._requests[id] = request
        self.waits(request)

    # ------------------------------------------------------------------ for rivals

    def serving(self, model: ModelName) -> list[Host]:
        """The agents that can serve a model."""
        return [host for host in self.hosts.values() if model in host.profiles]

    def free(self, request: RequestMeta) -> bool:
        """Whether a request waits and is bound to no agent."""
        return request.id in self._requests and request.id not in self._bound

    def bind(self, request: RequestMeta, host: Host) -> None:
        """Put a request at the end of an agent's line."""
        self._bound[request.id] = host
        host.bind(request)

    def unbind(self, id: RequestId) -> RequestMeta:
        """Take a request that was not pulled out of its line."""
        host = self._bound.pop(id)
        host.changed = True
        return host.line.pop(id)

    def lengths(self, request: RequestMeta) -> LengthModel:
        """Output lengths seen of one model and class."""
        key = (request.model, request.slo_class)
        if key not in self._lengths:
            rwt = self.context.config.rwt
            prior = exponential_prior(rwt.prior_output_tokens)
            self._lengths[key] = LengthModel(prior=prior, history=rwt.history)
        return self._lengths[key]

    def expected_output(self, request: RequestMeta) -> int:
        """Output tokens still to expect of a waiting request."""
        left = self.lengths(request).remaining(request.produced_tokens, request.max_output_tokens)
        return max(1, round(left))

    def due_s(self, request: RequestMeta) -> float:
        """The due time as agents are told it. Engines that go by priority begin with the least."""
        return request.due_s

    # ------------------------------------------------------------------ windows

    def _flush(self) -> list[Effect]:
        effects: list[Effect] = []
        for host in self.hosts.values():
            if host.changed:
                host.changed = False
                update = self._update(host)
                if update is not None:
                    effects.append(TellAgent(host.agent, update))
        return effects

    def _update(self, host: Host) -> QueueUpdate | None:
        front: dict[RequestId, RequestMeta] = {}
        order: list[QueuedGroup] = []
        for id, request in host.line.items():
            if len(front) == WINDOW:
                break
            front[id] = request
            order.append(QueuedGroup(self._numbers[id], request.model, request.slo_class))
        add = tuple(self._reference(one) for id, one in front.items() if id not in host.sent)
        remove = tuple(id for id in host.sent if id not in front)
        now = tuple(order)
        if not add and not remove and now == host.sent_order[-len(now) :]:
            # What is left of an order still says which comes first.
            return None
        host.sent = dict.fromkeys(front)
        host.sent_order = now
        self._epoch += 1
        return QueueUpdate(epoch=self._epoch, order=now, add=add, remove=remove)

    def _reference(self, request: RequestMeta) -> RequestRef:
        return RequestRef(
            id=request.id,
            gateway=request.gateway,
            group=self._numbers[request.id],
            prompt_tokens=request.prompt_tokens,
            max_output_tokens=request.max_output_tokens,
            expected_output_tokens=self.expected_output(request),
            produced_tokens=request.produced_tokens,
            due_s=self.due_s(request),
        )
