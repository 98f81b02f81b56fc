"""`qlm plan` as people and scripts use it."""

import argparse
import json
from pathlib import Path

import pytest

from qlm.commands import plan as command
from qlm_core.planning import check, evaluate, greedy, to_instance
from tests.planning.problems import random_problem


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *map(str, arguments)])
    return command.run(args)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for seed in (1, 2):
        path = tmp_path / f"p{seed}.json"
        body = to_instance(random_problem(seed, groups=6))
        path.write_text(json.dumps({"problem": body} if seed == 1 else body))
        made.append(path)
    return made


def test_one_json_object_a_file(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files, "--backend", "auto", "--budget", 0.3, "--seed", 7, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["random-1", "random-2"]
    for seed, line in zip((1, 2), lines, strict=True):
        problem = random_problem(seed, groups=6)
        plan = tuple(tuple(queue) for queue in line["plan"])
        assert check(problem, plan) is None
        assert line["objective"] == pytest.approx(evaluate(problem, plan).objective)
        assert line["lower_bound"] <= line["objective"] * (1 + 1e-9)
        assert line["gap"] == pytest.approx(
            (line["objective"] - line["lower_bound"]) / line["objective"], abs=1e-9
        )
        assert line["backend"] == "auto"
        assert line["status"] in ("optimal", "limit")
        assert line["history"][-1][1] == pytest.approx(line["objective"])
        assert line["wall_s"] > 0
        assert line["setup_s"] > 0


def test_plain_text_and_warm_starts(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = random_problem(1, groups=6)
    start = [list(queue) for queue in greedy(problem)]
    for number, document in enumerate((start, {"plan": start}, {"best": {"plan": start}})):
        warm = tmp_path / f"warm{number}.json"
        warm.write_text(json.dumps(document))
        assert run(files[0], "--backend", "greedy", "--warm", warm) == 0
        out = capsys.readouterr().out
        assert f"objective {evaluate(problem, greedy(problem)).objective:.4f}" in out
        assert "queue 0: " in out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"problem": {"model": []}}', "missing"),
    ],
)
def test_bad_files_cost_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    assert run(path) == 2
    error = capsys.readouterr().err
    assert says in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_bad_options_cost_one_line(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files[0], "--budget", 0) == 2
    assert run(files[0], "--warm", files[0]) == 2
    assert capsys.readouterr().err.count("\n") == 2
