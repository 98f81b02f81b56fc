"""Models that take turns: how long a turn is, what is cut at its end, and who takes which model of several instances."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from qlm_core.profile_catalog import find_profile
from tests.simulator.beds import SIMULATION, figures, simulate

MODELS = ("llama-3-8b", "mistral-7b", "vicuna-13b")


def shared(*, count: int = 1, tool_s: float = 30.0, rate: float = 3.0) -> dict[str, Any]:
    """Three models on H100s: tool calls with a target, beside batch work that keeps everybody busy."""
    mix = dict.fromkeys(MODELS, 1)
    return {
        "name": "shared",
        "fleet": [{"gpu": "h100", "models": list(MODELS), "count": count}],
        "slo_classes": {
            "tool": {"ttft_s": tool_s, "weight": 2},
            "batch": {"ttft_s": 1800, "weight": 1},
        },
        "workload": {
            "kind": "streams",
            "streams": [
                {"slo_class": "tool", "models": mix, "rate_rps": rate, "until_s": 60},
                {"slo_class": "batch", "models": mix, "rate_rps": 2 * rate, "until_s": 60},
            ],
        },
        "simulation": SIMULATION,
    }


def swaps(trace: list[str]) -> list[tuple[float, str, str]]:
    """(s, instance, model) of each swap, in order."""
    lines = [line.split() for line in trace]
    return [(float(one[0]), one[2], one[3]) for one in lines if one[1] == "swap"]


@pytest.mark.parametrize("turn_s", [3, 9])
def test_a_turn_lasts_as_long_as_it_is_to_while_others_wait(turn_s: int) -> None:
    _, trace = simulate(shared(), f"turns-{turn_s}")
    found = [one for one in swaps(trace) if one[0] < 60.0]
    assert len(found) > 60 / (turn_s + 4)
    for (start_s, _, model), (next_s, _, _) in pairwise(found):
        profile = find_profile(model, "h100")
        longest_s = max(find_profile(one, "h100").sleep_s for one in MODELS)
        # To sleep, awake, the turn, and a cut that leaves a fifth of a second.
        assert (
            turn_s + profile.wake_s < next_s - start_s < turn_s + profile.wake_s + longest_s + 0.3
        )


def test_no_model_waits_for_more_than_the_turns_of_the_others() -> None:
    _, trace = simulate(shared(), "turns-3")
    models = [model for at_s, _, model in swaps(trace) if at_s < 60.0]
    for first, second, third in zip(models, models[1:], models[2:], strict=False):
        assert len(dict.fromkeys((first, second, third))) == 3


def test_what_is_cut_goes_on_in_a_later_turn() -> None:
    record, trace = simulate(shared(), "turns-3")
    assert record.evictions > 0
    assert list(record.finished) == [1] * len(record.finished)
    cut = [line.split()[3] for line in trace if line.split()[1] == "evict"]
    # Some are cut more often than an executor would evict them for another request.
    assert max(cut.count(id) for id in dict.fromkeys(cut)) > 4


def test_turns_keep_targets_that_deadlines_alone_miss() -> None:
    turns, deadlines = (figures(shared(), policy)["classes"] for policy in ("turns-6", "edf"))
    assert turns["tool"]["attainment"] > 0.9
    assert deadlines["tool"]["attainment"] < 0.5


def test_turns_that_adapt_are_shorter_for_a_tighter_target() -> None:
    tight, lax = (figures(shared(tool_s=target_s), "turns")["swaps"] for target_s in (25.0, 200.0))
    assert tight > lax > 0


def test_two_instances_do_not_give_one_model_a_turn_while_another_waits() -> None:
    _, trace = simulate(shared(count=2, rate=5.0), "turns-6")
    awake = {"h100-000": MODELS[0], "h100-001": MODELS[1]}
    taken = [one for one in swaps(trace) if one[0] < 60.0]
    assert len(taken) > 6
    for (at_s, agent, model), (next_s, _, _) in pairwise(taken):
        awake[agent] = model
        # At first there is little to do, and an idle instance takes whatever waits. Later, one may leave a model within
        # half a second of the other's taking it.
        if at_s > 1.0 and next_s - at_s > 0.5:
            assert len(dict.fromkeys(awake.values())) == 2
