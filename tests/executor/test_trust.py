"""An engine that loses what it is given is not given a whole queue."""

from __future__ import annotations

from qlm_core.executor import Drain, EngineReady, JobLost, JobRefused
from qlm_core.messages import ReturnReason
from qlm_core.model import ModelName, RequestId
from tests.executor.world import World, group, profile, refs, world


def lose(w: World, *ids: str) -> None:
    for id in ids or tuple(w.running):
        w.tell(JobLost(RequestId(id), w.attempts[id]))


def busy(*, waiting: int = 40, pull_ahead: int = 0) -> World:
    """Four requests run and many wait."""
    w = world(profile(slots=4), pull_ahead=pull_ahead)
    w.queue(group(1), add=refs(1, 4 + waiting))
    w.grant()
    assert len(w.running) == 4
    return w


def test_after_a_loss_nothing_is_pulled_for_a_second_and_then_two() -> None:
    w = busy()
    lose(w)
    w.at(0.9)
    assert len(w.pulled) == 4
    w.at(1.1)
    assert len(w.pulled) == 6
    w.grant()
    assert len(w.running) == 2


def test_an_output_restores_the_trust_at_once() -> None:
    w = busy()
    lose(w)
    w.at(1.1)
    w.grant()
    w.produce(w.running[0], 1)
    assert len(w.pulled) == 8
    lose(w, w.running[0])
    w.at(2.2)
    w.grant()
    assert len(w.running) > 1


def test_so_does_an_engine_that_comes_up_and_an_answer_that_refuses() -> None:
    w = busy()
    lose(w)
    w.tell(EngineReady(ModelName("m1"), ()))
    assert len(w.pulled) == 8
    w = busy()
    lose(w, "1-0")
    w.tell(JobRefused(RequestId("1-1"), 1, "bad", 400))
    assert len(w.pulled) == 6


def test_one_request_that_is_lost_among_others_stops_nothing() -> None:
    w = busy()
    for _ in range(8):
        lost, other, *_ = w.running
        lose(w, lost)
        w.produce(other, 1)
        w.grant()
        assert len(w.running) == 4
    assert w.now_s == 0.0


def test_pauses_double_up_to_ten_seconds() -> None:
    w = busy()
    starts = []
    for _ in range(7):
        lose(w)
        pulled = len(w.pulled)
        while len(w.pulled) == pulled:
            w.at(w.executor.wakeup_s)
        starts.append(w.now_s)
        w.grant()
    pauses = [b - a for a, b in zip([0.0, *starts], starts, strict=False)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_an_outage_costs_few_attempts() -> None:
    """A server is away for half a minute and its engine does not notice."""
    w = busy(waiting=300, pull_ahead=4)
    while w.now_s < 30.0:
        w.grant()
        lose(w)
        w.at(min(30.0, w.executor.wakeup_s))
    assert len(w.returned) <= 4 + 4 + 2 * 5
    assert max(w.attempts.values()) <= 2


def test_what_was_pulled_ahead_is_tried_first_and_given_back_on_leaving() -> None:
    w = world(profile(slots=2), pull_ahead=3)
    w.queue(group(1), add=refs(1, 20))
    w.grant()
    w.grant()
    assert len(w.executor.batch.held) == 3
    lose(w)
    assert w.running == []
    w.at(1.1)
    assert w.running == ["1-2", "1-3"]
    lose(w)
    w.tell(Drain(5.0))
    w.grant()
    assert w.drained
    assert len(w.executor.batch) == 0


def test_until_it_works_again_an_engine_is_not_reported_ready() -> None:
    w = busy()
    lose(w)
    w.at(1.1)
    w.grant()
    lose(w)
    w.at(2.5)
    assert w.reports[-1].state.ready is False
    w.at(4.5)
    assert w.reports[-1].state.ready is False
    w.grant()
    w.produce(w.running[0], 1)
    assert w.executor.instance_state().ready is True


def test_one_that_nothing_is_given_to_is_counted_on_again_after_a_while() -> None:
    """Else nothing would be sent there ever again, by which it could show that it works."""
    w = busy(waiting=0)
    lose(w)
    w.at(10.0)
    assert w.reports[-1].state.ready is False
    w.at(13.0)
    assert w.reports[-1].state.ready is True
    # It is still given a few requests only.
    w.queue(group(1), add=refs(1, 10), epoch=2)
    assert len(w.executor.batch) == 2


def test_what_is_tried_on_it_may_take_as_long_as_it_likes() -> None:
    w = busy(waiting=1)
    lose(w)
    w.at(1.1)
    w.grant()
    assert len(w.running) == 1
    w.at(60.0)
    assert w.reports[-1].state.ready is False


def error(w: World, id: str) -> None:
    w.tell(JobLost(RequestId(id), w.attempts[id], "HTTP 500", answered=True))


def test_a_request_that_is_answered_with_an_error_among_others_is_what_is_wrong() -> None:
    w = busy()
    error(w, "1-0")
    assert w.reasons == {"1-0": ReturnReason.ENGINE_ERROR}
    # The engine is trusted as before.
    assert len(w.pulled) == 5
    # So it is each time that the engine worked in between.
    w.produce("1-1", 1)
    error(w, "1-2")
    assert w.reasons["1-2"] is ReturnReason.ENGINE_ERROR
    assert len(w.pulled) == 6


def test_an_engine_that_answers_one_request_after_the_other_with_errors_is_not_trusted() -> None:
    w = busy()
    ids = ("1-0", "1-1", "1-2", "1-3")
    for id in ids:
        error(w, id)
    # A few bad requests may come together; a fourth in a row is the engine's doing.
    assert [w.reasons[id] for id in ids] == [ReturnReason.ENGINE_ERROR] * 3 + [
        ReturnReason.ENGINE_LOST
    ]
    assert len(w.pulled) == 7


def test_a_request_stays_the_suspect_when_it_comes_again() -> None:
    w = busy(waiting=0)
    for id in ("1-1", "1-2", "1-3"):
        w.finish(id)
    for _ in range(2):
        error(w, "1-0")
        assert w.reasons["1-0"] is ReturnReason.ENGINE_ERROR
        w.queue(group(1), add=refs(1, 1))
        w.grant()


def test_an_engine_that_is_in_doubt_blames_no_request() -> None:
    w = busy()
    lose(w)
    w.at(1.1)
    w.grant()
    error(w, w.running[0])
    assert set(w.reasons.values()) == {ReturnReason.ENGINE_LOST}
