"""Beds drawn from a seed: the same each time, valid, within what is promised, and of all the kinds that there are to be."""

from __future__ import annotations

from random import Random
from typing import Any, get_args

import pytest

from qlm_core.profile import EngineProfile
from qlm_core.sim.beds import REQUESTS_MAX, DrawnBed, draw_bed
from qlm_core.sim.lengths import LengthsName, mean_lengths, sample_lengths
from qlm_core.sim.scenario import instances, requests, scenario_from_mapping
from tests.simulator.beds import scenario

DRAWN = 80


@pytest.fixture(scope="module")
def beds() -> list[DrawnBed]:
    return [draw_bed(3, index) for index in range(DRAWN)]


def test_a_bed_depends_on_its_seed_and_number_alone(beds: list[DrawnBed]) -> None:
    assert draw_bed(3, 17) == beds[17]
    assert draw_bed(4, 17).scenario["fleet"] != beds[17].scenario["fleet"]
    drawn = [(one.scenario["fleet"], one.scenario["slo_classes"]) for one in beds]
    assert all(one not in drawn[:place] for place, one in enumerate(drawn))
    assert len(dict.fromkeys(one.run_seed for one in beds)) == DRAWN


def test_every_bed_is_a_scenario_with_requests_enough(beds: list[DrawnBed]) -> None:
    for bed in beds:
        drawn = scenario(bed.scenario)
        arrivals = list(requests(drawn, seed=bed.run_seed))
        assert 20 <= len(arrivals) <= REQUESTS_MAX
        assert 1 <= len(instances(drawn.fleet)) <= 6
        assert 1 <= len(dict.fromkeys(part.gpu for part in drawn.fleet)) <= 3
        served = dict.fromkeys(model for part in drawn.fleet for model in part.models)
        assert 1 <= len(served) <= 6
        assert 2 <= len(drawn.slo_classes) <= 4
        assert all(0.3 <= one.ttft_s <= 3600 for one in drawn.slo_classes.values())


def test_all_kinds_are_drawn(beds: list[DrawnBed]) -> None:
    counts: dict[str, int] = {}
    for bed in beds:
        assert len(bed.kinds) == len(dict.fromkeys(bed.kinds))
        for kind in bed.kinds:
            counts[kind] = counts.get(kind, 0) + 1
    wanted = ["one model", "models apart", "models shared", "models in turn"]
    wanted += ["tight first tokens", "no tight first token", "promised pace", "promised end"]
    wanted += ["pace of lax work"]
    wanted += ["load below 0.7", "load 0.7 to 1", "load above 1"]
    wanted += ["steady", "bursty", "ramping", "trace-like"]
    wanted += [f"with {use}" for use in ("chat", "brief", "code", "rag", "mega", "reasoning")]
    assert sorted(counts) == sorted(wanted)
    assert min(counts.values()) >= 3


def test_the_load_is_what_the_bed_says() -> None:
    """Work of what arrives over what the instances do meanwhile, on steady beds with one model, where that is a sum."""
    found = 0
    for index in range(120):
        bed = draw_bed(5, index)
        if "one model" not in bed.kinds or "steady" not in bed.kinds:
            continue
        found += 1
        stated = float(bed.scenario["about"].split("load ")[1].split(";")[0])
        assert offered(bed.scenario) == pytest.approx(stated, rel=0.02)
    assert found >= 3


def offered(data: dict[str, Any]) -> float:
    specs = instances(scenario_from_mapping(data, "test").fleet)
    profiles: list[EngineProfile] = [spec.profiles[0] for spec in specs]
    work_s = 0.0
    for stream in data["workload"]["streams"]:
        prompt, output = mean_lengths(stream["lengths"])
        each_s = [output / one.decode_throughput(prompt, output) for one in profiles]
        work_s += stream["rate_rps"] * sum(each_s) / len(each_s)
    return work_s / len(profiles)


@pytest.mark.parametrize("name", get_args(LengthsName))
def test_lengths_have_the_means_that_loads_are_made_from(name: LengthsName) -> None:
    rng = Random("lengths")
    drawn = [sample_lengths(name, rng) for _ in range(20_000)]
    means = [sum(one[place] for one in drawn) / len(drawn) for place in (0, 1)]
    assert means == pytest.approx(mean_lengths(name), rel=0.03)
