"""Failpoints: what rules say and do, that they are off by themselves, and that every name is a moment of the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import failpoints
from failpoints import MOMENTS, FailpointError, Rule
from qlm_core.errors import ConfigError

ROOT = Path(__file__).parents[2]
ONE, OTHER = "gateway.driver.granted", "gateway.driver.end_stored"
DRIVERS = ("qlm", "solver", "gateway", "agents", "protos")


@pytest.fixture(autouse=True)
def off_afterwards() -> Iterator[None]:
    yield
    failpoints.arm("")


def passing(rules: str, *, times: int) -> subprocess.CompletedProcess[str]:
    """A process that passes one moment so often and counts aloud."""
    program = (
        "import failpoints\n"
        f"for number in range(1, {times} + 1):\n"
        f"    failpoints.at({ONE!r})\n"
        "    print(number, flush=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {failpoints.VARIABLE: rules},
        capture_output=True,
        text=True,
    )


def test_they_are_off_without_the_variable() -> None:
    done = passing("", times=2)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n2\n", "", 0)


def test_a_process_kills_itself_at_the_pass_that_is_named() -> None:
    done = passing(f"{OTHER}=kill;{ONE}=kill@3", times=5)
    assert (done.stdout, done.returncode) == ("1\n2\n", -signal.SIGKILL)
    assert done.stderr == f"failpoint {ONE}: kill\n"


def test_a_pause_stops_the_process_until_it_is_continued() -> None:
    done = passing(f"{ONE}=pause:0.2@2", times=3)
    assert (done.stdout, done.returncode) == ("1\n2\n3\n", 0)
    assert done.stderr == f"failpoint {ONE}: pause\n"


def test_a_pause_without_end_is_somebody_elses_to_end() -> None:
    program = f"import failpoints; failpoints.at({ONE!r}); print('on')"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {failpoints.VARIABLE: f"{ONE}=pause"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate()
    assert out == "on\n"


def test_an_error_is_raised_once_as_what_the_moment_raises() -> None:
    failpoints.arm(f"{ONE}=error;{OTHER}=error@2")
    with pytest.raises(FailpointError, match=ONE):
        failpoints.at(ONE)
    failpoints.at(ONE)
    failpoints.at(OTHER, OSError)
    with pytest.raises(OSError, match=OTHER):
        failpoints.at(OTHER, OSError)


def test_rules_are_read() -> None:
    rules = failpoints.parse(f" {ONE}=delay:1.5@4 ; {OTHER}=pause;")
    assert rules == {
        ONE: Rule(action="delay", seconds=1.5, nth=4),
        OTHER: Rule(action="pause", seconds=0.0, nth=1),
    }


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("gateway.driver.granted", "no rule"),
        (f"{ONE}=explode", "no rule"),
        (f"{ONE}=kill@soon", "no rule"),
        (f"{ONE}=kill@0", "no rule"),
        (f"{ONE}=pause:.", "no rule"),
        (f"{ONE}=delay:1.2.3", "no rule"),
        ("gateway.driver.nowhere=kill", "there is no moment"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_remedy(rules: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        failpoints.parse(rules)


def test_each_name_is_one_place_in_the_code() -> None:
    marked = []
    for package in DRIVERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            marked += re.findall(r'failpoints\.at\(\s*"([^"]+)"', path.read_text())
    assert sorted(marked) == sorted(MOMENTS)


def test_the_documented_table_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_.]+)` \| (.*) \|$", text, re.MULTILINE))
    assert rows == MOMENTS
