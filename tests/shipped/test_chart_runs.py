"""The chart's parts as processes: with configuration, arguments and secrets of their pods they serve a tenant's request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from qlm import ports
from tests.shipped.test_chart import (
    Json,
    container,
    needs_helm,
    of_kind,
    pod_names,
    rendered,
    workloads,
)

pytestmark = [needs_helm, pytest.mark.processes]
WAIT_S = 60.0
BODY = {"model": "mistral-7b", "prompt": "x", "max_tokens": 4}


class Cluster:
    """Where the pods of a chart are, on this machine: every pod's ports are ports of loopback.

    Args:
        pods: by name, with the workload of each.
    """

    def __init__(self, documents: list[Json], pods: dict[str, Json], folder: Path) -> None:
        self.pods = pods
        self._folder = folder
        [secret] = of_kind(documents, "Secret")
        self.keys = {name: base64.b64decode(key).decode() for name, key in secret["data"].items()}
        [config_map] = of_kind(documents, "ConfigMap")
        self._files = config_map["data"]
        numbers = [
            (pod, port["containerPort"])
            for pod, workload in pods.items()
            for port in container(workload)["ports"]
        ]
        places = ports.free_addresses(len(numbers))
        self.places = dict(zip(numbers, places, strict=True))

    def placed(self, text: str, pod: str) -> str:
        """What a pod reads or is told, with the places of this machine for those of the cluster."""
        for (other, port), place in self.places.items():
            component = container(self.pods[other])["name"]
            # A Service has one name for all of its pods, and for each its own where that is asked for.
            if component == "solver":
                text = text.replace(f"prod-qlm-solver.llm.svc:{port}", place)
            text = text.replace(f"{other}.prod-qlm-gateway-each.llm.svc:{port}", place)
            if other == pod:
                text = text.replace(f"0.0.0.0:{port}", place)
        return text.replace("/var/lib/qlm", str(self._folder / pod))

    def started(self, pod: str) -> subprocess.Popen[bytes]:
        """Start what runs in a pod."""
        only = container(self.pods[pod])
        folder = self._folder / pod
        folder.mkdir()
        for name, text in self._files.items():
            (folder / name).write_text(self.placed(text, pod))
        arguments = [
            self.placed(one.replace("$(POD_NAME)", pod), pod).replace("/etc/qlm", str(folder))
            for one in only["args"]
        ]
        environment = {
            one["name"]: self.keys[one["valueFrom"]["secretKeyRef"]["key"]]
            for one in only["env"]
            if "secretKeyRef" in one["valueFrom"]
        }
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "qlm", *arguments],
                env=os.environ | environment,
                stderr=log,
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """All of them, until the block ends."""
        programs = [self.started(pod) for pod in self.pods]
        try:
            yield
        finally:
            for program in programs:
                program.kill()
            for program in programs:
                program.wait()

    def log(self) -> str:
        """What all of them say."""
        return "".join((self._folder / pod / "log").read_text() for pod in self.pods)


@contextlib.asynccontextmanager
async def gateway(cluster: Cluster, pod: str, key: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of one gateway, once that is ready."""
    headers = {"authorization": f"Bearer {cluster.keys[key]}"} if key else {}
    url = f"http://{cluster.places[pod, 7400]}"
    async with aiohttp.ClientSession(url, headers=headers) as session:
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get("/readyz") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.1)
        yield session


async def test_a_tenant_is_served_and_a_stranger_is_not(tmp_path: Path) -> None:
    documents = rendered(
        "simulated", "--set=gateway.replicas=1", "--set=tenants.alice.requests_max=9"
    )
    pods = {name: one for one in workloads(documents) for name in pod_names(one)}
    assert sorted(pods) == [
        "prod-qlm-a100-0",
        "prod-qlm-a100-1",
        "prod-qlm-gateway-0",
        "prod-qlm-solver-0",
    ]
    cluster = Cluster(documents, pods, tmp_path)
    with cluster.running():
        async with (
            gateway(cluster, "prod-qlm-gateway-0", "alice") as alice,
            alice.post("/v1/completions", json=BODY) as answer,
        ):
            assert answer.status == 200, cluster.log()
        async with gateway(cluster, "prod-qlm-gateway-0", "admin") as admin:
            known: list[str] = []
            async with asyncio.timeout(WAIT_S):
                while len(known) < 2:
                    async with admin.get("/v1/queue") as answer:
                        known = sorted(one["id"] for one in (await answer.json())["agents"])
            assert known == ["prod-qlm-a100-0", "prod-qlm-a100-1"]
        async with (
            gateway(cluster, "prod-qlm-gateway-0", "") as stranger,
            stranger.post("/v1/completions", json=BODY) as answer,
        ):
            assert answer.status == 401
