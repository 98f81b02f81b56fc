"""The supervisor's verdicts on children that do not come up. Real fleets are in tests/processes."""

import sys
from pathlib import Path

import pytest

from qlm import supervisor
from qlm.supervisor import ChildSpec, Supervisor
from qlm_core.errors import QlmError, Unavailable


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))


async def test_misuse_is_told_in_the_childs_own_words_and_not_tried_again() -> None:
    log = Log()
    spec = ChildSpec(name="solver", arguments=("solver", "--config", "/no/such/file.yaml"))
    with pytest.raises(QlmError, match=r"^/no/such/file\.yaml: no such file"):
        async with Supervisor([spec], log=log):
            pass
    assert [name for name, _ in log.lines] == ["solver"]


async def test_a_child_that_keeps_ending_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor, "START_ATTEMPTS_MAX", 3)
    log = Log()
    # A command that ends at once, well, without ever having served.
    spec = ChildSpec(name="odd", arguments=("config", "check"))
    monkeypatch.setattr(supervisor, "SUPERVISED", ())
    with pytest.raises(Unavailable, match="odd: ended 3 times before it served"):
        async with Supervisor([spec], log=log):
            pass
    assert sum("starts again" in line for _, line in log.lines) == 2


async def test_children_that_never_serve_are_named() -> None:
    spec = ChildSpec(name="slow", arguments=("--help",))
    with pytest.raises(QlmError, match="slow"):
        async with Supervisor([spec], log=Log(), ready_timeout_s=0.01):
            pass


async def test_a_child_that_does_not_stop_in_time_is_killed_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Serves, and ends only with its supervisor.
    stubborn = tmp_path / "stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\necho ready\nexec cat > /dev/null\n")
    stubborn.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stubborn))
    log = Log()
    spec = ChildSpec(name="a0", arguments=())
    async with Supervisor([spec], log=log, stop_grace_s=0.05):
        pass
    assert log.lines == [("a0", "killed by SIGKILL: did not stop within 0.05 s")]
