"""Whole runs in which one model is asked for more than the instances that have it awake can take."""

from __future__ import annotations

from qlm.rules import rule_named
from qlm.rules.registry import taken_out
from tests.simulator.beds import popular, simulate


def swaps(trace: list[str]) -> list[str]:
    """The models that were woken, in order."""
    return [line.split()[3] for line in trace if line.split()[1] == "swap"]


def test_a_popular_model_gets_a_second_instance_and_keeps_its_targets() -> None:
    record, trace = simulate(popular(), "qlm", seed=1)
    with taken_out(rule_named("spread-popular-models")):
        without, trace_without = simulate(popular(), "qlm", seed=1)
    assert "mistral-7b-ft2" in swaps(trace)
    assert "mistral-7b-ft2" not in swaps(trace_without)
    assert sum(record.finished) == sum(without.finished) == len(record.attained)
    assert sum(record.attained) > sum(without.attained)
