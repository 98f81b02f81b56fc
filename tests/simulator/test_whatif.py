"""`qlm whatif` with a file: the same workload on the fleet as it is and as it would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlm.__main__ import main
from qlm.what_ifs import changed, changes_of
from qlm_core.errors import ConfigError
from tests.simulator.beds import one_model, scenario

Told = pytest.CaptureFixture[str]


def bed(folder: Path, *, count: int = 1) -> str:
    path = folder / "bed.yaml"
    data = one_model(rate=12.0, count=count)
    path.write_text(json.dumps(data))
    return str(path)


def asked(capsys: Told, *arguments: str) -> dict[str, Any]:
    assert main(["whatif", *arguments, "--json", "--jobs", "1"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_another_instance_helps_a_scenario_and_one_less_does_not(
    tmp_path: Path, capsys: Told
) -> None:
    more = asked(capsys, bed(tmp_path, count=1), "--add", "a10=2")
    assert (more["before"]["instances"], more["after"]["instances"]) == ({"a10": 1}, {"a10": 3})
    assert more["after"]["attainment"] >= more["before"]["attainment"]
    waits = [
        [one["ttft_p90_s"] for one in more[side]["classes"].values()]
        for side in ("before", "after")
    ]
    assert sum(waits[1]) < sum(waits[0])
    fewer = asked(capsys, bed(tmp_path, count=3), "--remove", "a10=2")
    assert fewer["after"]["classes"] == more["before"]["classes"]
    assert fewer["before"]["classes"] == more["after"]["classes"]


def test_a_log_is_simulated_on_the_fleet_that_is_named(tmp_path: Path, capsys: Told) -> None:
    log = tmp_path / "log.csv"
    rows = "".join(f"{number / 20},200,50\n" for number in range(40))
    log.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    fleet = bed(tmp_path)
    told = asked(
        capsys,
        str(log),
        "--fleet",
        fleet,
        "--mix",
        "interactive=1",
        "--limit",
        "30",
        "--add",
        "a10=1",
    )
    assert told["before"]["classes"]["interactive"]["requests"] == 30
    assert told["after"]["instances"] == {"a10": 2}


def test_people_see_a_table(tmp_path: Path, capsys: Told) -> None:
    assert main(["whatif", bed(tmp_path), "--add", "a10=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split() for line in lines if "a10" in line) == ["a10", "1", "2"]
    assert any("attained" in line for line in lines)


def test_fleets_change_as_they_are_told() -> None:
    plain = scenario(one_model(count=2))
    grown = changed(plain, {"a10": 1})
    assert [(part.gpu, part.count) for part in grown.fleet] == [("a10", 3)]
    mixed = changed(plain, {"a100": 2, "a10": -1})
    assert [(part.gpu, part.count) for part in mixed.fleet] == [("a10", 1), ("a100", 2)]
    assert mixed.fleet[1].models == plain.fleet[0].models
    assert [(part.gpu, part.count) for part in changed(mixed, {"a10": -1}).fleet] == [("a100", 2)]
    for changes, words in (
        ({"a10": -2}, "no instance is left"),
        ({"a10": -3}, "there are 2"),
        ({"a101": 1}, "Did you mean"),
    ):
        with pytest.raises(ConfigError, match=words):
            changed(plain, changes)


@pytest.mark.parametrize(
    ("add", "remove", "words"),
    [
        (["a100"], [], "not GPU=N"),
        (["a100=0"], [], "not GPU=N"),
        (["a100=x"], [], "not GPU=N"),
        (["=1"], [], "not GPU=N"),
        (["a100=1"], ["a100=1"], "named twice"),
        ([], [], "nothing is to change"),
    ],
)
def test_what_is_no_change_is_refused(add: list[str], remove: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        changes_of(add, remove)


def test_changes_are_read() -> None:
    assert changes_of(["a100=1, a10=2"], ["h100=3"]) == {"a100": 1, "a10": 2, "h100": -3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--add", "a10=1", "--limit", "3"], "--limit is for a file"),
        (["bed.yaml", "--add", "a10=1", "--mix", "interactive=1"], "--mix is for a trace"),
        (["log.csv", "--add", "a10=1", "--limit", "0"], "out of range"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    arguments: list[str], words: str, capsys: Told
) -> None:
    assert main(["whatif", *arguments]) == 2
    assert words in capsys.readouterr().err
