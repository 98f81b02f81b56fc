"""What an agent owes a gateway: whatever a break swallows, each chunk and each end arrives once and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlm_core.executor.work_log import ENDED_KEPT_MAX, ENDED_KEPT_S, WorkLog
from qlm_core.messages import Attempt, AttemptEnded, AttemptReturned, Chunk, Pull, ReturnReason
from qlm_core.model import RequestId

R, S = RequestId("r"), RequestId("s")


def log(*, kept_bytes_max: int = 1 << 20, events_max: int = 1000) -> WorkLog:
    made = WorkLog(kept_bytes_max=kept_bytes_max, events_max=events_max)
    made.hello()
    made.welcome(())
    return made


def chunk(number: int, id: RequestId = R, attempt: int = 1, size: int = 10) -> Chunk:
    return Chunk(id, attempt, str(number).encode().rjust(size), 1)


def say(made: WorkLog, *numbers: int, id: RequestId = R) -> list[Chunk]:
    said = [chunk(number, id) for number in numbers]
    for one in said:
        made.put(one, now_s=0.0)
    return said


def test_what_is_put_is_taken_once_and_in_order():
    made = log()
    made.begin(R, 1, continued=False)
    pull, end = Pull((S,)), AttemptEnded(R, 1, "stop")
    first = say(made, 1)
    made.put(pull, now_s=0.0)
    last = say(made, 2)
    made.put(end, now_s=0.0)
    assert made.take() == [*first, pull, *last, end]
    assert made.take() == []


def test_from_where_the_gateway_stands_all_is_sent_again():
    made = log()
    made.begin(R, 1, continued=False)
    said = say(made, 1, 2, 3)
    made.take()
    assert made.hello() == (Attempt(R, 1, 3),)
    # What comes before the answer takes its place behind.
    said += say(made, 4)
    assert made.take() == []
    made.welcome((Attempt(R, 1, 1),))
    assert made.take() == said[1:]


def test_an_end_that_may_be_lost_is_sent_again():
    made = log()
    made.begin(R, 1, continued=False)
    said = say(made, 1, 2)
    back = AttemptReturned(R, 1, ReturnReason.EVICTED)
    made.put(back, now_s=0.0)
    made.take()
    assert made.hello() == (Attempt(R, 1, 2),)
    made.welcome((Attempt(R, 1, 1),))
    assert made.take() == [said[1], back]


def test_what_does_not_go_on_is_not_sent():
    made = log()
    made.begin(R, 1, continued=False)
    made.begin(S, 1, continued=True)
    say(made, 1)
    said = say(made, 7, id=S)
    assert made.hello() == (Attempt(R, 1, 1), Attempt(S, 1, 1, continued=True))
    made.welcome((Attempt(S, 1, 0),))
    made.forget(R, 1)
    assert made.take() == said
    assert made.hello() == (Attempt(S, 1, 1, continued=True),)


def test_ends_are_kept_for_a_while_and_as_long_as_the_gateway_is_away():
    made = log()
    for index, id in enumerate((R, S)):
        made.begin(id, 1, continued=False)
        made.put(AttemptEnded(id, 1, "stop"), now_s=index * (ENDED_KEPT_S + 1.0))
    assert made.hello() == (Attempt(S, 1),)
    late = RequestId("late")
    made.begin(late, 1, continued=False)
    made.put(AttemptEnded(late, 1, "stop"), now_s=100.0)
    assert made.hello() == (Attempt(S, 1), Attempt(late, 1))


def test_not_more_than_so_many_ends_are_kept():
    made = log()
    for index in range(ENDED_KEPT_MAX + 10):
        made.put(AttemptEnded(RequestId(f"r{index}"), 1, "stop"), now_s=0.0)
    assert len(made.hello()) == ENDED_KEPT_MAX


def test_beyond_the_limit_the_oldest_output_is_let_go():
    made = log(kept_bytes_max=3_000)
    made.begin(R, 1, continued=False)
    made.begin(S, 1, continued=False)
    say(made, *range(8))
    said = say(made, *range(8), id=S)
    made.take()
    [first, second] = made.hello()
    assert (first.chunks, first.first_chunk) == (8, 8), "nothing of it can be sent again"
    assert (second.chunks, second.first_chunk) == (8, 0)
    made.welcome((Attempt(R, 1, 8), second))
    assert made.take() == []
    more = say(made, 8)
    assert made.take() == more
    made.hello()
    made.welcome((Attempt(R, 1, 8), Attempt(S, 1, 6)))
    assert made.take() == [*more, *said[6:]]


def test_a_writer_that_is_too_slow_begins_anew_from_what_is_kept():
    made = log(events_max=2)
    made.begin(R, 1, continued=False)
    said = say(made, 1, 2, 3)
    assert made.full
    made.hello()
    assert not made.full
    made.welcome((Attempt(R, 1, 0),))
    assert made.take() == said


def test_nothing_is_owed_after_clear():
    made = log()
    made.begin(R, 1, continued=False)
    say(made, 1)
    made.put(AttemptEnded(S, 1, "stop"), now_s=0.0)
    made.clear()
    assert made.take() == []
    assert made.hello() == ()


@given(
    st.lists(st.tuples(st.sampled_from(["say", "write", "break"]), st.integers(0, 9)), max_size=60)
)
def test_whatever_breaks_swallow_each_chunk_arrives_once_and_in_order(steps: list[tuple[str, int]]):
    made = log()
    made.begin(R, 1, continued=False)
    said: list[Chunk] = []
    arrived: list[Chunk] = []

    def reconnect() -> None:
        made.hello()
        made.welcome((Attempt(R, 1, len(arrived)),))

    for step, count in steps:
        if step == "say":
            said += say(made, *range(len(said), len(said) + count))
        elif step == "write":
            arrived += made.take()  # type: ignore[arg-type]
        else:
            # Of what was written, only the beginning arrives.
            arrived += made.take()[:count]  # type: ignore[arg-type]
            reconnect()
    reconnect()
    arrived += made.take()  # type: ignore[arg-type]
    assert arrived == said


def test_a_gateway_is_told_of_an_attempt_that_was_given_up_after_the_hello():
    """Its answer comes late, when the agent has forgotten what it said: else the gateway would wait for ever."""
    made = log()
    made.begin(R, 1, continued=False)
    say(made, 1, 2)
    made.hello()
    made.clear()
    made.welcome((Attempt(R, 1, 0),))
    [told] = made.take()
    assert isinstance(told, AttemptReturned)
    assert (told.id, told.attempt, told.reason) == (R, 1, ReturnReason.ENGINE_LOST)


def test_a_gateway_is_told_of_output_that_was_let_go_after_the_hello():
    """What it lacks is gone, so nothing of the attempt may follow."""
    made = log(kept_bytes_max=2000)
    made.begin(R, 1, continued=False)
    say(made, 1, 2)
    assert made.hello() == (Attempt(R, 1, 2),)
    say(made, *range(3, 20))
    made.welcome((Attempt(R, 1, 2),))
    [told] = made.take()
    assert isinstance(told, AttemptReturned)
    made.take()
    made.put(chunk(99), now_s=0.0)
    made.hello()
    assert made.hello() == (), "nothing of it is owed any more"
