"""What a full engine tells of itself: when a slot comes free, and who would give one up."""

from __future__ import annotations

from math import inf

import pytest

from qlm_core.manager.events import AgentReported
from qlm_core.manager.slots import FullSlots, full_slots
from qlm_core.messages import Pulled
from qlm_core.model import AgentId, InstanceState, ModelName, RunningRequest
from tests.manager.conftest import Bench

A = AgentId("a")


def running(bench: Bench, *classes: str, produced: int = 5, slots: int = 0) -> None:
    """An engine with a request of each of these classes, and as many slots if no other number is given."""
    bench.agent("a", "m", slots=slots or len(classes))
    ids = [id for slo_class in classes for id in bench.arrive("m", slo_class)]
    known = []
    for id in ids:
        bench.fact(Pulled(id, A))
        held = bench.manager.book.get(id)
        assert held is not None
        known.append(RunningRequest(id=id, group=held.group.id, produced_tokens=produced))
    state = InstanceState(ready=True, awake_model=ModelName("m"), running=tuple(known))
    bench.post(AgentReported(A, state))


def full(bench: Bench) -> FullSlots | None:
    manager = bench.manager
    return full_slots(manager.agents[A], manager.groups, manager.estimators, now_s=bench.now_s)


def per_request_s(bench: Bench) -> float:
    """Seconds from one end to the next at the engine's average rate."""
    manager = bench.manager
    profile = manager.agents[A].profiles[ModelName("m")]
    return manager.estimators.rate(profile, None, now_s=bench.now_s).seconds_per_request


def test_one_with_a_slot_to_spare_has_nothing_to_tell(bench: Bench) -> None:
    running(bench, "batch-2", slots=2)
    assert full(bench) is None


def test_of_a_few_outputs_each_counts_with_what_is_left_of_it(bench: Bench) -> None:
    """What has gone on for long tends to go on; the average rate knows nothing of that."""
    running(bench, "batch-2", "batch-2", produced=5)
    early = full(bench)
    assert early is not None
    state = bench.manager.agents[A].state
    late = tuple(
        RunningRequest(id=one.id, group=one.group, produced_tokens=300) for one in state.running
    )
    bench.post(
        AgentReported(A, InstanceState(ready=True, awake_model=ModelName("m"), running=late))
    )
    later = full(bench)
    assert later is not None
    assert later.next_s > early.next_s > per_request_s(bench)


def test_of_many_the_average_rate_tells(bench: Bench) -> None:
    running(bench, *["batch-2"] * 64)
    many = full(bench)
    assert many is not None
    assert many.next_s == pytest.approx(per_request_s(bench))


def test_who_owes_no_more_than_a_first_token_that_is_out_gives_way_to_anybody(bench: Bench) -> None:
    running(bench, "interactive", "batch-1")
    begun = full(bench)
    assert begun is not None
    assert begun.laxities_s == (inf, inf)
    assert begun.laxer(3600.0) == 2


def test_who_has_not_begun_gives_way_to_stricter_ones_alone(bench: Bench) -> None:
    running(bench, "interactive", "batch-1", produced=0)
    waiting = full(bench)
    assert waiting is not None
    assert waiting.laxities_s == (20.0, 60.0)
    assert [waiting.laxer(ttft_s) for ttft_s in (10.0, 20.0, 60.0)] == [2, 1, 0]
