"""An engine that says that it is full is not asked again for each request, and loses nobody an attempt."""

from __future__ import annotations

from qlm_core.executor import EngineDown, EngineReady, JobTurnedAway
from qlm_core.messages import ReturnReason
from qlm_core.model import ModelName, ModelTier, RequestId
from tests.executor.test_trust import busy
from tests.executor.world import World, group, refs


def turn_away(w: World, id: str, rest_s: float = 0.0) -> None:
    w.tell(JobTurnedAway(RequestId(id), w.attempts[id], "HTTP 429", rest_s))


def rests(w: World) -> dict[str, float]:
    return {back.id: back.rest_s for back in w.returned}


def test_one_request_rests_as_long_as_told_and_others_go_on() -> None:
    w = busy()
    turn_away(w, "1-0", 90.0)
    assert w.reasons == {"1-0": ReturnReason.TURNED_AWAY}
    assert rests(w) == {"1-0": 90.0}
    assert len(w.pulled) == 5


def test_the_engine_is_not_asked_again_before_that() -> None:
    w = busy(waiting=0)
    turn_away(w, "1-0", 90.0)
    w.at(60.0)
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    assert w.submitted.count("1-0") == 1
    assert w.returned[-1].rest_s == 30.0
    w.at(91.0)
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    assert w.submitted.count("1-0") == 2


def test_an_engine_that_takes_nothing_is_not_ready_until_it_takes_something() -> None:
    w = busy(waiting=1)
    for id in ("1-1", "1-2", "1-3"):
        w.finish(id)
    w.grant()
    turn_away(w, "1-0")
    assert w.executor.instance_state().ready
    turn_away(w, "1-4")
    assert not w.executor.instance_state().ready
    w.at(8.0)
    assert not w.executor.instance_state().ready
    w.queue(group(1), add=refs(1, 1), epoch=2)
    w.grant()
    w.at(20.0)
    assert not w.executor.instance_state().ready
    w.produce("1-0", 1)
    assert w.executor.instance_state().ready


def test_one_that_nothing_is_given_to_is_counted_on_again_after_a_while() -> None:
    """Else nothing would be sent there ever again, by which it could show that it has room."""
    w = busy(waiting=0)
    for id in ("1-2", "1-3"):
        w.finish(id)
    turn_away(w, "1-0")
    turn_away(w, "1-1")
    w.at(8.0)
    assert not w.executor.instance_state().ready
    w.at(10.0)
    assert w.executor.instance_state().ready


def test_a_new_server_has_not_said_that_it_is_full() -> None:
    w = busy()
    turn_away(w, "1-0")
    turn_away(w, "1-1")
    w.tell(EngineDown("gone"))
    w.tell(EngineReady(ModelName("m1"), ((ModelName("m1"), ModelTier.AWAKE),)))
    w.grant()
    assert len(w.running) == 4


def test_one_that_is_told_no_time_rests_a_little() -> None:
    w = busy()
    turn_away(w, "1-0")
    assert rests(w)["1-0"] > 0.0


def test_a_second_one_in_a_row_means_that_the_engine_is_full() -> None:
    w = busy()
    turn_away(w, "1-0")
    w.grant()
    turn_away(w, "1-4")
    # Three run; a fourth is not tried before the pause is over.
    assert len(w.running) == 3
    assert len(w.pulled) == 5
    w.at(0.6)
    assert len(w.pulled) == 6
    w.grant()
    turn_away(w, "1-5")
    # It is still full: the pause is longer now.
    w.at(1.3)
    assert len(w.pulled) == 6
    w.at(1.7)
    assert len(w.pulled) == 7


def test_what_ends_or_begins_shows_that_there_is_room() -> None:
    w = busy()
    turn_away(w, "1-0")
    w.grant()
    turn_away(w, "1-4")
    w.finish("1-1")
    assert len(w.pulled) > 5
