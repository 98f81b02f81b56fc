"""How the Manager plans a base and its LoRA adapters: as models between which a swap costs next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from qlm_core.config import SolverConfig
from qlm_core.manager.events import AgentJoined
from qlm_core.manager.fleet import Roster
from qlm_core.manager.placing import free_seat
from qlm_core.manager.snapshot import room, take_snapshot
from qlm_core.manager.views import explain
from qlm_core.messages import AgentHello, Arrived
from qlm_core.model import AgentId, InstanceState, ModelName, ModelTier
from tests.manager.conftest import Bench, profile

AWAKE, ASLEEP = ModelTier.AWAKE, ModelTier.ASLEEP


def join(bench: Bench, name: str, *, awake: str = "m") -> AgentId:
    """An agent with two models, of which `m` has two adapters."""
    base, id = profile("m"), AgentId(name)
    profiles = (base, *(base.adapter(one, load_s=0.02) for one in ("a", "b")), profile("n"))
    tiers = tuple(
        (ModelName(one.model), AWAKE if one.base == awake else ASLEEP) for one in profiles
    )
    state = InstanceState(ready=True, awake_model=ModelName(awake), tiers=tiers)
    bench.post(AgentJoined(AgentHello(id, "test", profiles, 0, state)))
    return id


def test_within_a_family_a_swap_costs_the_loading_of_the_adapter(bench: Bench) -> None:
    join(bench, "x")
    bench.arrive("a", count=3)
    bench.arrive("n", "batch-1", count=2)
    groups, agents = bench.manager.view()
    snapshot = take_snapshot(
        groups, agents, weights={}, estimators=bench.manager.estimators,
        objective=SolverConfig().objective, leaving_s={}, now_s=bench.now_s,
    )  # fmt: skip
    # In the order of their names.
    a, b, m, n = range(4)
    [swap_s] = snapshot.problem.swap_s
    assert snapshot.problem.loaded_model.tolist() == [m]
    family = swap_s[np.ix_([a, b, m], [a, b, m])]
    assert family.tolist() == [[0.0, 0.02, 0.0], [0.02, 0.0, 0.0], [0.02, 0.02, 0.0]]
    # Into the family and out of it, it is a swap like any other.
    assert min(swap_s[n, a], swap_s[n, m], swap_s[a, n], swap_s[m, n]) > 3.0
    assert swap_s[n, a] == pytest.approx(swap_s[n, m] + 0.02)


def test_an_idle_agent_with_the_base_awake_seats_a_group_of_an_adapter(bench: Bench) -> None:
    join(bench, "other", awake="n")
    home = join(bench, "home")
    [id] = bench.arrive("a")
    group = bench.manager.book.get(id).group
    assert group.home == home
    agents = bench.manager.agents.values()
    for agent in agents:
        agent.queue = []
    group.home = None
    seat = free_seat(group, Roster(agents), bench.manager.estimators, now_s=bench.now_s)
    assert seat is bench.manager.agents[home]


def test_an_adapter_of_the_awake_base_waits_for_no_swap(bench: Bench) -> None:
    home = join(bench, "x")
    [first] = bench.arrive("m", "batch-1")
    [second], [other] = bench.arrive("a", "batch-1"), bench.arrive("n", "batch-2")
    agent = bench.manager.agents[home]
    spans = bench.manager.timeline.spans(agent, bench.manager.groups, bench.now_s)
    starts = {id: span.start_in_s for id, span in spans.items()}
    assert [span.swap_s > 0.0 for span in spans.values()] == [False, False, True]
    order = [bench.manager.book.get(id).group.id for id in (first, second, other)]
    assert sorted(agent.queue, key=order.index) == agent.queue
    last = starts[order[0]]
    # The whole queue before it and nothing else; before another base, a swap and the batch that drains.
    assert starts[order[1]] - last < starts[order[2]] - starts[order[1]]
    assert explain(bench.manager, second, now_s=bench.now_s)["model_swap_to"] is None
    assert explain(bench.manager, other, now_s=bench.now_s)["model_swap_to"] == "n"


def test_requests_of_one_adapter_are_overtaken_by_those_of_another(bench: Bench) -> None:
    """They share the engine, so what arrives for one of them delays the others."""
    join(bench, "x")
    for _ in range(30):
        bench.arrive("b", "interactive")
        bench.now_s += 0.1
    [id] = bench.arrive("a", "batch-2")
    held = bench.manager.book.get(id)
    agent = next(iter(bench.manager.agents.values()))
    streams = bench.manager.timeline._arriving(
        agent, held.request.model, bench.manager.agents, bench.now_s
    )
    assert len(streams.of) == 2


def test_the_speed_of_a_base_is_that_of_its_adapters(bench: Bench) -> None:
    base = profile("m")
    estimators = bench.manager.estimators
    before = estimators.rate(base.adapter("a", load_s=0.0), None, now_s=0.0).seconds_per_token
    for _ in range(40):
        estimators._speed("test", "m").observe(realised_per_s=50.0, predicted_per_s=100.0)
    after = estimators.rate(base.adapter("a", load_s=0.0), None, now_s=10.0).seconds_per_token
    assert after > 1.5 * before


def test_what_adapters_are_asked_for_says_how_many_requests_fit_the_base(bench: Bench) -> None:
    """A base that nobody asks for by its own name runs their requests, and has room for as many of them as there is."""
    id = join(bench, "x")
    base = bench.manager.agents[id].profiles[ModelName("m")]
    before, _ = room(base, bench.manager.estimators, now_s=0.0)
    for _ in range(20):
        bench.fact(Arrived(bench.request("a", prompt_tokens=20_000)))
    after, _ = room(base, bench.manager.estimators, now_s=10.0)
    assert after < 0.2 * before
