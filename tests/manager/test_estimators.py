"""What the Manager learns of engines from their reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.config import RwtConfig
from qlm_core.grouping import GroupKey
from qlm_core.manager.estimators import Estimators
from qlm_core.model import (
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    RequestId,
    RequestMeta,
    RunningRequest,
    Slo,
)
from tests.manager.conftest import Bench, profile

BATCH = 20


def report(*, iterations_per_s: float, prompt_tokens_per_s: float) -> InstanceState:
    """A steady batch."""
    return InstanceState(
        ready=True,
        awake_model=ModelName("m"),
        running=tuple(
            RunningRequest(id=RequestId(f"r{n}"), group=GroupId(1), produced_tokens=10)
            for n in range(BATCH)
        ),
        kv_used_tokens=5_000,
        tokens_per_s=BATCH * iterations_per_s,
        prompt_tokens_per_s=prompt_tokens_per_s,
        mean_batch=float(BATCH),
    )


@pytest.mark.parametrize("prompts", [0.0, 50.0, 400.0])
@pytest.mark.parametrize("speed", [0.5, 1.0, 1.5])
def test_speed_is_told_apart_from_the_load_of_prompts(speed: float, prompts: float) -> None:
    """A young batch reads many prompts and a draining one none: neither says anything of the engine."""
    iteration_s = profile("m").iteration_s(
        prefill_tokens=prompts, decode_batch=BATCH, context_tokens=5_000
    )
    iterations_per_s = speed / iteration_s
    state = report(
        iterations_per_s=iterations_per_s, prompt_tokens_per_s=prompts * iterations_per_s
    )
    estimators = Estimators(RwtConfig())
    for _ in range(1000):
        estimators.reported("test", profile("m"), state)
    assert estimators.speeds["test", "m"] == pytest.approx(speed, rel=0.01)


@pytest.mark.parametrize("prompts", [0.0, 40.0, 800.0])
def test_a_first_token_waits_for_the_prompts_of_others_too(prompts: float) -> None:
    """By the iterations that the engine reported: half of one, another that is chosen already, and its own."""
    engine = profile("m")
    iteration_s = engine.iteration_s(
        prefill_tokens=prompts, decode_batch=BATCH, context_tokens=5_000
    )
    state = report(iterations_per_s=1 / iteration_s, prompt_tokens_per_s=prompts / iteration_s)

    def first_token_s(*, behind_prompts: bool) -> float:
        return Estimators(RwtConfig()).first_token_s(
            engine, 100, batch=BATCH, state=state, behind_prompts=behind_prompts
        )

    own_s = engine.prefill_s(100) - engine.iteration_s()
    assert first_token_s(behind_prompts=False) == pytest.approx(own_s + 2.5 * iteration_s, rel=0.02)
    quiet_s = engine.iteration_s(decode_batch=BATCH, context_tokens=5_000)
    assert first_token_s(behind_prompts=True) == pytest.approx(own_s + 2.5 * quiet_s, rel=0.02)


def test_an_interval_in_which_outputs_were_resumed_says_nothing_of_speed() -> None:
    """Whether the engine computed them again or found them in its cache is not known."""
    estimators = Estimators(RwtConfig())
    slow = report(iterations_per_s=10.0, prompt_tokens_per_s=0.0)
    estimators.reported("test", profile("m"), replace(slow, resumed_tokens_per_s=500.0))
    assert estimators.speeds == {}
    estimators.reported("test", profile("m"), slow)
    assert estimators.speeds["test", "m"] < 1.0


def test_a_throughput_that_was_configured_makes_one_profile_of_equal_ones() -> None:
    estimators = Estimators(RwtConfig(token_throughput={"m": 500.0}))
    planned = estimators.profile(profile("m"))
    assert planned is estimators.profile(profile("m"))
    assert planned.iteration.per_sequence_ms == 2.0


def alone(id: str, *, prompt: int = 400) -> RequestMeta:
    """A request that ends with its prompt."""
    return RequestMeta(
        id=RequestId(id),
        gateway=GatewayId("g"),
        model=ModelName("m"),
        slo_class="interactive",
        slo=Slo(ttft_s=20.0),
        prompt_tokens=prompt,
        max_output_tokens=0,
        arrival_s=0.0,
    )


def test_what_ends_with_its_prompt_is_planned_by_that_alone() -> None:
    """Whatever is thought of outputs: as many together as a batch of tokens has room for, and then the next."""
    engine = profile("m")
    paces = []
    for prior in (50, 5_000):
        estimators = Estimators(RwtConfig(prior_output_tokens=prior))
        for number in range(20):
            estimators.arrived(alone(f"r{number}"))
        key = GroupKey.of(alone("x"))
        paces.append(estimators.rate(engine, key, now_s=0.0).seconds_per_request)
        assert estimators.expected_output(alone("x")) == 1
    assert paces[0] == paces[1]
    together = engine.max_num_batched_tokens / 400
    computed_s = engine.prefill_s(engine.max_num_batched_tokens)
    assert paces[0] == pytest.approx(computed_s / together, rel=0.35)


def test_a_model_that_generates_nothing_is_known_for_it() -> None:
    """What is planned for a model in general follows what it does."""
    estimators = Estimators(RwtConfig())
    before_s = estimators.rate(profile("m"), None, now_s=0.0).residence_s
    for number in range(200):
        estimators.finished(alone(f"r{number}"), 0, 0)
    assert estimators.rate(profile("m"), None, now_s=9.0).residence_s < 0.1 * before_s
    # Another kind of request in the same class learns nothing from it.
    assert estimators.lengths(ModelName("m"), "interactive").ended == 0.0


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_shows_in_prompts_where_nothing_is_generated(speed: float) -> None:
    estimators = Estimators(RwtConfig())
    estimators.arrived(alone("a", prompt=100))
    tokens = min(BATCH * 100, profile("m").max_num_batched_tokens)
    per_s = speed * tokens / profile("m").iteration_s(prefill_tokens=tokens)
    state = report(iterations_per_s=0.0, prompt_tokens_per_s=per_s)
    for _ in range(1000):
        estimators.reported("test", profile("m"), state)
    assert estimators.speeds["test", "m"] == pytest.approx(speed, rel=0.01)
    idle = report(iterations_per_s=0.0, prompt_tokens_per_s=0.0)
    estimators.reported("test", profile("m"), idle)
    assert estimators.speeds["test", "m"] == pytest.approx(speed, rel=0.01)


def key(tpot_s: float | None) -> GroupKey:
    request = RequestMeta(
        id=RequestId("a"),
        gateway=GatewayId("g"),
        model=ModelName("m"),
        slo_class="chat",
        slo=Slo(ttft_s=600.0, tpot_s=tpot_s),
        prompt_tokens=100,
        max_output_tokens=4096,
        arrival_s=0.0,
    )
    return GroupKey.of(request)


def test_a_promised_pace_is_planned_with_the_batch_that_keeps_it() -> None:
    estimators = Estimators(RwtConfig())
    free, paced = (
        estimators.rate(profile("m"), key(tpot_s), now_s=0.0) for tpot_s in (None, 0.0145)
    )
    assert 1 <= paced.batch < free.batch
    iteration_s = paced.seconds_per_token * paced.batch
    assert iteration_s <= 0.0145
    assert paced.seconds_per_request > free.seconds_per_request


def test_a_pace_that_every_batch_keeps_changes_nothing() -> None:
    estimators = Estimators(RwtConfig())
    free, paced = (estimators.rate(profile("m"), key(tpot_s), now_s=0.0) for tpot_s in (None, 10.0))
    assert paced.batch == free.batch


def test_an_interval_in_which_the_batch_changed_says_nothing_of_speed() -> None:
    steady = report(iterations_per_s=10.0, prompt_tokens_per_s=0.0)
    draining = replace(steady, running=steady.running[: BATCH // 2])
    for state, learned in ((draining, False), (steady, True)):
        estimators = Estimators(RwtConfig())
        for _ in range(50):
            estimators.reported("test", profile("m"), state)
        assert (abs(estimators.speeds.get(("test", "m"), 1.0) - 1.0) > 0.05) == learned


def test_a_pace_is_known_the_better_the_more_requests_have_ended(bench: Bench) -> None:
    estimators = Estimators(RwtConfig())
    request = bench.request("m")
    known = []
    for ended in (0, 10, 190):
        for number in range(ended):
            estimators.arrived(request)
            estimators.finished(request, 50 if number % 2 else 200, 0)
        key = GroupKey.of(request)
        # Rates are kept for a second.
        rate = estimators.rate(profile("m"), key, now_s=2.0 + 2.0 * len(known))
        known.append(rate.uncertainty)
    assert known[0] > 0.3
    assert known[0] > 1.3 * known[1] > 1.3 * 1.3 * known[2] > 0.0
