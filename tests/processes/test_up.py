"""`qlm up` as a user runs it: it starts, says what is wrong in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

import failpoints
from qlm import config_file, fleet
from qlm_core.config import Config

AGENTS = "agents=[{name: one, gpu: a100, models: [mistral-7b]}]"
WAIT_S = 60.0


def write(config: Config, folder: Path) -> str:
    file = folder / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    return str(file)


@contextmanager
def up(file: str, *, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """`qlm up`, serving."""
    process = subprocess.Popen(
        # As the command does it, the folder where it is started is not searched for packages.
        [sys.executable, "-P", "-m", "qlm", "up", "--config", file],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("QLM serves mistral-7b on 1 agent")
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)
        process.stdout.close()


def test_packages_of_somebody_else_may_lie_where_it_is_started(tmp_path: Path) -> None:
    for name in ("agents", "gateway", "solver", "qlm", "protos", "failpoints", "qlm_core"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')")
    config = fleet.temporary_config(tmp_path, [AGENTS])
    with up(write(config, tmp_path), cwd=tmp_path):
        api = OpenAI(base_url=f"http://{config.gateway.http_listen}/v1", api_key="unused")
        with api:
            body = {"model": "mistral-7b", "prompt": "x", "max_tokens": 1}
            line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
            data = json.dumps(line).encode()
            file = api.files.create(file=("in.jsonl", data), purpose="batch")
            batch = api.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            clock = threading.Event()
            while batch.status not in ("completed", "failed"):
                clock.wait(0.05)
                batch = api.batches.retrieve(batch.id)
            assert batch.status == "completed"


def children(pid: int) -> list[int]:
    """The children of a process and theirs, down to the last."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids: list[int]) -> list[int]:
    """Wait for the processes to end; returns those that did not."""
    clock = threading.Event()
    for _ in range(int(WAIT_S / 0.1)):
        pids = [pid for pid in pids if alive(pid)]
        if not pids:
            return []
        clock.wait(0.1)
    return pids


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    with up(write(fleet.temporary_config(tmp_path, [AGENTS]), tmp_path)) as process:
        family = children(process.pid)
        # Solver, gateway and agent, and the solver's backend processes.
        assert len(family) >= 3
        os.kill(process.pid, number)
        status = process.wait(WAIT_S)
        assert status == (0 if number is not signal.SIGKILL else -number)
        assert wait_until_gone(family) == []


def test_nothing_is_left_behind_when_it_dies_before_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "qlm.supervisor.restarting=kill")
    with up(write(fleet.temporary_config(tmp_path, [AGENTS]), tmp_path)) as process:
        family = children(process.pid)
        victim = next(pid for pid in family if alive(pid))
        os.kill(victim, signal.SIGKILL)
        assert process.wait(WAIT_S) == -signal.SIGKILL
        assert wait_until_gone(family) == []


def test_a_host_runs_its_agents_and_restarts_them(tmp_path: Path) -> None:
    agents = [
        "agents=[{name: near, host: here, instances: 2, models: [mistral-7b]}, "
        "{name: far, host: there, models: [mistral-7b]}]"
    ]
    file = write(fleet.temporary_config(tmp_path, agents), tmp_path)
    qlm = [sys.executable, "-m", "qlm"]
    for words in (["agent", "--host", "heer"], ["up"], ["up", "--host", "nowhere"]):
        refused = subprocess.run(
            [*qlm, *words, "--config", file], capture_output=True, text=True, timeout=WAIT_S
        )
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "here, there" in refused.stderr
    head = subprocess.Popen(
        [*qlm, "up", "--host", "there", "--config", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    host = subprocess.Popen(
        [*qlm, "agent", "--host", "here", "--config", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert head.stdout is not None
        assert host.stdout is not None
        assert host.stderr is not None
        assert head.stdout.readline().startswith("QLM serves mistral-7b on 1 agent")
        said = [host.stdout.readline() for _ in range(3)]
        assert said[0].startswith("near-0: sim engine, mistral-7b")
        assert said[2].startswith("here: all of them have started")
        victim = children(host.pid)[0]
        os.kill(victim, signal.SIGKILL)
        assert any("killed by SIGKILL; starts again" in line for line in host.stderr)
        host.terminate()
        assert host.wait(WAIT_S) == 0
    finally:
        for process in (head, host):
            process.kill()
            process.wait(WAIT_S)
            assert process.stdout is not None
            process.stdout.close()
        assert host.stderr is not None
        host.stderr.close()


def test_what_is_served_is_said_once_an_agent_has_joined(tmp_path: Path) -> None:
    # Its server does not exist, so the agent starts and joins, and is never ready.
    engine = "{kind: openai, openai: {base_url: 'http://127.0.0.1:1'}}"
    agents = f"agents=[{{name: one, models: [mistral-7b], engine: {engine}}}]"
    file = write(fleet.temporary_config(tmp_path, [agents]), tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "qlm", "up", "--config", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "no agent has joined yet: waiting for one\n"
        process.terminate()
        assert "QLM serves" not in process.stdout.read()
        assert process.wait(WAIT_S) == 0


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    config = fleet.temporary_config(tmp_path, [AGENTS])
    file = write(config, tmp_path)
    with up(file):
        for command in (["up"], ["solver"], ["gateway"]):
            second = subprocess.run(
                [sys.executable, "-m", "qlm", *command, "--config", file],
                capture_output=True,
                text=True,
                timeout=WAIT_S,
            )
            assert second.returncode == 2
            assert second.stderr.count("\n") == 1
            assert "cannot listen on 127.0.0.1:" in second.stderr
            assert "set another address" in second.stderr


def test_a_child_that_cannot_start_is_reported_by_its_own_words(tmp_path: Path) -> None:
    config = config_file.override(
        fleet.temporary_config(tmp_path, [AGENTS]),
        ["gateway.store.path=/proc/no/such/place.sqlite"],
    )
    result = subprocess.run(
        [sys.executable, "-m", "qlm", "up", "--config", write(config, tmp_path)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("qlm: error: ")
    assert "/proc/no/such" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_clean_stop_warns_of_nothing_and_json_stays_json(form: str, tmp_path: Path) -> None:
    config = fleet.temporary_config(tmp_path, [AGENTS, f"log.format={form}", "log.access=true"])
    with subprocess.Popen(
        [sys.executable, "-m", "qlm", "up", "--config", write(config, tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("QLM serves")
        url = f"http://{config.gateway.http_listen}/v1/chat/completions"
        body = {"model": "mistral-7b", "messages": [{"role": "user", "content": "a-prompt"}]}
        request = urllib.request.Request(
            url, json.dumps(body | {"max_tokens": 3}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            assert answer.status == 200
        # One that runs while everything is told to stop.
        left = subprocess.run(
            [
                sys.executable,
                "-m",
                "qlm",
                "submit",
                "--no-wait",
                "--address",
                config.gateway.grpc_listen,
                "x",
            ],
            capture_output=True,
            text=True,
        )
        assert left.returncode == 0, left.stderr
        process.terminate()
        said = process.stderr.read() if process.stderr is not None else ""
        assert process.wait(WAIT_S) == 0
    assert "a-prompt" not in said
    if form == "json":
        lines = [json.loads(line) for line in said.splitlines()]
        assert {line["part"] for line in lines} >= {"solver", "gateway", "one"}
        assert [str(line) for line in lines if line.get("level") != "info"] == []
        (told,) = (line for line in lines if line["event"] == "http request")
        assert (told["status"], told["output_tokens"]) == (200, 3)
    else:
        assert [line for line in said.splitlines() if " info " not in line] == []
