"""systemd's units: sound by its own judgement, shut as far as they can be, and with commands that exist."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlm import __main__ as face
from qlm_core.config import Config

FOLDER = Path(__file__).resolve().parents[2] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
# Its scale goes from 0 to 100; a service without any of it has 96.
_EXPOSED_MAX = {"qlm-agent@.service": 60, "qlm-gateway.service": 25, "qlm-solver.service": 25}
PROGRAM = "/opt/qlm/bin/qlm"


def service(unit: Path) -> dict[str, str]:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read_string(unit.read_text())
    return dict(read["Service"])


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """The units as they would lie on a machine where the program is there."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, sys.executable))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_nothing_is_wrong_with_it(unit: Path, placed: Path) -> None:
    assert ANALYZE is not None
    name = unit.name.replace("@.", "@gpu0.")
    if "@" in name:
        (placed / name).write_text((placed / unit.name).read_text())
    ran = subprocess.run(
        [ANALYZE, "verify", "--recursive-errors=no", "--man=no", placed / name],
        capture_output=True,
        text=True,
    )
    ours = [line for line in ran.stderr.splitlines() if "qlm" in line]
    assert (ran.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_is_shut_as_far_as_it_can_be(unit: Path, placed: Path) -> None:
    assert ANALYZE is not None
    threshold = f"--threshold={_EXPOSED_MAX[unit.name]}"
    ran = subprocess.run(
        [ANALYZE, "security", "--offline=true", threshold, placed / unit.name],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-400:] + ran.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_what_it_starts_is_a_command_of_ours(unit: Path) -> None:
    program, command, *arguments = shlex.split(service(unit)["ExecStart"])
    assert program == PROGRAM
    assert command == unit.name.removeprefix("qlm-").partition(".")[0].rstrip("@")
    parsed = face._parser(command).parse_args([command, *arguments])
    assert parsed.config == "/etc/qlm/config.yaml"
    assert service(unit)["User"] == "qlm"


def test_stopping_takes_no_longer_than_systemd_waits() -> None:
    waits_s = {unit.name: float(service(unit)["TimeoutStopSec"]) for unit in UNITS}
    config = Config()
    agent = config.agents[0]
    assert waits_s["qlm-gateway.service"] >= config.gateway.drain_s + 10
    least_s = agent.drain_s + agent.engine.vllm.stop_timeout_s + 10
    assert waits_s["qlm-agent@.service"] >= least_s
