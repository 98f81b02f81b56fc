"""`qlm ray` on a real Ray of two nodes on this machine, with simulated agents that a real gateway gives requests.

Ray is large, and so in no environment for development. A Python that has it is asked for (CONTRIBUTING.md, "Tests"):

python3.11 -m venv .venv-ray && .venv-ray/bin/pip install -e '.[ray]'
QLM_RAY=.venv-ray/bin/python pytest tests/processes/test_ray.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlm import fleet, ray_plan
from qlm_core.config import Config
from tests.processes.test_up import alive, children, wait_until_gone

HERE = "" if importlib.util.find_spec("ray") is None else sys.executable
PYTHON = os.path.abspath(os.environ["QLM_RAY"]) if os.environ.get("QLM_RAY") else HERE
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 90.0
SECRET = "QLM_RAY_TEST_SECRET"
AGENTS = [
    "{name: big, instances: 2, gpu: a100, models: [mistral-7b]}",
    "{name: small, gpu: a10, models: [mistral-7b], metrics_listen: auto}",
]
ASKED = "{a100: {label_selector: {class: 'in(a100,h100)'}}, a10: {resources: {a10: 1}}}"

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="Ray is not here: QLM_RAY names no Python that has qlm-serving[ray]"
)


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    loopback = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return plain | loopback | {"PYTHONPATH": str(ROOT)} | more


class Cluster:
    """The cluster, by the process that runs it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = ""
        self.nodes: dict[str, str] = {}
        self._hear()

    def order(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                told = json.loads(line)
                self.address, self.nodes = told["address"], told["nodes"]
                return
        raise AssertionError("the cluster did not start")

    def agents(self) -> dict[str, int]:
        """The processes of agents below it, by name."""
        found = {}
        for pid in children(self.process.pid):
            words = words_of(pid)
            if "--name" in words and alive(pid):
                found[words[words.index("--name") + 1]] = pid
        return found


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    process = subprocess.Popen(
        [PYTHON, str(Path(__file__).with_name("ray_cluster.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(**{SECRET: "the parts' own"}),
    )
    family: list[int] = []
    try:
        started = Cluster(process)
        yield started
        family = children(process.pid)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait(WAIT_S)
    assert wait_until_gone(family) == []


@dataclass
class Bed:
    """A fleet whose agents Ray places, in a namespace of its own."""

    cluster: Cluster
    config: Config
    folder: Path
    namespace: str

    def file(self, *agents: str, ray: str = ASKED) -> str:
        """A configuration with these agents on this bed's ports."""
        text = f"agents: [{', '.join(agents)}]\nray: {{gpus: {ray}}}"
        data: dict[str, Any] = yaml.safe_load(text)
        solver, gateway = self.config.solver, self.config.gateway
        data["auth"] = {"secret": f"${{{SECRET}}}"}
        data["solver"] = {"listen": solver.listen, "metrics_listen": solver.metrics_listen}
        data["gateway"] = {
            "http_listen": gateway.http_listen,
            "grpc_listen": gateway.grpc_listen,
            "agents_listen": gateway.agents_listen,
            "store": {"kind": "memory"},
        }
        data["agent_defaults"] = {"drain_s": 5.0}
        data["port_base"] = int(gateway.http_listen.rpartition(":")[2])
        path = self.folder / "fleet.yaml"
        path.write_text(yaml.safe_dump(data))
        return str(path)

    def qlm(self, *words: str, status: int = 0) -> str:
        """What `qlm ray` says. The secret is not in its environment."""
        done = subprocess.run(
            [PYTHON, "-m", "qlm", "ray", *words, *self._where()],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status != 2 else done.stderr

    def _where(self) -> tuple[str, ...]:
        return ("--address", self.cluster.address, "--namespace", self.namespace)

    def agents(self) -> dict[str, dict[str, Any]]:
        return {one["agent"]: one for one in json.loads(self.qlm("status", "--json"))}

    def until(self, reached: Callable[[dict[str, dict[str, Any]]], bool]) -> None:
        """Wait until the agents stand like this."""
        clock = threading.Event()
        for _ in range(int(WAIT_S)):
            if reached(self.agents()):
                return
            clock.wait(1.0)
        raise AssertionError(self.agents())

    def answers(self) -> bool:
        """Whether the fleet serves a request."""
        body = {"model": "mistral-7b", "prompt": "x", "max_tokens": 3}
        request = urllib.request.Request(
            f"http://{self.config.gateway.http_listen}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return bool(json.load(answer)["usage"]["completion_tokens"] == 3)


@contextmanager
def head(bed: Bed) -> Iterator[None]:
    """Solver and gateway of a bed."""
    command = [PYTHON, "-m", "qlm", "up", "--no-agents", "--config", bed.file(*AGENTS)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**{SECRET: "the parts' own"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "QLM waits for agents elsewhere\n"
            yield
        finally:
            process.terminate()
            process.wait(WAIT_S)


@pytest.fixture
def bed(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bed]:
    config = fleet.temporary_config(tmp_path)
    made = Bed(cluster, config, tmp_path, request.node.name)
    with head(made):
        try:
            yield made
        finally:
            made.qlm("down")
            assert cluster.agents() == {}


def test_agents_run_where_their_gpu_is_and_only_what_changes_is_placed_anew(
    bed: Bed, cluster: Cluster
) -> None:
    said = bed.qlm("up", bed.file(*AGENTS))
    assert said.splitlines()[0] == "places: big-0, big-1, small"
    found = bed.agents()
    assert {name: (one["node_id"], one["state"]) for name, one in found.items()} == {
        "big-0": (cluster.nodes["a100"], "joined"),
        "big-1": (cluster.nodes["a100"], "joined"),
        "small": (cluster.nodes["a10"], "joined"),
    }
    assert bed.answers()
    before = cluster.agents()
    assert sorted(before) == ["big-0", "big-1", "small"]

    said = bed.qlm("up", bed.file(*AGENTS))
    assert said.splitlines()[0] == "keeps: big-0, big-1, small"
    assert cluster.agents() == before

    small = "{name: small, gpu: a10, models: [mistral-7b], executor: {pull_ahead: 3}}"
    said = bed.qlm("up", bed.file(AGENTS[0], small))
    assert said.splitlines()[:2] == [
        "keeps: big-0, big-1",
        "drains and places anew: small",
    ]
    after = cluster.agents()
    assert [name for name in before if after[name] != before[name]] == ["small"]

    far = "{name: far, host: there, models: [mistral-7b]}"
    said = bed.qlm("up", bed.file(AGENTS[0], far))
    assert said.splitlines()[:3] == [
        "left to `qlm agent --host`: far",
        "keeps: big-0, big-1",
        "drains and removes: small",
    ]
    assert sorted(cluster.agents()) == ["big-0", "big-1"]
    assert "Did you mean 'big-1'?" in bed.qlm("down", "--agent", "bigg-1", status=2)
    bed.qlm("down", "--agent", "big-1")
    assert cluster.agents() == {"big-0": before["big-0"]}
    assert bed.answers()
    assert bed.qlm("down") == "drains and removes: big-0\n"
    assert (cluster.agents(), bed.agents()) == ({}, {})
    assert bed.qlm("down") == "no agents are there\n"


def test_what_is_killed_comes_back(bed: Bed, cluster: Cluster) -> None:
    bed.qlm("up", bed.file(AGENTS[1]))
    (first,) = cluster.agents().values()
    os.kill(first, signal.SIGKILL)
    bed.until(lambda found: (found["small"]["state"], found["small"]["restarts"]) == ("joined", 1))
    second = cluster.agents()["small"]
    assert second != first
    assert bed.answers()

    worker = parent_of(second)
    assert words_of(worker)[0].startswith("ray::AgentActor")
    os.kill(worker, signal.SIGKILL)
    assert wait_until_gone([worker, second]) == []
    bed.until(lambda found: found["small"]["state"] == "joined")
    (third,) = cluster.agents().values()
    assert third not in (first, second)
    assert parent_of(third) != worker
    assert bed.agents()["small"]["restarts"] == 1
    assert bed.answers()


def test_an_agent_whose_node_is_lost_is_placed_on_another(bed: Bed, cluster: Cluster) -> None:
    bed.qlm("up", bed.file(AGENTS[1]))
    lost = cluster.nodes["a10"]
    family = list(cluster.agents().values())
    cluster.order("lose a10")
    assert wait_until_gone(family) == []
    bed.until(lambda found: found["small"]["state"] == "waiting")
    cluster.order("add a10")
    bed.until(lambda found: found["small"]["state"] == "joined")
    assert bed.agents()["small"]["node_id"] == cluster.nodes["a10"] != lost
    assert bed.answers()


def test_who_finds_no_place_is_told_with_what_there_is(bed: Bed, cluster: Cluster) -> None:
    many = "{name: small, instances: 3, gpu: a10, models: [mistral-7b]}"
    said = bed.qlm("up", bed.file(many), "--wait", "8", status=1)
    late = [name for name, one in bed.agents().items() if one["state"] == "waiting"]
    assert len(late) == 1
    assert f"{late[0]} waits for a place: it asks for CPU 0.1, a10 1" in said
    assert "CPU 4, GPU 1, a10 2" in said
    assert "a10 0" in said.splitlines()[-1]


def test_what_keeps_an_agent_from_starting_is_told(bed: Bed) -> None:
    file = Path(bed.file(AGENTS[1]))
    file.write_text(file.read_text().replace(SECRET, "NOBODY_HAS_SET_THIS"))
    said = bed.qlm("up", str(file), status=1)
    assert "small has failed on 127.0.0.1" in said
    assert "auth.secret: the environment variable NOBODY_HAS_SET_THIS is not set" in said
    # Ray tries again, maybe elsewhere.
    bed.until(lambda found: found["small"]["restarts"] == 1 and found["small"]["state"] == "failed")


def test_an_engine_sees_the_gpus_that_ray_hands_out(bed: Bed, cluster: Cluster) -> None:
    told = bed.folder / "devices"
    shell = f"echo $CUDA_VISIBLE_DEVICES > {told}; exec sleep 600"
    agent = (
        "{name: real, gpu: a10, models: [mistral-7b], devices: [5], "
        f"engine: {{kind: vllm, vllm: {{command: [sh, -c, '{shell}']}}}}}}"
    )
    said = bed.qlm("up", bed.file(agent, ray="{a10: {}}"), "--wait", "5", status=1)
    assert "real is starting on 127.0.0.1" in said
    assert told.read_text() == "0\n"
    assert bed.agents()["real"]["node_id"] == cluster.nodes["a10"]


DRIVER_NAMES = {
    "a10": ("NVIDIA A10", "NVIDIA A10G"),
    "a40": ("NVIDIA A40",),
    "a100": ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    "h100": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"),
    "rtx4090": ("NVIDIA GeForce RTX 4090",),
    "rtxpro6000": ("NVIDIA RTX PRO 6000 Blackwell Server Edition",),
}


def test_gpus_that_have_profiles_are_called_as_ray_calls_them() -> None:
    program = (
        "import json, sys; from ray._private.accelerators import NvidiaGPUAcceleratorManager as Gpus; "
        "print(json.dumps({n: Gpus._gpu_name_to_accelerator_type(n) for n in json.load(sys.stdin)}))"
    )
    names = [name for all_of_one in DRIVER_NAMES.values() for name in all_of_one]
    done = subprocess.run(
        [PYTHON, "-c", program],
        input=json.dumps(names),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    called = json.loads(done.stdout)
    for gpu, driver_names in DRIVER_NAMES.items():
        allowed = re.split(r"[(),]", ray_plan.ACCELERATORS[gpu])
        assert [name for name in driver_names if called[name] not in allowed] == []
