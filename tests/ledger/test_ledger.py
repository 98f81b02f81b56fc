"""The ledger's rules, one by one."""

import pytest

from qlm_core import ledger as lg
from qlm_core.messages import (
    AnnounceDone,
    Arrived,
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Ended,
    FirstToken,
    Pulled,
    Returned,
    ReturnReason,
    TokenIds,
)
from qlm_core.model import (
    AgentId,
    Estimate,
    GatewayId,
    ModelName,
    Phase,
    RequestId,
    RequestMeta,
    Slo,
)
from qlm_core.outcome import PullRefusal, ShedReason
from qlm_core.resume import Resume

A, B = AgentId("a"), AgentId("b")
R = RequestId("r")


def meta(id: str = "r", *, arrival_s: float = 0.0, limit: int = 100) -> RequestMeta:
    return RequestMeta(
        id=RequestId(id),
        gateway=GatewayId("g"),
        model=ModelName("m"),
        slo_class="interactive",
        slo=Slo(ttft_s=10.0, tpot_s=1.0),
        prompt_tokens=7,
        max_output_tokens=limit,
        arrival_s=arrival_s,
    )


class Clocked:
    """A ledger with a hand-driven clock."""

    def __init__(self, **options: float) -> None:
        self.ledger = lg.Ledger(**options)  # type: ignore[arg-type]
        self.now_s = 0.0

    def __call__(self, event: lg.Event, at: float | None = None) -> list[lg.Effect]:
        self.now_s = self.now_s if at is None else at
        return self.ledger.handle(event, now_s=self.now_s)

    def submit(self, **options: object) -> list[lg.Effect]:
        options = {"request": meta(arrival_s=self.now_s), "expires_s": 1000.0} | options
        return self(lg.Submitted(**options))  # type: ignore[arg-type]

    def chunk(self, attempt: int = 1, agent: AgentId = A, tokens: int = 1) -> list[lg.Effect]:
        return self(lg.ChunkCame(agent, Chunk(R, attempt, b"{}", tokens)))


def record(effects: list[lg.Effect]) -> lg.EndRecord:
    ends = [effect for effect in effects if isinstance(effect, lg.EndRequest)]
    assert len(ends) == 1
    return ends[0].record


def returned(attempt: int, reason: ReturnReason = ReturnReason.EVICTED) -> lg.Event:
    return lg.AttemptCameBack(A, AttemptReturned(R, attempt, reason))


def test_a_request_runs_from_submission_to_its_record() -> None:
    drive = Clocked()
    assert drive.submit() == [lg.Tell(Arrived(meta()))]
    assert drive(lg.PullAsked(A, (R,)), at=1.0) == [lg.Grant(A, R, 1, 0), lg.Tell(Pulled(R, A))]
    drive.now_s = 2.0
    first = drive.chunk(tokens=2)
    assert first == [lg.Deliver(Chunk(R, 1, b"{}", 2)), lg.Tell(FirstToken(R, 2.0))]
    drive.now_s = 3.0
    assert drive.chunk() == [lg.Deliver(Chunk(R, 1, b"{}", 1))]
    effects = drive(lg.AttemptFinished(A, AttemptEnded(R, 1, "stop", 9, 3)), at=4.0)
    assert lg.Tell(Ended(R, Phase.FINISHED, 9, 3)) in effects
    end = record(effects)
    assert (end.phase, end.reason, end.attained) == (Phase.FINISHED, "stop", True)
    assert (end.prompt_tokens, end.output_tokens) == (9, 3)
    assert (end.queue_s, end.ttft_s, end.tpot_s, end.e2e_s) == (1.0, 2.0, 1.0, 4.0)
    assert end.pause_s == 1.0
    assert len(drive.ledger) == 0


def test_a_late_first_token_misses_the_target() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)), at=1.0)
    drive.now_s = 10.5
    drive.chunk()
    assert not record(drive(lg.AttemptFinished(A, AttemptEnded(R, 1, "stop", 9, 1)))).attained


