"""On how many instances a model is awake: what arrivals ask for, and what that takes from others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.manager.events import AgentReported, Wakeup
from qlm_core.manager.residents import AGAIN_S, SETTLES_S, WAKES_S, waiting_share
from qlm_core.messages import Ended, QueueUpdate
from qlm_core.model import AgentId, InstanceState, ModelName, ModelTier, Phase, Slo, SloClass
from tests.manager import conftest
from tests.manager.conftest import Bench

TIGHT = SloClass(name="tight", slo=Slo(ttft_s=0.5), weight=4.0)
PROMPT = 8000
"""Tokens: 0.4 s on the instances here."""


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> Bench:
    """Three instances that share two models; `m` is awake on two of them."""
    monkeypatch.setattr(conftest, "CLASSES", (*conftest.CLASSES, TIGHT))
    bench.agent("a", "m", "n")
    bench.agent("b", "m", "n")
    bench.agent("c", "n", "m")
    return bench


def served(bench: Bench, model: str, *, every_s: float, for_s: float) -> None:
    """Requests of a class that cannot wait come one after another, and each is over when the next one comes."""
    for _ in range(round(for_s / every_s)):
        request = bench.request(model, "tight", prompt_tokens=PROMPT)
        bench.fact(conftest.Arrived(request), after_s=every_s)
        report(bench)
        bench.post(Wakeup())
        bench.fact(Ended(request.id, Phase.FINISHED, "stop", 10))


def report(bench: Bench) -> None:
    """All instances are as they were."""
    for agent in list(bench.manager.agents.values()):
        bench.post(AgentReported(agent.id, agent.state))


def wakes(bench: Bench) -> dict[str, str]:
    return {agent.id: agent.wakes for agent in bench.manager.agents.values() if agent.wakes}


def told(bench: Bench, agent: str) -> list[ModelName]:
    """What an agent was told to wake."""
    updates = [one for one in bench.to_agent(AgentId(agent)) if isinstance(one, QueueUpdate)]
    return [one.wake for one in updates if one.wake is not None]


def test_a_model_that_one_instance_cannot_keep_up_with_gets_a_second_one(shared: Bench) -> None:
    served(shared, "n", every_s=0.5, for_s=9.0)
    assert not wakes(shared)
    served(shared, "n", every_s=0.5, for_s=6.0)
    assert list(wakes(shared).values()) == ["n"]
    [agent] = wakes(shared)
    assert agent in {"a": None, "b": None}
    assert told(shared, agent) == ["n"]
    # It is planned on as if it had the model awake.
    assert shared.manager.agents[AgentId(agent)].serves(ModelName("n"))


def test_a_model_that_is_asked_for_keeps_its_last_instance(shared: Bench) -> None:
    for _ in range(100):
        served(shared, "n", every_s=0.25, for_s=0.5)
        served(shared, "m", every_s=1.0, for_s=1.0)
        for id in list(wakes(shared)):
            turned(shared, AgentId(id))
    awake = [agent.model for agent in shared.manager.agents.values()]
    assert sorted(awake) == ["m", "n", "n"]


def turned(bench: Bench, id: AgentId) -> None:
    """The instance has done what it was told."""
    tiers = tuple((ModelName(name), ModelTier.ASLEEP) for name in ("m", "n"))
    model = bench.manager.agents[id].wakes
    state = InstanceState(ready=True, awake_model=model, tiers=tiers)
    bench.post(AgentReported(id, state))


def test_what_an_instance_was_told_ends_when_it_has_done_it(shared: Bench) -> None:
    served(shared, "n", every_s=0.5, for_s=15.0)
    [agent] = wakes(shared)
    turned(shared, AgentId(agent))
    assert not wakes(shared)
    served(shared, "n", every_s=0.5, for_s=SETTLES_S)
    assert told(shared, agent) == ["n"]


def test_an_instance_that_never_comes_to_it_is_let_off(shared: Bench) -> None:
    served(shared, "n", every_s=0.5, for_s=15.0)
    assert wakes(shared)
    served(shared, "n", every_s=0.5, for_s=WAKES_S)
    assert not wakes(shared)
    # As many come as before, but the engine may be unable to: nobody is asked again for a while.
    served(shared, "n", every_s=0.5, for_s=AGAIN_S / 2)
    assert not wakes(shared)
    served(shared, "n", every_s=0.5, for_s=AGAIN_S / 2)
    assert wakes(shared)


def test_leaving_a_model_costs_what_would_be_late_without_the_instance(shared: Bench) -> None:
    served(shared, "m", every_s=0.5, for_s=15.0)
    leaving_s = shared.manager.planner.residents.leaving_s
    assert leaving_s.keys() == {"m"}
    assert leaving_s["m"] > 30.0
    shared.arrive("n", "batch-1")
    snapshot = shared.manager.planner.snapshot(
        shared.manager.view(), shared.manager.estimators, now_s=shared.now_s
    )
    from_m, from_n = 0, 1
    swap_s = snapshot.problem.swap_s[0]
    assert swap_s[from_m, 1] - swap_s[from_n, 0] == pytest.approx(leaving_s["m"], abs=5.0)


@given(servers=st.integers(1, 200), share=st.floats(0.0, 0.999))
def test_more_arrivals_wait_the_fuller_the_servers_are(servers: int, share: float) -> None:
    waits = waiting_share(servers, share * servers)
    assert 0.0 <= waits <= 1.0
    assert waits <= waiting_share(servers, min(servers, (share + 0.001) * servers)) + 1e-12
    assert waiting_share(servers + 1, share * servers) <= waits + 1e-12


def test_one_server_is_taken_as_often_as_it_is_busy() -> None:
    assert waiting_share(1, 0.25) == pytest.approx(0.25)
    # Erlang's table: two servers at a load of one.
    assert waiting_share(2, 1.0) == pytest.approx(1 / 3)
    assert waiting_share(3, 5.0) == 1.0
