"""The paper's evaluation: beds that hold together, and the two estimators side by side."""

from __future__ import annotations

import pytest

from benchmarks.paper import Experiment, experiments
from benchmarks.paper_waits import Accuracy, of_queue
from qlm_core.sim.policies import REMOVABLE, policy_named
from qlm_core.sim.scenario import scenario_from_mapping


@pytest.mark.parametrize("experiment", [*experiments(quick=True), *experiments(quick=False)])
def test_every_point_is_a_scenario_and_a_known_policy(experiment: Experiment) -> None:
    for point in experiment.points:
        scenario = scenario_from_mapping({"name": experiment.name} | point.bed, experiment.name)
        assert scenario.fleet
        for name in point.policies:
            assert policy_named(name).name == name
        assert all(one in ("", *REMOVABLE) for one in point.without)
    at = [point.at for point in experiment.points]
    assert at == sorted(dict.fromkeys(at))


@pytest.fixture(scope="module")
def four_groups() -> Accuracy:
    return of_queue("mistral-7b", 4, 1)


def test_waits_of_a_queue_of_four_groups_are_foretold(four_groups: Accuracy) -> None:
    assert four_groups.requests == 2000
    assert four_groups.r2 is not None
    assert four_groups.r2 > 0.97


def test_ours_beats_the_papers_estimator(four_groups: Accuracy) -> None:
    assert four_groups.r2 is not None
    assert four_groups.paper_r2 is not None
    assert four_groups.r2 > four_groups.paper_r2
    assert four_groups.mape < four_groups.paper_mape
