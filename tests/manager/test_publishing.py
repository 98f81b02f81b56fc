"""Who is sent what, and when: nothing before it is settled, nothing twice, nothing to who is away."""

from __future__ import annotations

from qlm_core.manager.events import AgentLeft, TellAgent, Wakeup
from qlm_core.manager.publishing import SETTLE_S, Publisher
from qlm_core.messages import QueueUpdate
from qlm_core.model import AgentId
from tests.manager.conftest import Bench


def publisher(bench: Bench) -> Publisher:
    """A new one beside the Manager of a bench, whose agents and groups it is given."""
    return Publisher(window_requests=8, expected=lambda request: 10, now_s=0.0)


def sent(made: Publisher, bench: Bench) -> list[AgentId]:
    effects = made.flush(bench.manager.agents, bench.manager.groups, 1)
    return [one.agent for one in effects if isinstance(one, TellAgent)]


def test_nothing_is_sent_before_a_gateway_has_announced_or_time_is_up(bench: Bench) -> None:
    a = bench.agent("a", "m")
    bench.manager.agents[a].sent_order = None
    made = publisher(bench)
    made.lacks(a)
    made.settle(bench.manager.agents, SETTLE_S / 2)
    assert (made.settled, sent(made, bench)) == (False, [])
    made.announced(SETTLE_S / 2)
    made.settle(bench.manager.agents, SETTLE_S / 2)
    assert (made.settled, sent(made, bench)) == (True, [a])


def test_without_an_announcement_all_are_sent_what_they_lack_after_a_while(bench: Bench) -> None:
    agents = [bench.agent(name, "m") for name in ("a", "b")]
    for agent in bench.manager.agents.values():
        agent.sent_order = None
    made = publisher(bench)
    made.settle(bench.manager.agents, SETTLE_S)
    assert sent(made, bench) == agents
    assert sent(made, bench) == [], "nothing twice"


def test_who_is_gone_is_sent_nothing(bench: Bench) -> None:
    a, b = bench.agent("a", "m"), bench.agent("b", "m")
    for agent in bench.manager.agents.values():
        agent.sent_order = None
    bench.manager.agents[b].connected = False
    made = publisher(bench)
    made.settle(bench.manager.agents, SETTLE_S)
    made.forget(a)
    assert sent(made, bench) == []


def test_an_agent_that_is_away_is_told_when_it_is_back(bench: Bench) -> None:
    a = bench.agent("a", "m")
    bench.post(AgentLeft(a))
    bench.arrive("m", count=2)
    told = [order for order in bench.to_agent(a) if isinstance(order, QueueUpdate) and order.add]
    assert told == []
    bench.agent("a", "m")
    bench.post(Wakeup())
    assert len(bench.window(a)) == 2
