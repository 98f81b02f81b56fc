"""What the estimate of a request that came back counts of its prompt and output: what its agent computes again."""

from __future__ import annotations

from dataclasses import replace

from qlm_core.manager.events import AgentReported
from qlm_core.model import InstanceState, ModelName
from tests.manager.conftest import Bench


def mean_s(bench: Bench, *, produced: int) -> float:
    request = replace(bench.request(prompt_tokens=1000), produced_tokens=produced)
    manager = bench.manager
    wait = manager.timeline.hypothetical(request, manager.agents, manager.groups, bench.now_s)
    assert wait is not None
    return wait.mean_s


def test_as_much_as_the_agent_reports(bench: Bench) -> None:
    id = bench.agent("a", "m")
    fresh_s = mean_s(bench, produced=0)
    assert mean_s(bench, produced=1000) > fresh_s
    state = InstanceState(ready=True, awake_model=ModelName("m"), resume_share=0.1)
    bench.post(AgentReported(id, state))
    assert mean_s(bench, produced=1000) < fresh_s
    assert mean_s(bench, produced=0) == fresh_s
