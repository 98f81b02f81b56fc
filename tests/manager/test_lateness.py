"""Classes that shed what would be late: judged at arrival by the estimate, and later once it is certain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.config import SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.events import TellGateway, Wakeup
from qlm_core.messages import Arrived, EstimateGiven, Pulled, Returned, ShedOrder
from qlm_core.model import RequestId, RequestMeta
from qlm_core.outcome import ShedReason
from tests.manager.conftest import CLASSES, Bench

SHEDDING = tuple(replace(one, shed_late=one.name == "interactive") for one in CLASSES)


@pytest.fixture
def bench() -> Bench:
    made = Bench(Manager(SolverConfig(), SHEDDING, now_s=0.0))
    made.gateway()
    return made


def sheds(bench: Bench) -> list[ShedOrder]:
    orders = [one.order for one in bench.effects if isinstance(one, TellGateway)]
    return [order for order in orders if isinstance(order, ShedOrder)]


def flood(bench: Bench, count: int, slo_class: str = "interactive") -> list[RequestMeta]:
    """So many requests within five seconds."""
    asked = []
    for _ in range(count):
        bench.now_s += 5.0 / count
        asked.append(bench.request("m", slo_class))
        bench.fact(Arrived(asked[-1]))
    return asked


def test_a_request_that_would_be_late_is_shed_at_once_and_told_when_to_come_back(
    bench: Bench,
) -> None:
    bench.agent("a", "m", slots=2)
    asked = flood(bench, 500)
    shed = sheds(bench)
    assert {order.reason for order in shed} == {ShedReason.LATE}
    # The first are in time, and most are not.
    first = next(n for n, one in enumerate(asked) if one.id == shed[0].id)
    assert first > 10
    assert len(shed) > 100
    told = {
        one.order.id: one.order.estimate
        for one in bench.effects
        if isinstance(one, TellGateway) and isinstance(one.order, EstimateGiven)
    }
    for order in shed:
        assert order.retry_after_s == pytest.approx(told[order.id].p50_s - 20.0)
        assert order.retry_after_s > 0.0
    assert bench.manager.counts["shed"] == len(shed)


def test_other_classes_wait_however_late_they_are(bench: Bench) -> None:
    bench.agent("a", "m", slots=2)
    flood(bench, 500, "batch-1")
    bench.post(Wakeup(), after_s=100.0)
    assert sheds(bench) == []


def test_what_is_announced_anew_is_not_judged_as_if_it_came_now(bench: Bench) -> None:
    bench.agent("a", "m", slots=2)
    flood(bench, 400)
    before = len(sheds(bench))
    asked = replace(bench.request("m", "interactive"), arrival_s=bench.now_s - 5.0)
    bench.fact(Arrived(asked, estimated=True))
    assert len(sheds(bench)) == before


def test_what_waits_is_shed_once_its_target_has_passed(bench: Bench) -> None:
    # Nobody serves it, so nothing is known but that time passes.
    (asked,) = flood(bench, 1)
    bench.post(Wakeup(), after_s=19.0)
    assert sheds(bench) == []
    assert bench.manager.wakeup_s == bench.now_s + 1.0
    bench.post(Wakeup(), after_s=1.5)
    assert [order.id for order in sheds(bench)] == [asked.id]


def test_output_that_was_begun_is_never_shed(bench: Bench) -> None:
    bench.agent("a", "m", slots=2)
    (asked,) = flood(bench, 1)
    bench.fact(Pulled(RequestId(asked.id), next(iter(bench.manager.agents))))
    bench.fact(Returned(asked.id, 10))
    bench.post(Wakeup(), after_s=30.0)
    assert sheds(bench) == []
