"""Advice is checked by adding the instance: the simulator shows what the solver said of it."""

from benchmarks.advice import Burst, line, measure

BURST = Burst(
    name="a burst", gpu="a10", models=("mistral-7b",), instances=1, requests=400, ttft_s=15.0
)


def test_an_instance_that_is_said_to_help_does_and_as_many_as_are_needed_are_enough() -> None:
    found = measure(BURST, seed=0)
    told, came = found["told"], found["came"]
    # Late work is foreseen, and it comes; with one more both are less.
    assert told["before"]["expected_late"] > 0
    assert came["1"]["late"] > 0
    assert told["after"]["expected_late"] < told["before"]["expected_late"]
    assert came["2"]["late"] < came["1"]["late"]
    assert told["after"]["wait_mean_s"] < told["before"]["wait_mean_s"]
    assert came["2"]["wait_mean_s"] < came["1"]["wait_mean_s"]
    # One less than needed is too few, and with what is needed the target is kept.
    needed = found["needed"]
    assert needed > BURST.instances
    assert came[str(needed - 1)]["late"] > 0.01 * BURST.requests
    assert came[str(needed)]["late"] <= 0.01 * BURST.requests
    assert f"{needed} needed" in line(found)
