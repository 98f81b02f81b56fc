"""The engine model against a literal reading of the scheduler, and its own invariants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile
from qlm_core.sim.batch import ContinuousBatch, Outcome, OutcomeKind

SMALL = EngineProfile(
    model="small",
    gpu="test",
    async_scheduling=False,
    iteration=IterationTime(
        base_ms=10.0,
        per_token_ms=0.05,
        per_sequence_ms=0.125,
        per_context_token_ms=0.0007,
        knee_tokens=8,
        per_attention_pair_ms=0.00002,
    ),
    kv_cache_tokens=640,
    max_num_seqs=6,
    max_num_batched_tokens=64,
)
PROFILES = st.sampled_from((SMALL, replace(SMALL, async_scheduling=True)))

requests = st.lists(
    st.tuples(
        st.integers(0, 4_000_000_000),  # arrival, ns
        st.integers(1, 200),  # prompt tokens
        st.integers(1, 200),  # output tokens
        st.integers(0, 2),  # priority
    ),
    min_size=1,
    max_size=24,
)


def drain(engine: ContinuousBatch) -> list[Outcome]:
    outcomes = []
    while (at_s := engine.next_event_s) is not None:
        outcomes += engine.advance(at_s)
    return outcomes


def replay(
    drawn: list[tuple[int, int, int, int]], profile: EngineProfile = SMALL, **options: object
) -> tuple[ContinuousBatch, list[Outcome]]:
    engine = ContinuousBatch(profile, **options)  # type: ignore[arg-type]
    outcomes = []
    for index, (arrival_ns, prompt, output, priority) in enumerate(sorted(drawn)):
        outcomes += engine.advance(arrival_ns / 1e9)
        engine.add(
            f"r{index}",
            prompt_tokens=prompt,
            output_tokens=output,
            priority=priority,
            now_s=arrival_ns / 1e9,
        )
    return engine, outcomes + drain(engine)


@settings(max_examples=150, deadline=None)
@given(drawn=requests, by_priority=st.booleans(), profile=PROFILES)
def test_agrees_with_the_literal_scheduler(
    drawn: list[tuple[int, int, int, int]], by_priority: bool, profile: EngineProfile
) -> None:
    jobs = [
        reference_batch.Job(
            id=f"r{index}",
            arrival_ns=arrival,
            prompt=prompt,
            target=output,
            priority=priority,
            order=index,
        )
        for index, (arrival, prompt, output, priority) in enumerate(sorted(drawn))
    ]
    expected = reference_batch.run(profile, jobs, by_priority=by_priority)
    _, outcomes = replay(
        drawn, profile, policy="priority" if by_priority else "fcfs", prefix_caching=False
    )
    found = [(round(o.at_s * 1e9), o.kind.value, o.request_id, o.output_tokens) for o in outcomes]
    assert sorted(found) == sorted(expected)


@settings(max_examples=100, deadline=None)
@given(drawn=requests, by_priority=st.booleans(), profile=PROFILES)
def test_stretches_change_nothing(
    drawn: list[tuple[int, int, int, int]], by_priority: bool, profile: EngineProfile
) -> None:
    policy = "priority" if by_priority else "fcfs"
    fast, outcomes = replay(drawn, profile, policy=policy)
    slow, expected = replay(drawn, profile, policy=policy, stretches=False)
    assert outcomes == expected
    assert (fast.iterations, fast.busy_s) == (slow.iterations, slow.busy_s)


@settings(max_examples=100, deadline=None)
@given(
    drawn=requests,
    steps=st.lists(st.tuples(st.floats(0.0, 0.7), st.integers(0, 30)), max_size=40),
    profile=PROFILES,
)
def test_no_token_is_lost_and_kv_never_exceeded(
    drawn: list[tuple[int, int, int, int]],
    steps: list[tuple[float, int]],
    profile: EngineProfile,
) -> None:
    """Requests are aborted and resumed at random; each still ends with all its tokens, once."""
    engine = ContinuousBatch(profile, policy="priority")
    wanted = {}
    done: dict[str, int] = {}
    finished: list[str] = []
    now_s = 0.0

    def note(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert outcome.at_s <= now_s
            if outcome.kind is OutcomeKind.FINISHED:
                finished.append(outcome.request_id)
                done[outcome.request_id] += outcome.output_tokens

    for index, (_, prompt, output, priority) in enumerate(drawn):
        name = f"r{index}"
        wanted[name] = (prompt, output, priority)
        done[name] = 0
        engine.add(name, prompt_tokens=prompt, output_tokens=output, priority=priority, now_s=now_s)
    for wait_s, index in steps:
        now_s += wait_s
        note(engine.advance(now_s))
        assert 0 <= engine.kv_used_tokens <= engine.kv_cache_tokens
        assert engine.running <= SMALL.max_num_seqs
        assert len(engine) == engine.running + engine.waiting
        name = f"r{index}"
        if name in engine:
            prompt, output, priority = wanted[name]
            assert engine.produced(name) < output
            done[name] += engine.abort(name, now_s=now_s)
            engine.add(
                name,
                prompt_tokens=prompt + done[name],
                output_tokens=output - done[name],
                priority=priority,
                now_s=now_s,
            )
    while (at_s := engine.next_event_s) is not None:
        now_s = at_s
        note(engine.advance(at_s))
    assert sorted(finished) == sorted(wanted)
    assert done == {name: output for name, (_, output, _) in wanted.items()}
    assert engine.kv_used_tokens == 0
    assert len(engine) == 0


@settings(max_examples=60, deadline=None)
@given(drawn=requests, cuts=st.lists(st.integers(0, 6_000_000_000), max_size=60))
def test_asking_more_often_changes_nothing(
    drawn: list[tuple[int, int, int, int]], cuts: list[int]
) -> None:
    """Calls of advance at any times give the same outcomes, and tokens come in steady order."""
    _, expected = replay(drawn)
    engine = ContinuousBatch(SMALL)
    outcomes: list[Outcome] = []
    seen: dict[str, int] = {}
    arrivals = [(arrival, index) for index, (arrival, *_) in enumerate(sorted(drawn))]
    for at_ns, index in sorted(arrivals + [(cut, -1) for cut in cuts]):
        outcomes += engine.advance(at_ns / 1e9)
        for name, tokens in engine.progress():
            assert tokens >= seen.get(name, 0)
            seen[name] = tokens
        if index >= 0:
            _, prompt, output, priority = sorted(drawn)[index]
            engine.add(
                f"r{index}",
                prompt_tokens=prompt,
                output_tokens=output,
                priority=priority,
                now_s=at_ns / 1e9,
            )
    assert outcomes + drain(engine) == expected


def test_one_request_takes_what_the_profile_says() -> None:
    profile = find_profile("llama-3-8b", "a100")
    engine = ContinuousBatch(profile)
    engine.add("only", prompt_tokens=5000, output_tokens=101, now_s=1.0)
    outcomes = drain(engine)
    assert [outcome.kind for outcome in outcomes] == [
        OutcomeKind.FIRST_TOKEN,
        OutcomeKind.FINISHED,
    ]
    assert outcomes[0].at_s == pytest.approx(1.0 + profile.prefill_s(5000), rel=1e-4)
    decode_s = sum(
        profile.iteration_s(decode_batch=1, context_tokens=5000 + step) for step in range(100)
    )
    assert outcomes[1].at_s - outcomes[0].at_s == pytest.approx(decode_s, rel=1e-4)
    assert engine.busy_s == pytest.approx(outcomes[1].at_s - 1.0, abs=1e-9)


def test_tokens_come_iteration_by_iteration() -> None:
    engine = ContinuousBatch(SMALL)
    engine.add("one", prompt_tokens=8, output_tokens=5, now_s=0.0)
    counts = []
    while (at_s := engine.next_iteration_s) is not None:
        engine.advance(at_s)
        counts += [tokens for _, tokens in engine.progress()]
    assert counts == [1, 2, 3, 4]


def test_priority_preempts_the_least_urgent_and_fcfs_the_last() -> None:
    for policy, victim in (("priority", "low"), ("fcfs", "high")):
        engine = ContinuousBatch(replace(SMALL, max_num_batched_tokens=640), policy=policy)
        engine.add("low", prompt_tokens=300, output_tokens=300, priority=1, now_s=0.0)
        engine.add("high", prompt_tokens=300, output_tokens=300, priority=0, now_s=0.0)
        preempted = [o for o in drain(engine) if o.kind is OutcomeKind.PREEMPTED]
        assert [outcome.request_id for outcome in preempted] == [victim]


def test_a_resumed_request_finds_its_blocks_unless_they_were_overwritten() -> None:
    def first_token_after_resume(rivals: int) -> float:
        engine = ContinuousBatch(SMALL)
        engine.add("evicted", prompt_tokens=320, output_tokens=100, now_s=0.0)
        engine.advance(1.0)
        produced = engine.abort("evicted", now_s=1.0)
        for index in range(rivals):
            engine.add(f"rival{index}", prompt_tokens=300, output_tokens=2, now_s=1.0)
        drain(engine)
        engine.advance(100.0)
        engine.add(
            "evicted", prompt_tokens=320 + produced, output_tokens=100 - produced, now_s=100.0
        )
        at_s = next(o.at_s for o in drain(engine) if o.kind is OutcomeKind.FIRST_TOKEN)
        return at_s - 100.0

    assert first_token_after_resume(0) == pytest.approx(
        SMALL.iteration_s(prefill_tokens=1), rel=0.5
    )
    assert first_token_after_resume(3) > 4 * first_token_after_resume(0)


def test_kv_brought_along_saves_the_prefill() -> None:
    def first_token_s(cached_tokens: int) -> float:
        engine = ContinuousBatch(SMALL)
        engine.add(
            "one", prompt_tokens=400, output_tokens=2, cached_tokens=cached_tokens, now_s=0.0
        )
        return drain(engine)[0].at_s

    assert first_token_s(400) < first_token_s(200) < first_token_s(0)


@pytest.mark.parametrize(
    ("prompt", "output", "field"),
    [(0, 5, "prompt_tokens"), (5, 0, "output_tokens"), (600, 100, "KV cache")],
)
def test_bad_requests_are_refused_and_change_nothing(prompt: int, output: int, field: str) -> None:
    engine = ContinuousBatch(SMALL)
    with pytest.raises(ValueError, match=field):
        engine.add("bad", prompt_tokens=prompt, output_tokens=output, now_s=0.0)
    assert len(engine) == 0
    assert engine.next_event_s is None


def test_unknown_twice_and_backwards_are_refused() -> None:
    engine = ContinuousBatch(SMALL)
    engine.add("one", prompt_tokens=5, output_tokens=5, now_s=1.0)
    with pytest.raises(ValueError, match="already"):
        engine.add("one", prompt_tokens=5, output_tokens=5, now_s=1.0)
    with pytest.raises(KeyError):
        engine.abort("two", now_s=1.0)
    with pytest.raises(ValueError, match="before"):
        engine.advance(0.5)
