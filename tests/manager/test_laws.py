"""Laws that the Manager keeps under any order of events (Hypothesis drives it)."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qlm_core.config import ReplanConfig, SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    AgentLeft,
    AgentReported,
    PlanFinished,
    StartSolve,
    TellAgent,
    Wakeup,
)
from qlm_core.messages import AnnounceDone, Arrived, Ended, Pulled, QueueUpdate, Returned
from qlm_core.model import AgentId, InstanceState, ModelName, Phase, RequestId
from qlm_core.planning import PlanResult, Termination, greedy
from tests.manager.conftest import CLASSES, Bench

_AGENTS = {"a": ("m", "n"), "b": ("m",), "c": ("n", "m")}


class ManagerLaws(RuleBasedStateMachine):
    """Gateways and agents as they may behave, and what must hold after each event."""

    waiting: Bundle[RequestId] = Bundle("waiting")

    def __init__(self) -> None:
        super().__init__()
        config = SolverConfig(
            replan=ReplanConfig(min_interval_s=0.05), window_requests=6, agent_lease_s=3.0
        )
        self.bench = Bench(Manager(config, CLASSES, now_s=0.0))
        self.bench.gateway()
        self.windows: dict[AgentId, dict[RequestId, int]] = {}
        self.live: dict[AgentId, None] = {}
        self.held: dict[RequestId, AgentId] = {}
        self.known: dict[RequestId, None] = {}
        self.solves: list[StartSolve] = []
        self.epochs: dict[AgentId, int] = {}

    def _take_in(self) -> None:
        """Be the agents and the planner: read what the Manager ordered."""
        for effect in self.bench.effects:
            if isinstance(effect, StartSolve):
                self.solves.append(effect)
            elif isinstance(effect, TellAgent) and isinstance(effect.order, QueueUpdate):
                update = effect.order
                assert update.epoch >= self.epochs.get(effect.agent, 0)
                self.epochs[effect.agent] = update.epoch
                window = self.windows.setdefault(effect.agent, {})
                for id in update.remove:
                    window.pop(id, None)
                for ref in update.add:
                    window[ref.id] = ref.group
        self.bench.effects.clear()

    @rule(
        target=waiting,
        model=st.sampled_from("mn"),
        slo_class=st.sampled_from(["interactive", "batch-1", "batch-2"]),
    )
    def arrive(self, model: str, slo_class: str) -> RequestId:
        (id,) = self.bench.arrive(model, slo_class)
        self.known[id] = None
        self._take_in()
        return id

    @rule(name=st.sampled_from("abc"))
    def join(self, name: str) -> None:
        id = AgentId(name)
        self.windows[id] = {}
        self.live[id] = None
        self.bench.agent(name, *_AGENTS[name])
        self._take_in()

    @rule()
    def restart_gateway(self) -> None:
        """It announces all its requests again, and that some of them are held."""
        metas = {id: self.bench.manager.book.get(id).request for id in self.known}
        self.bench.gateway()
        for id, meta in metas.items():
            self.bench.fact(Arrived(meta))
            if id in self.held:
                self.bench.fact(Pulled(id, self.held[id]))
        self.bench.fact(AnnounceDone())
        self._take_in()

    @rule(name=st.sampled_from("abc"))
    def leave(self, name: str) -> None:
        self.live.pop(AgentId(name), None)
        self.bench.post(AgentLeft(AgentId(name)))
        self._take_in()

    @rule(name=st.sampled_from("abc"), draining=st.booleans())
    def report(self, name: str, draining: bool) -> None:
        state = InstanceState(ready=True, awake_model=ModelName("m"), draining=draining)
        self.bench.post(AgentReported(AgentId(name), state))
        self._take_in()

    @rule(seconds=st.sampled_from([0.0, 0.06, 0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.bench.post(Wakeup(), after_s=seconds)
        self._take_in()

    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        choices = [
            (agent, id)
            for agent, window in self.windows.items()
            if agent in self.live
            for id in window
            if id in self.known and id not in self.held
        ]
        if not choices:
            return
        agent, id = data.draw(st.sampled_from(choices))
        self.windows[agent].pop(id)
        self.held[id] = agent
        self.bench.fact(Pulled(id, agent))
        self._take_in()

    @rule(data=st.data(), produced=st.integers(0, 50))
    def give_back(self, data: st.DataObject, produced: int) -> None:
        if not self.held:
            return
        id = data.draw(st.sampled_from(list(self.held)))
        del self.held[id]
        self.bench.fact(Returned(id, produced))
        self._take_in()

    @rule(id=consumes(waiting), phase=st.sampled_from([Phase.FINISHED, Phase.CANCELLED]))
    def end(self, id: RequestId, phase: Phase) -> None:
        self.held.pop(id, None)
        self.known.pop(id, None)
        for window in self.windows.values():
            window.pop(id, None)
        self.bench.fact(Ended(id, phase, 10, 20))
        self._take_in()

    @rule()
    def solve(self) -> None:
        while self.solves:
            order = self.solves.pop(0)
            result = PlanResult(
                plan=greedy(order.problem),
                objective=0.0,
                lower_bound=None,
                termination=Termination.LIMIT,
                backend="greedy",
            )
            self.bench.post(PlanFinished(order.solve, result))
            self._take_in()

    @invariant()
    def every_request_is_known_exactly_once(self) -> None:
        manager = self.bench.manager
        assert set(self.known) == {id for id in self.known if id in manager.book}
        assert len(manager.book) == len(self.known)
        waiting = [m.id for group in manager.groups.values() for m in group.members()]
        held = [id for group in manager.groups.values() for id in group.pulled]
        assert sorted(waiting + held) == sorted(self.known)
        assert sorted(held) == sorted(self.held)
        assert manager.book.waiting == len(waiting)

    @invariant()
    def no_group_stands_with_an_agent_that_drains(self) -> None:
        manager = self.bench.manager
        assert all(agent.usable or not agent.queue for agent in manager.agents.values())

    @invariant()
    def every_servable_group_is_in_exactly_one_queue(self) -> None:
        manager = self.bench.manager
        queued = [id for agent in manager.agents.values() for id in agent.queue]
        assert len(queued) == len(set(queued))
        usable = [agent for agent in manager.agents.values() if agent.usable]
        for group in manager.groups.values():
            servable = any(group.key.model in agent.profiles for agent in usable)
            if group.waiting and servable:
                assert group.id in queued

    @invariant()
    def queues_hold_only_groups_that_wait(self) -> None:
        manager = self.bench.manager
        for agent in manager.agents.values():
            assert all(manager.groups[id].waiting for id in agent.queue)

    @invariant()
    def queues_hold_only_what_their_agent_serves(self) -> None:
        manager = self.bench.manager
        for agent in manager.agents.values():
            for id in agent.queue:
                assert manager.groups[id].key.model in agent.profiles

    @invariant()
    def windows_are_what_agents_were_told(self) -> None:
        manager = self.bench.manager
        for id in self.live:
            agent = manager.agents.get(id)
            if agent is not None and agent.connected:
                told = {ref for ref in self.windows[id] if ref in self.known}
                assert set(agent.window) <= told | set(self.held)


ManagerLaws.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestManagerLaws = ManagerLaws.TestCase