def test_an_evicted_request_continues_after_what_it_produced() -> None:
    drive = Clocked()
    drive.submit(watched=True)
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=5)
    assert drive(returned(1)) == [lg.Tell(Returned(R, 5))]
    assert drive(lg.PullAsked(B, (R,)))[0] == lg.Grant(B, R, 2, 5)
    again = drive.chunk(2, B)
    assert again == [lg.Deliver(Chunk(R, 2, b"{}", 1))]
    end = record(drive(lg.AttemptFinished(B, AttemptEnded(R, 2, "stop", 12, 1))))
    # The second engine saw the five tokens as part of its prompt; they count once, as output.
    assert (end.prompt_tokens, end.output_tokens, end.evictions, end.attempts) == (7, 6, 1, 2)


def test_output_that_cannot_be_continued_starts_over_only_unseen() -> None:
    drive = Clocked()
    drive.submit(resume=Resume.NEVER)
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=5)
    assert drive(returned(1)) == [lg.DropOutput(R), lg.Tell(Returned(R, 0))]
    assert drive(lg.PullAsked(A, (R,)))[0] == lg.Grant(A, R, 2, 0)
    drive(lg.OutputWatched(R))
    drive.chunk(2)
    end = record(drive(returned(2, ReturnReason.ENGINE_LOST)))
    assert end.phase is Phase.FAILED
    assert "cannot be continued" in end.error


def test_a_pause_of_output_that_is_void_is_none() -> None:
    drive = Clocked()
    drive.submit(resume=Resume.NEVER)
    drive(lg.PullAsked(A, (R,)))
    for attempt, at_s in ((1, 1.0), (1, 50.0), (2, 60.0), (2, 62.0)):
        if attempt == 2 and at_s == 60.0:
            drive(returned(1))
            drive(lg.PullAsked(A, (R,)))
        drive.now_s = at_s
        drive.chunk(attempt)
    end = record(drive(lg.AttemptFinished(A, AttemptEnded(R, 2, "stop", 9, 2)), at=63.0))
    assert (end.pause_s, end.ttft_s) == (2.0, 60.0)


def test_a_request_with_more_than_text_fails_when_its_agent_is_lost() -> None:
    drive = Clocked()
    drive.submit(watched=True)
    drive(lg.PullAsked(A, (R,)))
    drive(lg.ChunkCame(A, Chunk(R, 1, b"{}", 1, plain=False)))
    drive(lg.AgentDisconnected(A), at=1.0)
    assert record(drive(lg.Woken(), at=2.0)).phase is Phase.FAILED


def test_log_probabilities_go_on_from_token_ids_alone() -> None:
    for ids, expected in ((TokenIds(0, (5,)), Phase.WAITING), (None, Phase.FAILED)):
        drive = Clocked()
        drive.submit(resume=Resume.FROM_IDS, watched=True)
        drive(lg.PullAsked(A, (R,)))
        drive(lg.ChunkCame(A, Chunk(R, 1, b"{}", 1, ids=ids)))
        effects = drive(returned(1))
        row = drive.ledger.row(R)
        assert (row.phase if row is not None else record(effects).phase) is expected


def test_an_end_without_an_engines_word_counts_the_prompt_by_its_ids() -> None:
    drive = Clocked()
    drive.submit(request=meta(limit=2))
    drive(lg.PullAsked(A, (R,)))
    drive(lg.ChunkCame(A, Chunk(R, 1, b"{}", 2, ids=TokenIds(0, (5, 6), (1, 2, 3)))))
    end = record(drive(returned(1)))
    assert (end.prompt_tokens, end.output_tokens) == (3, 2)


