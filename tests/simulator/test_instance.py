"""One instance: the tiers of its models under a memory limit, and the KV cache that evicted requests left with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.model import ModelTier
from qlm_core.profile_catalog import find_profile
from qlm_core.sim.instance import EngineOptions, Instance
from qlm_core.sim.scenario import InstanceSpec

PROFILES = tuple(
    replace(find_profile("mistral-7b", "a100"), model=f"mistral-7b-ft{number}")
    for number in (1, 2, 3)
)
AWAKE, SECOND, THIRD = (profile.model for profile in PROFILES)
WEIGHTS = PROFILES[0].weights_bytes


def instance(host_memory_bytes: int, **options: bool) -> Instance:
    spec = InstanceSpec(
        name="a100-000",
        gpu="a100",
        profiles=PROFILES,
        awake=AWAKE,
        host_memory_bytes=host_memory_bytes,
    )
    return Instance(spec, EngineOptions(**options))


def tiers(one: Instance) -> list[ModelTier]:
    return [tier for _, tier in one.tiers]


A, S, C = ModelTier.AWAKE, ModelTier.ASLEEP, ModelTier.COLD


@pytest.mark.parametrize(
    ("memory", "expected"), [(2 * WEIGHTS, [A, S, S]), (WEIGHTS, [A, C, S]), (0, [A, C, C])]
)
def test_models_sleep_as_far_as_host_memory_goes(memory: int, expected: list[ModelTier]) -> None:
    assert tiers(instance(memory)) == expected


def test_a_swap_costs_sleep_and_wake_or_a_cold_start() -> None:
    one, profile = instance(2 * WEIGHTS), PROFILES[0]
    assert one.begin_swap(SECOND) == pytest.approx(profile.sleep_s + profile.wake_s)
    one.end_swap(SECOND)
    assert tiers(one) == [S, A, S]
    cold = instance(0)
    assert cold.begin_swap(SECOND) == pytest.approx(profile.sleep_s + profile.cold_s)
    assert cold.swaps == 1


def test_what_is_expected_next_is_kept_and_brought_into_memory() -> None:
    one = instance(WEIGHTS)
    assert one.expect((THIRD, SECOND)) == SECOND
    assert one.load_s(SECOND) == pytest.approx(PROFILES[1].cold_s - PROFILES[1].wake_s)
    # The third is expected as well, so it keeps its place and there is no room.
    assert not one.loaded(SECOND)
    assert one.expect((SECOND,)) == SECOND
    assert one.loaded(SECOND)
    assert tiers(one) == [A, S, C]


def test_without_warm_starts_everything_is_cold() -> None:
    one = instance(4 * WEIGHTS, warm_start=False)
    assert tiers(one) == [A, C, C]
    assert one.expect((SECOND,)) is None


def evicted(one: Instance) -> float:
    """Run a request for a while and take it off; returns the time by then."""
    one.take("r", attempt=1, prompt_tokens=1000, output_tokens=500)
    one.start("r", 1, 0, 0.0)
    one.advance(4.0)
    produced = one.abort("r", 4.0)
    assert 100 < produced < 500
    one.take("r", attempt=2, prompt_tokens=1000 + produced, output_tokens=500 - produced)
    return 4.0


def restored_ttft_s(one: Instance) -> float:
    start_s = evicted(one) + one.restore_s("r")
    # Others take the blocks in between, so that the engine's own prefix cache is of no help.
    capacity = one.engine.kv_cache_tokens
    one.engine.add("other", prompt_tokens=capacity - 8, output_tokens=1, now_s=start_s)
    while one.engine.next_event_s is not None:
        start_s = max(start_s, one.engine.next_event_s)
        one.advance(start_s)
    one.start("r", 2, 0, start_s)
    [first] = one.advance(start_s + 1.0)[:1]
    return first.at_s - start_s


def test_an_evicted_requests_kv_cache_comes_back_from_host_memory() -> None:
    """Copying it back takes time, computing it again takes more."""
    kept, lost = instance(3 * WEIGHTS), instance(3 * WEIGHTS, kv_swap=False)
    assert restored_ttft_s(kept) < 0.5 * restored_ttft_s(lost)
    fresh = instance(3 * WEIGHTS)
    evicted(fresh)
    bytes_kept = (1000 + 100) * PROFILES[0].kv_bytes_per_token
    assert fresh.restore_s("r") > bytes_kept / 30e9


def test_of_a_request_that_comes_back_the_engines_share_is_computed_again() -> None:
    """Whoever took it off; of a fresh one of that length, all of it."""
    profile = replace(PROFILES[0], resume_share=0.1)
    first_s = []
    for resumed in (False, True):
        one = instance(0)
        one = Instance(replace(one.spec, profiles=(profile,)), EngineOptions(kv_swap=False))
        one.take("r", attempt=2, prompt_tokens=2000, output_tokens=5, resumed=resumed)
        one.start("r", 2, 0, 0.0)
        first_s.append(one.advance(5.0)[0].at_s)
    assert first_s[1] < 0.5 * first_s[0]


def test_no_kv_cache_is_kept_beyond_host_memory() -> None:
    full = instance(2 * WEIGHTS)
    evicted(full)
    assert full.restore_s("r") == 0.0


def test_kept_kv_cache_outlives_a_swap_where_memory_holds_both() -> None:
    one = instance(2 * WEIGHTS + 10_000 * PROFILES[0].kv_bytes_per_token)
    evicted(one)
    assert one.restore_s("r") > 0.0
    one.begin_swap(SECOND)
    one.end_swap(SECOND)
    assert tiers(one) == [S, A, S]
    assert one.restore_s("r") > 0.0


def test_kept_kv_cache_is_not_given_up_in_vain() -> None:
    """The model that is put to sleep would not fit even without the cache, since the one that sleeps is expected."""
    one = instance(WEIGHTS + 10_000 * PROFILES[0].kv_bytes_per_token)
    assert tiers(one) == [A, C, S]
    evicted(one)
    one.expect((THIRD,))
    one.begin_swap(SECOND)
    one.end_swap(SECOND)
    assert tiers(one) == [C, A, S]
    assert one.restore_s("r") > 0.0
