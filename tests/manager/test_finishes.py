"""When a batch will be done: what gateways are told, when, and what it follows from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.manager.events import AgentLeft, AgentReported
from qlm_core.manager.finishes import BULKS_AT_ONCE
from qlm_core.manager.finishing import Forecaster
from qlm_core.messages import Arrived, BulkEstimate, Ended, Pulled
from qlm_core.model import (
    AgentId,
    InstanceState,
    ModelName,
    Phase,
    RequestId,
    RunningRequest,
)
from tests.manager.conftest import GATEWAY, Bench
from tests.manager.lines import bulk, known, line, look, release, run_line, said


def first_said(bench: Bench, batch: str = "b") -> BulkEstimate:
    """What is said of a batch a moment after it came."""
    look(bench)
    return said(bench, batch)[0]


def p50_s(estimate: BulkEstimate) -> float:
    assert estimate.finish_p50_s is not None
    return estimate.finish_p50_s


def live(bench: Bench, seconds: int, *agents: AgentId) -> None:
    """Time passes, and agents say that they are there."""
    state = InstanceState(ready=True, awake_model=ModelName("m"))
    for _ in range(seconds):
        for agent in agents:
            bench.post(AgentReported(agent, state))
        look(bench, after_s=1.0)


def test_a_batch_is_told_when_it_will_be_done(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 1_000))
    told = first_said(bench)
    assert told.feasible
    assert told.finish_p90_s is not None
    assert 10.0 < p50_s(told) < told.finish_p90_s < 3600.0
    assert "1000 lines left" in told.explanation
    assert len(said(bench)) == 1


def test_nothing_is_said_as_long_as_nothing_has_changed(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 100_000, window_s=86_400.0))
    first_said(bench)
    live(bench, 10, AgentId("a"))
    assert len(said(bench)) == 1


@pytest.mark.parametrize("lines", [200, 2_000, 20_000])
def test_more_lines_take_longer_and_more_instances_do_not(lines: int) -> None:
    from qlm_core.config import SolverConfig
    from qlm_core.manager import Manager
    from tests.manager.conftest import CLASSES

    finishes = []
    for count, agents in ((lines, 1), (4 * lines, 1), (4 * lines, 4)):
        bench = Bench(Manager(SolverConfig(), CLASSES, now_s=0.0))
        bench.gateway()
        for number in range(agents):
            bench.agent(f"a{number}", "m")
        bench.fact(bulk(bench, count))
        finishes.append(p50_s(first_said(bench)))
    one, four, shared = finishes
    assert four > 1.5 * one
    assert shared < 0.7 * four


def test_a_window_that_is_too_short_is_said_at_once_and_what_would_help(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 20_000, window_s=60.0))
    told = first_said(bench)
    assert not told.feasible
    for way in ("a window that is", "more instances of the kind", "fewer lines"):
        assert way in told.explanation


def test_a_batch_that_nobody_serves_has_no_finish_time_until_somebody_does(bench: Bench) -> None:
    bench.fact(bulk(bench, 100))
    told = first_said(bench)
    assert (told.feasible, told.finish_p50_s, told.finish_p90_s) == (False, None, None)
    assert "no connected agent serves m" in told.explanation
    bench.agent("a", "m")
    look(bench, after_s=2.0)
    assert said(bench)[-1].finish_p50_s is not None


def test_when_the_last_agent_is_lost_that_is_said(bench: Bench) -> None:
    a = bench.agent("a", "m")
    bench.fact(bulk(bench, 10_000))
    first_said(bench)
    bench.post(AgentLeft(a))
    for _ in range(40):
        look(bench, after_s=2.0)
    assert said(bench)[-1].finish_p50_s is None


def test_of_a_tenants_batches_the_one_that_is_due_first_is_done_first(bench: Bench) -> None:
    """Lines are released in that order, whichever batch came first."""
    bench.agent("a", "m")
    bench.fact(bulk(bench, 5_000, batch="late", window_s=80_000.0))
    bench.fact(bulk(bench, 5_000, batch="soon", window_s=8_000.0))
    look(bench)
    late, soon = said(bench, "late")[-1], said(bench, "soon")[-1]
    assert p50_s(late) > 1.5 * p50_s(soon)


def test_requests_that_keep_coming_put_the_end_off(bench: Bench) -> None:
    bench.agent("a", "m")
    quiet = bulk(bench, 5_000)
    bench.fact(quiet)
    alone = p50_s(first_said(bench))
    bench.fact(replace(quiet, lines=0))
    for number in range(600):
        bench.now_s += 0.1
        [id] = bench.arrive("m", "interactive")
        run_line(bench, id, AgentId("a"), tokens=200)
        if not number % 20:
            live(bench, 1, AgentId("a"))
    bench.fact(bulk(bench, 5_000, batch="c"))
    told = first_said(bench, "c")
    assert p50_s(told) > 1.2 * alone
    assert "Requests that go first take" in told.explanation


def test_the_end_is_that_of_the_model_that_ends_last(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.agent("b", "n", speed=0.2)
    bench.fact(bulk(bench, 1_000, model="m"))
    bench.fact(bulk(bench, 1_000, model="n"))
    bench.fact(bulk(bench, 1_000, model="n", batch="alone"))
    look(bench)
    [both] = said(bench)
    assert "of 2 models, n the last of them" in both.explanation


def test_first_lines_tell_how_long_the_others_are(bench: Bench) -> None:
    """Outputs of a hundredth of what was assumed: the batch is done sooner, and that is surer."""
    a = bench.agent("a", "m")
    told = bulk(bench, 5_000)
    bench.fact(told)
    before = first_said(bench)
    for id in release(bench, told, 200):
        run_line(bench, id, a, tokens=2)
    live(bench, 20, a)
    after = said(bench)[-1]
    assert p50_s(after) < 0.3 * p50_s(before)
    assert after.finish_p90_s is not None
    assert before.finish_p90_s is not None
    assert after.finish_p90_s / p50_s(after) < 0.7 * before.finish_p90_s / p50_s(before)
    assert "is not known yet" in before.explanation
    assert "is not known yet" not in after.explanation


def test_a_limit_on_output_bounds_what_is_not_known(bench: Bench) -> None:
    bench.agent("a", "m")
    bench.fact(bulk(bench, 5_000, batch="words", max_output_tokens=4))
    bench.fact(bulk(bench, 5_000, batch="pages", max_output_tokens=8_000, tenant="other"))
    look(bench)
    words, pages = said(bench, "words")[0], said(bench, "pages")[0]
    assert p50_s(words) < p50_s(pages)
    spreads = [one.finish_p90_s / p50_s(one) for one in (words, pages) if one.finish_p90_s]
    assert spreads[0] < spreads[1]


def running(bench: Bench, agent: AgentId, ids: list[RequestId], produced: int) -> None:
    """The agent reports that so many lines run, all as far."""
    rows = []
    for id in ids:
        held = bench.manager.book.get(id)
        assert held is not None
        rows.append(RunningRequest(id=id, group=held.group.id, produced_tokens=produced))
    state = InstanceState(ready=True, awake_model=ModelName("m"), running=tuple(rows))
    bench.post(AgentReported(agent, state), after_s=1.0)


def test_lines_that_run_are_known_by_how_far_they_are(bench: Bench) -> None:
    """All of a batch is at an engine: it ends when the longest output does, at its limit at the latest."""
    a = bench.agent("a", "m")
    told = bulk(bench, 40, max_output_tokens=400)
    bench.fact(told)
    ids = release(bench, told, 40)
    for id in ids:
        bench.fact(Pulled(id, a))
    ends = []
    for produced in (10, 200, 390):
        running(bench, a, ids, produced)
        look(bench, after_s=5.0)
        ends.append(p50_s(said(bench)[-1]))
    assert ends[0] > ends[1] > ends[2]
    assert "all of them at engines" in said(bench)[-1].explanation


def test_a_batch_that_ended_tells_how_well_it_was_foretold(bench: Bench) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 5)
    bench.fact(told)
    first_said(bench)
    for id in release(bench, told, 5):
        run_line(bench, id, a)
    look(bench)
    assert bench.manager.finishes.records[0].observed == 1
    assert bench.manager.finishes.of((GATEWAY, told.batch)) is None


@pytest.mark.parametrize("how", ["cancelled", "cut"])
def test_a_batch_that_was_given_up_tells_nothing(bench: Bench, how: str) -> None:
    a = bench.agent("a", "m")
    told = bulk(bench, 100)
    bench.fact(told)
    first_said(bench)
    ids = release(bench, told, 5)
    for id in ids[:-1]:
        run_line(bench, id, a)
    phase = Phase.CANCELLED if how == "cancelled" else Phase.FINISHED
    bench.fact(Ended(ids[-1], phase, 1, 1))
    bench.fact(replace(told, lines=0))
    look(bench)
    assert known(bench) is None
    assert [one.observed for one in bench.manager.finishes.records] == [0, 0, 0, 0]


def test_after_a_restart_of_the_solver_a_batch_is_told_anew(bench: Bench) -> None:
    """All that it hears is what is announced: requests that run, and lines that wait."""
    a = bench.agent("a", "m")
    told = bulk(bench, 500)
    for number in range(10):
        one = line(bench, told)
        bench.fact(Arrived(one, estimated=True))
        if number % 2:
            bench.fact(Pulled(one.id, a))
    bench.fact(told)
    assert "510 lines left" in first_said(bench).explanation


def test_many_batches_are_looked_at_a_few_at_a_time(bench: Bench) -> None:
    bench.agent("a", "m")
    for number in range(100):
        bench.fact(bulk(bench, 50, batch=f"b{number}", tenant=f"t{number}"))
    per_look = []
    while sum(per_look) < 100 and len(per_look) < 60:
        before = len(bench.to_gateway())
        look(bench, after_s=0.1)
        per_look.append(len(bench.to_gateway()) - before)
    assert sum(per_look) >= 100
    assert max(per_look) <= BULKS_AT_ONCE
    assert bench.manager.wakeup_s is not None


@pytest.mark.parametrize(("batches", "looks"), [(1, 20), (40, 5 * 40)])
def test_of_many_batches_each_is_looked_at_more_seldom(
    bench: Bench, batches: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together they take no more of the solver than few of them do."""
    made: list[object] = []
    outlook = Forecaster.outlook
    monkeypatch.setattr(
        Forecaster, "outlook", lambda fleet, work: made.append(work) or outlook(fleet, work)
    )
    a = bench.agent("a", "m")
    for number in range(batches):
        bench.fact(bulk(bench, 20, batch=f"b{number}", tenant=f"t{number}"))
    for _ in range(200):
        look(bench, after_s=0.1)
        bench.post(AgentReported(a, InstanceState(ready=True, awake_model=ModelName("m"))))
    assert 0.5 * looks < len(made) <= 1.2 * looks