def test_who_was_turned_away_rests_as_long_as_told_and_loses_no_attempt() -> None:
    drive = Clocked(attempts_max=2)
    drive.submit()
    for attempt in range(1, 5):
        drive(lg.PullAsked(A, (R,)))
        at = drive.now_s
        back = AttemptReturned(R, attempt, ReturnReason.TURNED_AWAY, "HTTP 429: slow down", 90.0)
        assert drive(lg.AttemptCameBack(A, back)) == []
        assert drive.ledger.wakeup_s == at + 90.0
        assert drive(lg.PullAsked(B, (R,)), at=at + 89.0) == [lg.Refuse(B, R, PullRefusal.TAKEN)]
        announced = drive(lg.SolverConnected())
        assert lg.Tell(Pulled(R, A)) in announced
        assert drive(lg.Woken(), at=at + 90.0) == [lg.Tell(Returned(R, 0))]
    assert drive(lg.PullAsked(B, (R,)))[0] == lg.Grant(B, R, 5, 0)


def test_where_another_agent_is_who_was_turned_away_rests_a_moment_that_grows() -> None:
    drive = Clocked()
    drive(lg.AgentConnected(A))
    drive(lg.AgentConnected(B))
    drive.submit()
    for attempt, rest_s in ((1, 0.5), (2, 1.0), (3, 2.0)):
        drive(lg.PullAsked(A, (R,)))
        back = AttemptReturned(R, attempt, ReturnReason.TURNED_AWAY, "HTTP 429", 3600.0)
        assert drive(lg.AttemptCameBack(A, back)) == []
        assert drive(lg.Woken(), at=drive.now_s + rest_s) == [lg.Tell(Returned(R, 0))]


def test_a_resting_request_can_be_cancelled_and_runs_out_of_time() -> None:
    for end, phase in ((lg.CancelAsked(R), Phase.CANCELLED), (lg.Woken(), Phase.SHED)):
        drive = Clocked()
        drive.submit(expires_s=50.0)
        drive(lg.PullAsked(A, (R,)))
        back = AttemptReturned(R, 1, ReturnReason.TURNED_AWAY, "", 90.0)
        drive(lg.AttemptCameBack(A, back))
        assert record(drive(end, at=60.0)).phase is phase
        assert drive(lg.Woken(), at=200.0) == []


def test_three_errors_of_engines_that_serve_others_end_a_request_with_their_words() -> None:
    drive = Clocked()
    drive.submit()
    for attempt in (1, 2, 3):
        drive(lg.PullAsked(A, (R,)))
        back = AttemptReturned(R, attempt, ReturnReason.ENGINE_ERROR, "HTTP 500: out of luck")
        effects = drive(lg.AttemptCameBack(A, back))
        if attempt < 3:
            # It rests a little longer each time.
            assert effects == []
            assert drive(lg.Woken(), at=drive.now_s + attempt) == [lg.Tell(Returned(R, 0))]
    end = record(effects)
    assert end.phase is Phase.FAILED
    assert "HTTP 500: out of luck" in end.error


def test_a_return_with_every_token_out_is_a_finish() -> None:
    drive = Clocked()
    drive.submit(request=meta(limit=3))
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=3)
    end = record(drive(returned(1, ReturnReason.ENGINE_LOST)))
    assert (end.phase, end.reason, end.output_tokens) == (Phase.FINISHED, "length", 3)


def test_a_refused_request_fails_with_the_engines_words() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    said = AttemptEnded(R, 1, "error", error="bad grammar", error_status=400)
    end = record(drive(lg.AttemptFinished(A, said)))
    assert (end.phase, end.error, end.error_status) == (Phase.FAILED, "bad grammar", 400)


def test_pulls_are_refused_with_their_reason() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    assert drive(lg.PullAsked(B, (R, RequestId("x")))) == [
        lg.Refuse(B, R, PullRefusal.TAKEN),
        lg.Refuse(B, RequestId("x"), PullRefusal.UNKNOWN),
    ]
    drive(lg.CancelAsked(R))
    assert drive(lg.PullAsked(B, (R,))) == [lg.Refuse(B, R, PullRefusal.DONE)]


