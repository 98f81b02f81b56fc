"""When something would be done that is not submitted: what is said, that it agrees with what comes, and that nothing changes."""

from __future__ import annotations

import pytest

from qlm_core.manager.asking import forecast
from qlm_core.manager.views import view
from qlm_core.messages import BatchForecast, BatchQuestion, BulkShape
from qlm_core.model import ModelName, Slo
from tests.manager.conftest import Bench
from tests.manager.lines import bulk, look, said


def shape(model: str = "m", lines: int = 1, *, limit: int = 1000) -> BulkShape:
    return BulkShape(ModelName(model), lines, 100.0, limit)


def batch(*parts: BulkShape, window_s: float = 3600.0) -> BatchQuestion:
    return BatchQuestion(parts, "batch-2", Slo(ttft_s=window_s, e2e_s=window_s))


def request(slo: Slo, *, limit: int = 1000) -> BatchQuestion:
    return BatchQuestion((shape(limit=limit),), "interactive", slo)


def ask(bench: Bench, question: BatchQuestion) -> BatchForecast:
    answer = forecast(bench.manager, question, now_s=bench.now_s)
    assert isinstance(answer, BatchForecast), answer
    return answer


def finish(answer: BatchForecast) -> tuple[float, float]:
    assert answer.finish_p50_s is not None
    assert answer.finish_p90_s is not None
    return answer.finish_p50_s, answer.finish_p90_s


@pytest.mark.parametrize("beside", [0, 4_000])
def test_what_is_said_of_a_batch_is_what_is_said_once_it_comes(bench: Bench, beside: int) -> None:
    bench.agent("a", "m")
    bench.agent("b", "m")
    if beside:
        bench.fact(bulk(bench, beside, batch="other", tenant="other"))
        look(bench)
    answer = ask(bench, batch(shape(lines=2_000)))
    bench.fact(bulk(bench, 2_000))
    look(bench)
    first = said(bench)[0]
    assert first.finish_p50_s is not None
    assert first.finish_p90_s is not None
    p50_s, p90_s = finish(answer)
    assert p50_s == pytest.approx(first.finish_p50_s, rel=0.15)
    assert p90_s == pytest.approx(first.finish_p90_s, rel=0.15)
    assert answer.feasible is first.feasible
    assert "2000 lines left" in answer.explanation


def test_a_batch_of_several_models_ends_with_the_last_of_them(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.agent("b", "n", speed=0.2)
    both = ask(bench, batch(shape(lines=500), shape("n", 500)))
    slow, fast = ask(bench, batch(shape("n", 500))), ask(bench, batch(shape(lines=500)))
    assert finish(both)[0] == pytest.approx(finish(slow)[0], rel=0.01)
    assert finish(both)[0] > 1.5 * finish(fast)[0]
    assert both.wait == fast.wait


@pytest.mark.parametrize(("window_s", "feasible"), [(20_000.0, True), (60.0, False)])
def test_a_batch_is_feasible_within_its_window(
    bench: Bench, window_s: float, feasible: bool
) -> None:
    bench.agent("a", "m")
    answer = ask(bench, batch(shape(lines=5_000), window_s=window_s))
    assert answer.feasible is feasible
    assert ("What would help" in answer.explanation) is not feasible


def test_a_request_ends_an_output_after_its_wait(bench: Bench) -> None:
    bench.agent("a", "m")
    long = ask(bench, request(Slo(ttft_s=20.0)))
    short = ask(bench, request(Slo(ttft_s=20.0), limit=2))
    for answer in (long, short):
        p50_s, p90_s = finish(answer)
        assert answer.wait.p50_s < p50_s <= p90_s
    assert finish(short)[0] < finish(long)[0]
    assert long.feasible


def test_a_request_is_in_time_if_its_first_token_and_its_end_are(bench: Bench) -> None:
    bench.agent("a", "m")
    p50_s, p90_s = finish(ask(bench, request(Slo(ttft_s=20.0))))
    assert ask(bench, request(Slo(ttft_s=20.0, e2e_s=2 * p90_s))).feasible
    assert not ask(bench, request(Slo(ttft_s=20.0, e2e_s=0.5 * p50_s))).feasible
    assert not ask(bench, request(Slo(ttft_s=0.0001))).feasible


@pytest.mark.parametrize("lines", [1, 100])
def test_a_model_that_nobody_serves_is_named(bench: Bench, lines: int) -> None:
    bench.agent("a", "m")
    question = batch(shape(lines=lines), shape("nobodys", lines))
    assert forecast(bench.manager, question, now_s=bench.now_s) == "nobodys"


@pytest.mark.parametrize("limit", [0, 1])
def test_what_has_no_output_ends_with_its_prompts(bench: Bench, limit: int) -> None:
    bench.agent("a", "m")
    measured = ask(bench, batch(shape(lines=1_000, limit=limit)))
    assert finish(measured)[0] < 0.5 * finish(ask(bench, batch(shape(lines=1_000))))[0]


def test_questions_change_nothing(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 300))
    bench.arrive("m", "interactive", count=20)
    look(bench)
    before = view(bench.manager, now_s=bench.now_s)
    told = len(bench.to_gateway())
    for question in (batch(shape(lines=9_000)), batch(shape()), request(Slo(ttft_s=20.0))):
        first = ask(bench, question)
        assert ask(bench, question) == first
    assert view(bench.manager, now_s=bench.now_s) == before
    assert len(bench.to_gateway()) == told
    assert len(bench.manager.bulks) == 1
