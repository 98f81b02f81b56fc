"""What happened to a request, as its facts tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.page.stories import Stories
from qlm_core.messages import Arrived, Ended, FirstToken, Pulled, Returned
from qlm_core.model import AgentId, GatewayId, ModelName, Phase, RequestId, RequestMeta, Slo

ID = RequestId("req-1")


class Bench:
    def __init__(self, most: int = 10) -> None:
        self.now_s = 100.0
        self.evictions = 0
        row: Any = lambda id: SimpleNamespace(evictions=self.evictions)  # noqa: E731
        self.stories = Stories(most, now_s=lambda: self.now_s, row=row)

    def steps(self, id: RequestId = ID) -> list[tuple[float, str, str, int | None]]:
        story = self.stories.get(id)
        assert story is not None
        return [(one.at_s, one.what, one.agent, one.output_tokens) for one in story.steps]


def arrived(id: RequestId = ID) -> Arrived:
    meta = RequestMeta(
        id=id,
        gateway=GatewayId("g"),
        model=ModelName("tiny"),
        slo_class="batch",
        slo=Slo(ttft_s=20.0),
        arrival_s=100.0,
        prompt_tokens=5,
        max_output_tokens=9,
    )
    return Arrived(meta)


def test_each_step_is_told_with_its_time_and_its_agent() -> None:
    bench = Bench()
    bench.stories.told(arrived())
    bench.now_s = 101.0
    bench.stories.told(Pulled(ID, AgentId("a")))
    bench.stories.told(FirstToken(ID, 1.5))
    bench.now_s, bench.evictions = 103.0, 1
    bench.stories.told(Returned(ID, 7))
    bench.now_s = 104.0
    bench.stories.told(Pulled(ID, AgentId("b")))
    bench.now_s = 105.0
    # From the beginning: what there was could not be continued.
    bench.stories.told(Returned(ID, 0))
    bench.now_s = 106.0
    bench.stories.told(Pulled(ID, AgentId("a")))
    bench.now_s = 108.0
    bench.stories.told(Ended(ID, Phase.FINISHED, 5, 20))
    assert bench.steps() == [
        (0.0, "arrived", "", None),
        (1.0, "pulled", "a", None),
        (1.5, "first token", "a", None),
        (3.0, "evicted", "a", 7),
        (4.0, "resumed", "b", None),
        (5.0, "lost", "b", 0),
        (6.0, "pulled", "a", None),
        (8.0, "finished", "a", 20),
    ]


def test_what_a_new_solver_is_told_again_is_no_step() -> None:
    bench = Bench()
    for _ in range(2):
        bench.stories.told(arrived())
        bench.stories.told(Pulled(ID, AgentId("a")))
        bench.stories.told(FirstToken(ID, 1.0))
    assert [what for _, what, _, _ in bench.steps()] == ["arrived", "pulled", "first token"]


def test_so_many_are_remembered_and_so_many_steps() -> None:
    bench = Bench(most=2)
    for number in range(4):
        bench.stories.told(arrived(RequestId(f"req-{number}")))
    assert bench.stories.get(RequestId("req-1")) is None
    last = RequestId("req-3")
    for _ in range(100):
        bench.stories.told(Pulled(last, AgentId("a")))
        bench.stories.told(Returned(last, 0))
    story = bench.stories.get(last)
    assert story is not None
    assert len(story.steps) == 64
    assert story.left_out == 201 - 64
    assert story.steps[0].what == "arrived"
    bench.stories.told(Ended(RequestId("unknown"), Phase.SHED, 0, 0))