@pytest.mark.parametrize(("attempt", "agent"), [(0, A), (2, A), (1, B)])
def test_output_of_another_attempt_is_revoked(attempt: int, agent: AgentId) -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    assert drive.chunk(attempt, agent) == [lg.Revoke(agent, R, attempt)]
    assert drive(lg.AttemptFinished(agent, AttemptEnded(R, attempt, "stop"))) == []
    assert drive(lg.AttemptCameBack(agent, AttemptReturned(R, attempt, ReturnReason.EVICTED))) == []


def test_an_agent_that_comes_back_in_time_goes_on() -> None:
    drive = Clocked(agent_grace_s=1.0)
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive.chunk()
    drive(lg.AgentDisconnected(A), at=5.0)
    assert drive.ledger.wakeup_s == 6.0
    going_on = lg.Welcome(A, (Attempt(R, 1, 1),))
    assert drive(lg.AgentConnected(A, (Attempt(R, 1, 1),)), at=5.5) == [going_on]
    assert drive(lg.Woken(), at=6.0) == []
    assert drive.chunk()[0] == lg.Deliver(Chunk(R, 1, b"{}", 1))


def test_chunks_that_were_lost_on_the_way_are_asked_for_again() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=4)
    drive(lg.AgentDisconnected(A))
    back = drive(lg.AgentConnected(A, (Attempt(R, 1, 3),)))
    assert back == [lg.Welcome(A, (Attempt(R, 1, 1),))]
    assert drive.chunk()[0] == lg.Deliver(Chunk(R, 1, b"{}", 1))


@pytest.mark.parametrize(
    "run", [Attempt(R, 1, 3, first_chunk=2), Attempt(R, 1, 0), Attempt(R, 2, 1)]
)
def test_an_agent_that_cannot_send_what_was_lost_is_revoked(run: Attempt) -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=4)
    drive(lg.AgentDisconnected(A))
    back = drive(lg.AgentConnected(A, (run,)))
    assert back == [lg.Welcome(A, ()), lg.Revoke(A, R, run.attempt), lg.Tell(Returned(R, 4))]


def test_a_grace_does_not_run_while_the_gateway_sleeps() -> None:
    drive = Clocked(agent_grace_s=1.0)
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive(lg.AgentDisconnected(A))
    drive(lg.Slept(7.0), at=7.5)
    assert drive.ledger.wakeup_s == 8.0
    assert drive(lg.Woken()) == []
    assert drive(lg.Woken(), at=8.0) == [lg.Tell(Returned(R, 0))]


def restored(**options: float) -> Clocked:
    """The second start of a gateway, with one request from the first."""
    drive = Clocked(agent_grace_s=1.0, first_attempt=100, **options)
    assert drive.submit(durable=True, restored=True) == []
    return drive


def test_what_was_read_back_waits_for_its_agent() -> None:
    drive = restored()
    assert drive(lg.SolverConnected()) == [lg.Tell(AnnounceDone())]
    assert drive(lg.PullAsked(B, (R,))) == [lg.Refuse(B, R, PullRefusal.TAKEN)]
    assert drive.ledger.wakeup_s == 1.0
    assert drive(lg.Woken(), at=1.0) == [lg.Tell(Arrived(meta()))]
    assert drive(lg.PullAsked(B, (R,)))[0] == lg.Grant(B, R, 100, 0)


@pytest.mark.parametrize("at_s", [0.5, 2.0])
def test_an_attempt_of_an_earlier_start_goes_on(at_s: float) -> None:
    drive = restored()
    told = drive(lg.Woken(), at=at_s)
    effects = drive(lg.AgentConnected(A, (Attempt(R, 7, 3),)))
    assert effects[0] == lg.Welcome(A, (Attempt(R, 7, 0),))
    assert [*told, *effects[1:]] == [lg.Tell(Arrived(meta())), lg.Tell(Pulled(R, A))]
    assert drive.chunk(7)[0] == lg.Deliver(Chunk(R, 7, b"{}", 1))
    # Whoever runs another attempt of it comes too late, whatever its number.
    assert drive(lg.AgentConnected(B, (Attempt(R, 8, 1),)))[1:] == [lg.Revoke(B, R, 8)]
    assert drive(lg.Woken(), at=at_s + 1.0) == []
    # Later attempts have numbers of this start.
    drive(returned(7))
    assert drive(lg.PullAsked(B, (R,)))[0] == lg.Grant(B, R, 100, 1)


