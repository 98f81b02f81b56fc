"""What every command says of itself, and of misuse: one line and status 2."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlm.__main__ import COMMANDS, main
from qlm.client import Accepted
from qlm.commands import submit


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: qlm {command}")
    # A sentence between usage and arguments says what it does.
    assert re.search(r"\n\n[A-Z`][^\n]+", text)
    assert "gpus," not in text


def test_a_full_disk_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "report.json")

    monkeypatch.setattr("qlm.commands.config.run", full)
    assert main(["config", "show"]) == 2
    assert capsys.readouterr().err == "qlm: error: report.json: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nope"], "'nope' is no command"),
        (["replay"], "the following arguments are required: trace. See `qlm replay --help`."),
        (["replay", "no-such-trace.csv"], "no-such-trace.csv: No such file"),
        (["replay", "x.csv", "--limit", "a"], "argument --limit: invalid int value: 'a'"),
        (["replay", "x.csv", "--mix", "gold=1"], "--mix: 'gold' is no SLO class"),
        (["replay", "x.csv", "--time-scale", "0"], "--time-scale: must be a number above 0"),
        (["replay", "x.csv", "--rate-scale", "nan"], "--rate-scale: must be a number above 0"),
        (["replay", "x.csv", "--limit", "0"], "--limit: 0 is too low"),
        (["replay", "x.csv", "--max-tokens", "0"], "--max-tokens: 0 is too low"),
        (["replay", "x.csv", "--concurrency-limit", "0"], "--concurrency-limit: 0 is too low"),
        (["replay", "x.csv", "--json", "/"], "--json: / cannot be written"),
        (["replay", "x.csv", "--plot", "x.txt"], "--plot: x.txt does not end in .png"),
        (["replay", "x.csv", "--json", "/no/such/place.json"], "--json: /no/such is no folder"),
        (["status", "--bogus"], "unrecognized arguments: --bogus"),
        (["status", "--address", "127.0.0.1:1"], "127.0.0.1:1: no gateway answers"),
        (["explain", "x", "--address", "127.0.0.1:1"], "127.0.0.1:1: no gateway answers"),
        (["watch", "x", "--address", "127.0.0.1:1"], "127.0.0.1:1: no gateway answers"),
        (["cancel", "x", "--address", "127.0.0.1:1"], "127.0.0.1:1: no gateway answers"),
        (["submit", "hi", "--address", "127.0.0.1:1"], "127.0.0.1:1: no gateway answers"),
        (["demo", "--seconds", "-1"], "--seconds: -1 is not between 0 and 3600"),
        (["demo", "--plot", "x.txt"], "--plot: x.txt: give a name that ends in .png"),
        (["demo", "--plot", "/no/such/x.png"], "--plot: /no/such/x.png: there is no folder"),
        (["agent", "--name", "nobody"], "no agent is called 'nobody'"),
        (["up", "--set", "slover.backend=auto"], "--set: slover: unknown key"),
        (["config", "check", "/no/such.yaml"], "/no/such.yaml: no such file"),
        (["plan", "/no/such.json"], "/no/such.json: "),
    ],
)
def test_misuse_is_one_line_and_status_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("qlm: error: ")
    assert told in captured.err


def test_grpc_keeps_out_of_forks() -> None:
    """What it does in the child of a fork crashes one of some hundreds, before it is a backend or an engine."""
    program = (
        "import os, qlm.__main__ as face; face.main(['--version']); "
        "print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "false"


def test_a_request_without_an_estimate_says_where_to_ask(
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepted = Accepted(id="chatcmpl-1", slo_class="interactive", estimate=None)
    assert submit.follow([accepted]) == 1
    assert "no estimate of its wait: `qlm explain chatcmpl-1`" in capsys.readouterr().err


def test_the_classes_that_a_replay_deals_out_by_itself_are_configured_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n")
    Path("config.yaml").write_text(
        "port_base: 1\nslo_classes: {gold: {ttft_s: 2}}\ndefault_slo_class: gold\n"
    )
    assert main(["replay", "trace.csv", "--config", "config.yaml"]) == 2
    assert "no gateway answers" in capsys.readouterr().err
