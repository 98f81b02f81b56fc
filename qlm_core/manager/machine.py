"""The Manager: one pure machine that decides for the whole fleet.

Theory of operation. Gateways tell it which requests wait, are held, came back and ended; agents tell it what their
instances can do and are doing. It keeps waiting requests in groups, places every group in one agent's virtual
queue, and sends each agent its order and a window of references. Three rules:

1. A plan is always in force. Whatever changes, it is repaired before `handle` returns (in a deep backlog, new groups line up
   behind those that they continue); a planner then improves it elsewhere (`StartSolve`) and its answer is adopted only if it
   is better *now*, by our own evaluator, the cost of moving groups included.
2. Arrivals do not plan. A request that joins an open group costs a dictionary entry and a reference in the window.
3. Nothing here is precious. A new Manager is rebuilt from what gateways and agents announce; it publishes nothing until
   one gateway has announced all it holds or a settling time is over, so that windows are not wiped by ignorance.

Who may run a request is not decided here but by the gateway's ledger: of two agents with one reference, the first to pull.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from qlm_core.config import SolverConfig
from qlm_core.grouping import Grouper, GroupKey, RequestGroup
from qlm_core.manager.bulks import Bulks
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.events import (
    AgentJoined,
    AgentLeft,
    AgentReported,
    Effect,
    Event,
    GatewayJoined,
    GatewayLeft,
    GatewaySaid,
    PartAgent,
    PartGateway,
    PlanFinished,
    PlanImproved,
    Slept,
    TellAgent,
    TellGateway,
    Wakeup,
)
from qlm_core.manager.finishes import Finishes
from qlm_core.manager.fleet import Agent, Roster, offered
from qlm_core.manager.lateness import Lateness
from qlm_core.manager.leases import SILENT, UNKNOWN, Leases
from qlm_core.manager.placing import backlog_is_deep, homeless, line_up, plannable, split_large
from qlm_core.manager.planner import Planner
from qlm_core.manager.publishing import SETTLE_S, Publisher
from qlm_core.manager.requests import Book, Held
from qlm_core.manager.sizing import GroupSizes
from qlm_core.manager.timeline import Timeline
from qlm_core.manager.waits import learn_wait, tell_wait
from qlm_core.messages import (
    AgentHello,
    AnnounceDone,
    Arrived,
    BulkWaiting,
    Ended,
    FirstToken,
    Fleet,
    GatewayFact,
    GatewayHello,
    Gateways,
    Pulled,
    Returned,
    ShedOrder,
)
from qlm_core.model import (
    AgentId,
    GatewayId,
    GroupId,
    InstanceState,
    Phase,
    RequestId,
    RequestMeta,
    SloClass,
)
from qlm_core.outcome import ShedReason

_BROKEN_LINK_S = 1.0
"""How long a peer whose connection broke may stay away before its lease is taken."""


class Manager:
    """The solver's state machine.

    Args:
        config: the solver's section.
        classes: the SLO classes by name; a request of an unknown class weighs 1.
    """

    def __init__(self, config: SolverConfig, classes: tuple[SloClass, ...], *, now_s: float):
        self.config = config
        self.estimators = Estimators(config.rwt)
        self.groups: dict[GroupId, RequestGroup] = {}
        self.agents: dict[AgentId, Agent] = {}
        self.gateways: dict[GatewayId, str] = {}
        self.epoch = 1
        weights = {one.name: one.weight for one in classes}
        self.timeline = Timeline(self.estimators, weights, rest_share=config.objective.rest_share)
        self.planner = Planner(config, weights)
        self._lateness = Lateness(classes, now_s=now_s + SETTLE_S)
        self.counts = {"arrived": 0, "ended": 0, "returned": 0, "shed": 0, "lost_agents": 0}
        self._agent_leases: Leases[AgentId] = Leases()
        self._absent: Leases[GatewayId] = Leases()
        self._fleet = Fleet((), up=False)
        self._grouper = Grouper(
            span_ratio=config.grouping.span_ratio, requests_max=config.grouping.requests_max
        )
        self._unplaced: dict[GroupId, None] = {}
        self._publisher = Publisher(
            window_requests=config.window_requests,
            expected=self.estimators.expected_output,
            now_s=now_s,
        )
        most = config.limits.batches_max
        self.bulks = Bulks(self.estimators, self.timeline, self.groups, self.agents, most)
        self.book = Book(self.bulks)
        self.finishes = Finishes(self.estimators, self.bulks)
        self._sizes = GroupSizes(self.estimators, config.grouping)
        self.roster = Roster(())
        self._now_s = now_s

    # ------------------------------------------------------------------ the contract

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """Take one event and say what to do. The only way in which state changes. `now_s` never goes back."""
        assert now_s >= self._now_s, f"time went backwards: {self._now_s} → {now_s}"
        self._now_s = now_s
        effects: list[Effect] = []
        match event:
            case GatewaySaid(gateway, _) if gateway not in self.gateways:
                effects.append(PartGateway(gateway, UNKNOWN))
            case GatewaySaid(gateway, BulkWaiting() as bulk):
                self._lines_changed(self.bulks.told(gateway, bulk, self._grouper, self.roster))
            case GatewaySaid(gateway, AnnounceDone()):
                self.bulks.announced(gateway)
                self._publisher.announced(now_s)
            case GatewaySaid(_, fact):
                self._fact(fact, effects)
            case AgentReported(agent, state):
                self._agent_reported(agent, state, effects)
            case Wakeup():
                self._improve(effects)
            case PlanImproved(solve, plan):
                self._touch(self.planner.consider(solve, plan, self.view(), now_s=now_s))
            case PlanFinished(solve, result):
                self._touch(self.planner.finish(solve, result, self.view(), now_s=now_s))
            case AgentJoined(hello):
                self._agent_joined(hello, effects)
            case AgentLeft(agent):
                self._shorten_lease(agent)
            case GatewayJoined(hello):
                self._gateway_joined(hello, effects)
            case GatewayLeft(gateway) if gateway in self.gateways:
                self._absent.renew(gateway, now_s + self.config.gateway_lease_s)
            case Slept(seconds):
                self._agent_leases.extend(seconds)
                self._absent.extend(seconds)
        self._expire(effects)
        self._publisher.settle(self.agents, now_s)
        self._place()
        if self._publisher.settled:
            effects += self._lateness.hopeless(self.groups, self.agents, self.timeline, now_s)
            effects += self.finishes.due(self.agents, self.groups, self.timeline, now_s=now_s)
        return effects + self._publisher.flush(self.agents, self.groups, self.epoch)

    @property
    def wakeup_s(self) -> float | None:
        """When `handle(Wakeup())` is due; None while nothing is awaited."""
        leases = self._agent_leases.next_s, self._absent.next_s
        due = (*leases, self._lateness.next_s(self.groups), self.finishes.next_s)
        times = [at_s for at_s in due if at_s != inf]
        if self._publisher.settles_at_s is not None:
            times.append(self._publisher.settles_at_s)
        planning_s = self.planner.wakeup_s
        if planning_s is not None and self.groups and self.agents:
            times.append(planning_s)
        return min(times, default=None)

    # ------------------------------------------------------------------ gateways

    def _gateway_joined(self, hello: GatewayHello, effects: list[Effect]) -> None:
        gateway = hello.gateway
        self._absent.release(gateway)
        # What it held before is unknown until it announces it again.
        self._forget_all_of(gateway)
        self.gateways[gateway] = hello.work_address
        effects.append(TellGateway(gateway, self._fleet))
        self._announce_gateways(effects)

    def _announce_gateways(self, effects: list[Effect]) -> None:
        addresses = Gateways(tuple(self.gateways.items()))
        effects.extend(TellAgent(agent, addresses) for agent in self.agents)

    def _fact(self, fact: GatewayFact, effects: list[Effect]) -> None:
        match fact:
            case Arrived(request, estimated):
                self._arrived(request, estimated, effects)
            case Pulled(id, agent):
                self._pulled(id, agent)
            case FirstToken(id, ttft_s):
                held = self.book.get(id)
                if held is not None:
                    learn_wait(held, self.estimators, ttft_s=ttft_s)
            case Ended(id, phase, _, output_tokens):
                self._ended(id, phase, output_tokens)
            case Returned(id, produced_tokens):
                self._returned(id, produced_tokens)

    def _arrived(self, request: RequestMeta, estimated: bool, effects: list[Effect]) -> None:
        if request.id in self.book:
            return
        if len(self.book) >= self.config.limits.waiting_requests_max:
            self.counts["shed"] += 1
            order = ShedOrder(request.id, ShedReason.SATURATED)
            effects.append(TellGateway(request.gateway, order))
            return
        self.counts["arrived"] += 1
        self.estimators.arrived(request)
        now_s = self._now_s
        line = self.bulks.arrived(request, epoch=self.epoch, now_s=now_s) if request.batch else None
        size = 0 if line else self._group_size(GroupKey.of(request))
        group, new = (line, False) if line else self._grouper.place(request, size_max=size)
        held = self.book.add(request, group)
        if new:
            self.groups[group.id] = group
        self._reach(group, request, effects)
        # Of thousands announced again it would take most of the time, for nobody; of a line nobody asks.
        if not estimated and not request.batch:
            effects += self._estimate(held)

    def _lines_changed(self, changed: list[RequestGroup]) -> None:
        """More or fewer lines wait that are no requests yet."""
        for group in changed:
            home = self.agents.get(group.home) if group.home is not None else None
            if home is not None:
                self.timeline.stale(home.id)
                self._leave_queue(group, home)
            self._close_if_empty(group)
            if group.id not in self.groups and not group.empty:
                self.groups[group.id] = group
                self._unplaced[group.id] = None
        if changed:
            self.planner.changed()

    def _reach(self, group: RequestGroup, request: RequestMeta, effects: list[Effect]) -> None:
        """Let the agent of a placed group know of a new member, if its window has room."""
        agent = self.agents.get(group.home) if group.home is not None else None
        if agent is None or group.id not in agent.queue:
            self._unplaced[group.id] = None
            self._place()
            return
        effects += self._publisher.reach(agent, group, request, self.epoch)

    def _estimate(self, held: Held) -> list[Effect]:
        now_s, known = self._now_s, self.estimators
        estimate, orders = tell_wait(
            held, self.timeline, known, self._lateness, self.agents, self.groups, now_s=now_s
        )
        if estimate is not None:
            self.planner.predicted(held.request, estimate, now_s=now_s)
            self.counts["shed"] += len(orders) - 1
        return [TellGateway(held.request.gateway, order) for order in orders]

    def _pulled(self, id: RequestId, agent: AgentId) -> None:
        held = self.book.get(id)
        if held is None:
            return
        held.group.pull(id, agent)
        self._leave_window(held, id)
        self.book.pulled(held, agent, self.agents)

    def _leave_window(self, held: Held, id: RequestId) -> None:
        """Take a request out of its home's window and top the window up when it runs low."""
        home = self.agents.get(held.group.home) if held.group.home is not None else None
        if home is None:
            return
        home.window.discard(id)
        self.timeline.pulled(home, held.group, self._now_s)
        self._leave_queue(held.group, home)
        next_8 = [group for group in home.queue[:8] if group not in home.held_back]
        soon = sum(self.groups[group].released for group in next_8)
        low = len(home.window) < min(soon, self.config.window_requests // 2)
        if low or (home.held_back and not held.group.goes_on):
            self._publisher.lacks(home.id)

    def _leave_queue(self, group: RequestGroup, home: Agent) -> None:
        """A group of which nothing waits any more stands in no queue."""
        if group.waiting == 0 and group.id in home.queue:
            home.queue.remove(group.id)
            self.timeline.stale(home.id)
            self.planner.changed()

    def _returned(self, id: RequestId, produced_tokens: int) -> None:
        held = self.book.get(id)
        if held is None:
            return
        self.counts["returned"] += 1
        self.book.released(held, self.agents)
        held.request = replace(held.request, produced_tokens=produced_tokens)
        held.seen = self.estimators.produced(held.request, produced_tokens, held.seen)
        left, size = held.group, self._group_size(GroupKey.of(held.request))
        held.group = group = self._grouper.take_back(held.request, left, size_max=size)
        self.groups[group.id] = group
        self._close_if_empty(left)
        home = self.agents.get(group.home) if group.home is not None else None
        if home is not None and group.id in home.queue:
            self._publisher.lacks(home.id)
        else:
            self._unplaced[group.id] = None

    def _ended(self, id: RequestId, phase: Phase, output_tokens: int) -> None:
        held = self.book.get(id)
        if held is None:
            return
        self.counts["ended"] += 1
        if phase is Phase.FINISHED:
            self.bulks.finished(held.request, output_tokens, held.seen, held.agent)
        self._forget(id, phase)

    def _forget_all_of(self, gateway: GatewayId) -> None:
        """What a gateway has announced is unknown from now on."""
        self._lines_changed(self.bulks.renew(gateway))
        for id in self.book.of_gateway(gateway):
            self._forget(id)

    def _forget(self, id: RequestId, phase: Phase | None = None) -> None:
        """A request is over, or unknown if no `phase` is given; its group too, if it was the last."""
        held = self.book.remove(id, self.agents)
        if held is None:
            return
        self.estimators.forgotten(held.request, held.wait)
        group = held.group
        home = self.agents.get(group.home) if group.home is not None else None
        if home is not None and home.window.revoke(id):
            self._publisher.lacks(home.id)
        if group.drop(id):
            self._leave_window(held, id)
        self._close_if_empty(group)
        if held.request.batch:
            self.bulks.ended(held.request, phase)

    def _close_if_empty(self, group: RequestGroup) -> None:
        if group.empty:
            self._grouper.forget(group)
            self.groups.pop(group.id, None)
            self._unplaced.pop(group.id, None)

    # ------------------------------------------------------------------ agents

    def _agent_joined(self, hello: AgentHello, effects: list[Effect]) -> None:
        self._agent_leases.renew(hello.agent, self._now_s + self.config.agent_lease_s)
        self.estimators.joined(hello.profiles)
        known = self.agents.get(hello.agent)
        if known is None:
            known = Agent(hello, now_s=self._now_s)
            known.held.update(dict.fromkeys(self.book.held_by(hello.agent)))
            self.agents[hello.agent] = known
        else:
            known.rejoin(hello, now_s=self._now_s)
        # Its own affair: a number that one agent makes up must not be everybody's from then on.
        known.epoch_ahead = max(0, hello.epoch + 1 - self.epoch)
        self.timeline.stale(hello.agent)
        self._publisher.lacks(hello.agent)
        self._unplaced.update(homeless(self.groups, self.agents))
        effects.append(TellAgent(hello.agent, Gateways(tuple(self.gateways.items()))))
        self._fleet_changed(effects)

    def _agent_reported(self, id: AgentId, state: InstanceState, effects: list[Effect]) -> None:
        agent = self.agents.get(id)
        if agent is None:
            effects.append(PartAgent(id, UNKNOWN))
            return
        self._agent_leases.renew(id, self._now_s + self.config.agent_lease_s)
        if agent.report(state, now_s=self._now_s):
            self._fleet_changed(effects)
            if state.draining:
                self._empty_queue(agent)
        self.timeline.stale(id)
        self.book.produced(state.running, self.estimators)
        self.bulks.reported(id)
        if state.awake_model is not None and state.awake_model in agent.profiles:
            self.estimators.reported(agent.gpu, agent.profiles[state.awake_model], state)

    def _shorten_lease(self, id: AgentId) -> None:
        agent = self.agents.get(id)
        if agent is not None:
            agent.connected = False
            self._agent_leases.shorten(id, self._now_s + _BROKEN_LINK_S)

    def _empty_queue(self, agent: Agent) -> None:
        """Take every group from an agent; they are placed elsewhere at once."""
        for id in agent.queue:
            group = self.groups.get(id)
            if group is not None:
                group.home = None
                self._unplaced[id] = None
        agent.queue = []
        self._publisher.lacks(agent.id)

    def _expire(self, effects: list[Effect]) -> None:
        gone = [self.agents[id] for id in self._agent_leases.expire(self._now_s)]
        for agent in gone:
            self.counts["lost_agents"] += 1
            self._empty_queue(agent)
            del self.agents[agent.id]
            if agent.connected:
                effects.append(PartAgent(agent.id, SILENT))
            self._publisher.forget(agent.id)
            self.bulks.reported(agent.id)
            self.timeline.stale(agent.id)
        if gone:
            self._fleet_changed(effects)
        for gateway in self._absent.expire(self._now_s):
            self.gateways.pop(gateway, None)
            self._forget_all_of(gateway)
            self.bulks.announced(gateway)
            self._announce_gateways(effects)

    # ------------------------------------------------------------------ planning

    def view(self) -> tuple[list[RequestGroup], list[Agent]]:
        """Groups that can be planned and agents that can take them, in stable order."""
        return plannable(self.groups, self.roster)

    def _fleet_changed(self, effects: list[Effect]) -> None:
        self.roster = Roster(self.agents.values())
        self.planner.changed()
        if (fleet := offered(self.agents.values())) != self._fleet:
            self._fleet = fleet
            effects.extend(TellGateway(gateway, fleet) for gateway in self.gateways)

    def _place(self) -> None:
        """Give every group without a queue a place."""
        if not self._unplaced:
            return
        if backlog_is_deep(self.groups, self.roster):
            self._line_up()
        unplaced = [self.groups[id] for id in self._unplaced if id in self.groups]
        new = [group for group in unplaced if self.roster.can_take(group)]
        if new:
            now_s, known = self._now_s, self.estimators
            seated = self.planner.seat(new, self.roster, known, now_s=now_s)
            self._touch(seated or self.planner.repair(self.view(), known, now_s=now_s))
        self._unplaced = {one.id: None for one in unplaced if not self.roster.can_take(one)}

    def _line_up(self) -> None:
        for group in [self.groups[id] for id in self._unplaced if id in self.groups]:
            home = line_up(group, self.groups, self.agents)
            if home is not None:
                del self._unplaced[group.id]
                self.planner.changed()
                if group.continues is not None and home.window.sent_of(group.continues):
                    self._publisher.lacks(home.id)

    def _improve(self, effects: list[Effect]) -> None:
        """Give instances to the models that ask for them, and have a better plan looked for if that is due."""
        if not self.groups or not self.agents:
            return
        known, now_s, residents = self.estimators, self._now_s, self.planner.residents
        for agent in residents.spread(self.roster, known, now_s=now_s):
            self.timeline.stale(agent.id)
            self._publisher.lacks(agent.id)
        if self.planner.due(now_s=now_s):
            self._split()
            order = self.planner.start(self.view(), known, now_s=now_s)
            if order is not None:
                effects.append(order)

    def _touch(self, queues: dict[AgentId, list[GroupId]] | None) -> None:
        """Put new queues in force."""
        if queues is None:
            return
        self.epoch += 1
        for id, queue in queues.items():
            agent = self.agents.get(id)
            if agent is None or agent.queue == queue:
                continue
            agent.queue = queue
            for group in queue:
                self.groups[group].home = id
            self._publisher.lacks(id)
            self.timeline.stale(id)

    def _group_size(self, key: GroupKey) -> int:
        if key.batch is not None:
            return self.bulks.size(key.model, self.roster)
        waiting = self.book.waiting
        return self._sizes.most(key, self.roster, waiting=waiting, now_s=self._now_s)

    def _split(self) -> None:
        """Halve groups that are large for what waits now, so that idle instances get a part."""
        for half, home in split_large(self.groups, self.agents, self._grouper, self._group_size):
            self.book.regroup(half)
            self.bulks.split(half)
            self._publisher.lacks(home.id)
            self.timeline.stale(home.id)