@pytest.mark.parametrize(
    "run", [Attempt(R, 7, 3, first_chunk=1), Attempt(R, 7, 3, continued=True), Attempt(R, 100, 3)]
)
def test_an_attempt_whose_output_is_not_all_there_is_revoked(run: Attempt) -> None:
    drive = restored()
    back = drive(lg.AgentConnected(A, (run,)))
    assert back == [lg.Welcome(A, ()), lg.Revoke(A, R, run.attempt)]
    assert drive.ledger.count(Phase.WAITING) == 1


def test_a_later_rest_is_not_ended_by_the_first() -> None:
    drive = restored()
    drive(lg.AgentConnected(A, (Attempt(R, 7),)), at=0.5)
    drive(lg.AttemptCameBack(A, AttemptReturned(R, 7, ReturnReason.TURNED_AWAY, rest_s=9.0)))
    assert drive(lg.Woken(), at=1.0) == []
    assert drive(lg.Woken(), at=9.5) == [lg.Tell(Returned(R, 0))]


def test_what_an_agent_does_not_report_waits_again() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive(lg.AgentDisconnected(A))
    assert drive(lg.AgentConnected(A)) == [lg.Welcome(A, ()), lg.Tell(Returned(R, 0))]


def test_the_grace_ends() -> None:
    drive = Clocked(agent_grace_s=1.0)
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    drive(lg.AgentDisconnected(A))
    assert drive(lg.Woken(), at=0.9) == []
    assert drive(lg.Woken(), at=1.0) == [lg.Tell(Returned(R, 0))]
    # The agent turns up after all: its attempt is history.
    assert drive(lg.AgentConnected(A, (Attempt(R, 1),)))[1:] == [lg.Revoke(A, R, 1)]


def test_lost_attempts_are_bounded_and_evictions_are_not() -> None:
    drive = Clocked(attempts_max=2)
    drive.submit()
    for attempt in range(1, 6):
        drive(lg.PullAsked(A, (R,)))
        assert drive(returned(attempt)) == [lg.Tell(Returned(R, 0))]
    drive(lg.PullAsked(A, (R,)))
    assert drive(returned(6, ReturnReason.ENGINE_LOST)) == [lg.Tell(Returned(R, 0))]
    drive(lg.PullAsked(A, (R,)))
    assert record(drive(returned(7, ReturnReason.ENGINE_LOST))).phase is Phase.FAILED


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_cancel_works_in_every_phase(steps: int) -> None:
    drive = Clocked()
    drive.submit()
    if steps >= 1:
        drive(lg.PullAsked(A, (R,)))
    if steps >= 2:
        drive.chunk()
    effects = drive(lg.CancelAsked(R))
    assert (lg.Revoke(A, R, 1) in effects) is (steps > 0)
    assert record(effects).phase is Phase.CANCELLED
    assert drive(lg.CancelAsked(R)) == []


def test_the_solver_sheds_only_what_waits() -> None:
    drive = Clocked()
    drive.submit()
    drive(lg.PullAsked(A, (R,)))
    assert drive(lg.ShedOrdered(R, ShedReason.SATURATED)) == []
    drive(returned(1))
    end = record(drive(lg.ShedOrdered(R, ShedReason.SATURATED)))
    assert (end.phase, end.reason) == (Phase.SHED, "rejected-saturated")


def test_the_time_to_live_ends_in_any_phase() -> None:
    drive = Clocked()
    drive.submit(expires_s=5.0)
    assert drive.ledger.wakeup_s == 5.0
    drive(lg.PullAsked(A, (R,)))
    effects = drive(lg.Woken(), at=5.0)
    assert effects[0] == lg.Revoke(A, R, 1)
    assert record(effects).reason == "rejected-ttl-expired"
    assert drive.ledger.wakeup_s is None


