"""Runs under faults: none goes wrong in 200 seeds, a seed is the same run each time, failures are made short and repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qlm.__main__ import main
from qlm_core.errors import ConfigError
from qlm_core.executor.machine import Executor
from qlm_core.ledger.machine import Ledger
from qlm_core.sim.faults.drawing import draw
from qlm_core.sim.faults.run import run
from qlm_core.sim.faults.schedule import FaultKind, Lie, from_text, to_text
from qlm_core.sim.faults.shrink import shrink
from qlm_core.sim.faults.tokens import Span, Text

Told = pytest.CaptureFixture[str]

BLOCKS = [range(first, first + 25) for first in range(0, 200, 25)]


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop}")
def test_all_comes_right_whatever_goes_wrong(seeds: range) -> None:
    failures = {seed: failure for seed in seeds if (failure := run(draw(seed)).failure)}
    assert failures == {}, "see them with: qlm sim faults --seed N"


def test_every_kind_of_fault_and_lie_is_drawn() -> None:
    faults = [fault for seed in range(200) for fault in draw(seed).faults]
    assert {fault.kind for fault in faults} == set(FaultKind)
    assert {fault.lie for fault in faults} == set(Lie)


def test_a_seed_is_the_same_run_under_any_hash_seed() -> None:
    program = (
        "from qlm_core.sim.faults.run import run; from qlm_core.sim.faults.drawing import draw\n"
        "for seed in (3, 14, 47): print(run(draw(seed), trace=print))"
    )
    traces = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    ]
    assert traces[0].count(b"\n") > 1000
    assert traces[0] == traces[1] == traces[2]


def test_a_schedule_is_read_back_as_it_was_written() -> None:
    for seed in range(30):
        assert from_text(to_text(draw(seed)), "x") == draw(seed)


def test_a_schedule_that_cannot_be_read_is_named_with_its_line() -> None:
    lines = to_text(draw(1)).splitlines()
    lines[4] = lines[4].replace('"at_s"', '"when"')
    with pytest.raises(ConfigError, match=r"bad\.txt: line 5"):
        from_text("\n".join(lines), "bad.txt")
    with pytest.raises(ConfigError, match="line 1"):
        from_text("", "bad.txt")


def test_a_text_shows_gaps_repeats_and_mixtures() -> None:
    flaws = []
    for spans in (
        (Span(1, 0, 3), Span(1, 3, 2)),
        (Span(1, 0, 3), Span(1, 4, 2)),
        (Span(1, 0, 3), Span(1, 2, 2)),
        (Span(1, 0, 3), Span(2, 3, 2)),
        (Span(1, 1, 3),),
    ):
        text = Text()
        for span in spans:
            text.add(Span.decode(span.encode()))
        flaws.append(text.flaw.split(":")[0])
    assert flaws[0] == ""
    assert [flaw.split()[0] for flaw in flaws[1:]] == ["tokens", "tokens", "token", "tokens"]


@pytest.fixture
def cancelled_work_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "_on_revoked", lambda self, event: False)


def first_failing() -> int:
    return next(seed for seed in range(100) if run(draw(seed)).failure)


@pytest.mark.usefixtures("cancelled_work_runs_on")
def test_a_failure_is_made_short() -> None:
    schedule = draw(first_failing())
    failure = run(schedule).failure
    assert failure is not None
    short, outcome = shrink(schedule, failure.checker)
    assert outcome.failure is not None
    assert outcome.failure.checker == failure.checker
    # A client that cancels, and little else.
    assert len(short.faults) == 0
    assert len(short.asks) <= 5
    assert run(short) == outcome


@pytest.mark.usefixtures("cancelled_work_runs_on")
def test_the_command_names_the_seed_and_repeats_it(tmp_path: Path, capsys: Told) -> None:
    seed = first_failing()
    kept = tmp_path / "short.txt"
    arguments = ["sim", "faults", "--seeds", f"{seed}:{seed + 1}", "--jobs", "1"]
    assert main([*arguments, "--keep", str(kept)]) == 1
    out, err = capsys.readouterr()
    [line] = out.splitlines()
    assert line.startswith(f"qlm sim faults --seed {seed}  # ")
    assert "ended work stops: " in line
    assert "1/1 seeds, 1 failed" in err
    assert main(["sim", "faults", "--events", str(kept)]) == 1
    out, _ = capsys.readouterr()
    assert "failure   ended work stops" in out
    assert main(["sim", "faults", "--seed", str(seed), "--keep", str(kept)]) == 1


def test_the_command_is_content_where_all_is_well(capsys: Told) -> None:
    assert main(["sim", "faults", "--seeds", "0:3", "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3 seeds, 0 failed" in err
    assert "seeds/min" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of --seeds"),
        (["--seed", "1", "--seeds", "0:2"], "one of --seeds"),
        (["--seeds", "5"], "Write it as 0:200"),
        (["--seeds", "5:5"], "Write it as 0:200"),
        (["--seed", "1", "--policy", "edf"], "--policy"),
        (["--seed", "1", "--rate-scale", "2"], "--rate-scale"),
        (["--events", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    arguments: list[str], words: str, capsys: Told
) -> None:
    assert main(["sim", "faults", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_the_code_raises_is_a_failure_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Ledger, event: object) -> list[object]:
        raise KeyError("nobody")

    monkeypatch.setattr(Ledger, "_agent_connected", broken)
    failure = run(draw(0)).failure
    assert failure is not None
    assert failure.checker == "exception"
    assert "KeyError: 'nobody' (test_faults.py:" in failure.words