def test_a_solver_hears_everything_on_connection() -> None:
    drive = Clocked()
    drive.submit()
    drive.submit(request=meta("s"))
    drive(lg.PullAsked(A, (R,)))
    drive.chunk(tokens=3)
    facts = [effect.fact for effect in drive(lg.SolverConnected()) if isinstance(effect, lg.Tell)]
    kinds = [type(fact) for fact in facts]
    assert kinds == [Arrived, Pulled, Arrived, AnnounceDone]
    assert isinstance(facts[0], Arrived)
    assert facts[0].request.produced_tokens == 3


def test_what_has_an_estimate_is_announced_as_such() -> None:
    drive = Clocked()
    drive.submit()
    drive.submit(request=meta("s"))
    drive(lg.EstimateCame(R, Estimate(mean_s=1.0, p50_s=1.0, p90_s=2.0, p99_s=3.0)))
    announced = drive(lg.SolverConnected())
    assert announced == [
        lg.Tell(Arrived(meta(), estimated=True)),
        lg.Tell(Arrived(meta("s"))),
        lg.Tell(AnnounceDone()),
    ]


def test_the_first_estimate_is_the_one_on_record() -> None:
    drive = Clocked()
    drive.submit()
    early = Estimate(mean_s=1.0, p50_s=1.0, p90_s=2.0, p99_s=3.0)
    late = Estimate(mean_s=9.0, p50_s=9.0, p90_s=9.0, p99_s=9.0)
    assert drive(lg.EstimateCame(R, early)) == [lg.Estimated(R, early)]
    drive(lg.EstimateCame(R, late))
    assert record(drive(lg.CancelAsked(R))).estimate == early


def test_restored_requests_get_higher_attempt_numbers() -> None:
    drive = Clocked(first_attempt=3 << 16)
    drive.submit()
    assert drive(lg.PullAsked(A, (R,)))[0] == lg.Grant(A, R, 3 << 16, 0)


def test_expiry_entries_of_ended_requests_do_not_pile_up() -> None:
    drive = Clocked()
    for number in range(2_000):
        id = RequestId(f"r{number}")
        drive.submit(request=meta(id))
        drive(lg.CancelAsked(id))
    assert len(drive.ledger._expiries) < 200


def test_an_answer_without_output_is_its_own_first_token() -> None:
    """It ends with its prompt, so that is what was promised, and what estimates learn from."""
    drive = Clocked()
    drive.submit(request=meta(limit=0), resume=Resume.NEVER)
    drive(lg.PullAsked(A, (R,)))
    whole = Chunk(R, 1, b"{}", 0, plain=False, whole=True)
    assert drive(lg.ChunkCame(A, whole), at=3.0) == [lg.Deliver(whole)]
    effects = drive(lg.AttemptFinished(A, AttemptEnded(R, 1, "stop", 9, 0)), at=4.0)
    assert effects[0] == lg.Tell(FirstToken(R, 4.0))
    assert effects[1] == lg.Tell(Ended(R, Phase.FINISHED, 9, 0))
    end = record(effects)
    assert (end.ttft_s, end.tpot_s, end.attained, end.prompt_tokens) == (4.0, None, True, 9)


def test_what_has_no_output_starts_over_though_somebody_waits_for_it() -> None:
    drive = Clocked()
    drive.submit(request=meta(limit=0), resume=Resume.NEVER, watched=True)
    drive(lg.PullAsked(A, (R,)))
    drive(lg.ChunkCame(A, Chunk(R, 1, b"{}", 0, plain=False, whole=True)))
    assert drive(returned(1, ReturnReason.ENGINE_LOST)) == [lg.Tell(Returned(R, 0))]
    assert lg.Grant(B, R, 2, 0) in drive(lg.PullAsked(B, (R,)))
