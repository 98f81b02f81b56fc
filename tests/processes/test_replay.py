"""A trace through the whole system: by the command, by both transports, with each planner backend."""

from __future__ import annotations

import asyncio
import csv
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from qlm import fleet, load, replay, scrape
from qlm.report import Interruption, Report
from qlm_core.config import Config
from qlm_core.sim.workload import WorkloadRequest
from tests.processes.conftest import MODEL, PATIENCE_S

REQUESTS = 40
BURST = 160
TIME_SCALE = 10
CLASSES = ("interactive", "batch-1", "batch-2")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """More than forty requests of a chat trace's shape, two a second."""
    rng = random.Random(1)
    file = tmp_path / "trace.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
        for number in range(REQUESTS + 10):
            writer.writerow([number * 0.5, rng.randint(20, 1500), rng.randint(5, 300)])
    return file


async def replayed(config_file: Path, trace: Path, transport: str, folder: Path) -> Report:
    out = folder / f"{transport}.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qlm", "replay", str(trace), "--config", str(config_file)),
        *("--transport", transport, "--time-scale", str(TIME_SCALE), "--rate-scale", "2"),
        *("--limit", str(REQUESTS), "--mix", "interactive=0.5,batch-2=0.5"),
        *("--json", str(out), "--plot", str(folder / f"{transport}.png")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert f"accounted    {REQUESTS} sent = {REQUESTS} finished" in stdout.decode()
    return msgspec.json.decode(out.read_bytes(), type=Report)


async def test_a_trace_is_replayed_and_reported(tmp_path: Path, trace: Path) -> None:
    overrides = ["solver.backend=search", f"agents.*.engine.sim.time_scale={TIME_SCALE}"]
    config = fleet.temporary_config(tmp_path, overrides)
    async with fleet.running(config, tmp_path):
        for transport in ("http", "grpc"):
            report = await replayed(tmp_path / "config.yaml", trace, transport, tmp_path)
            assert [one.name for one in report.classes] == ["interactive", "batch-2"]
            assert sum(one.requests for one in report.classes) == REQUESTS
            assert all(one.output_tokens > 0 for one in report.classes)
            assert report.estimate is not None
            assert report.swaps is not None
            assert report.evictions is not None
            assert (tmp_path / f"{transport}.png").stat().st_size > 10_000
        seen = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qlm", "status", "--config", str(tmp_path / "config.yaml")),
            stdout=subprocess.PIPE,
        )
        status = (await seen.communicate())[0].decode()
        for text in (*(agent.name for agent in config.agents), "requests", "plan", "attained"):
            assert text in status


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """Three requests that end soon, four that take minutes and five that come much later."""
    rows = [(0, 10)] * 3 + [(0, 4000)] * 4 + [(600, 10)] * 5
    file = tmp_path / "endless.csv"
    lines = [f"{arrival_s},100,{tokens}" for arrival_s, tokens in rows]
    file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return file


async def ended(config: Config, count: int) -> None:
    """Wait until so many requests have ended at the gateway."""
    urls = replay.metrics_urls(config, f"http://{config.gateway.http_listen}")[:1]
    async with asyncio.timeout(PATIENCE_S):
        while (scrape.total(await scrape.read(urls), "qlm_requests_total") or 0) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_interrupted_replay_reports_what_has_ended(tmp_path: Path, endless: Path) -> None:
    config = fleet.temporary_config(tmp_path, ["solver.backend=search"])
    cases = (("http", signal.SIGINT, 3), ("grpc", signal.SIGTERM, 10))
    async with fleet.running(config, tmp_path):
        for transport, number, known in cases:
            out = tmp_path / f"{transport}.json"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "qlm", "replay", str(endless), "--max-tokens", "4096"),
                *("--config", str(tmp_path / "config.yaml"), "--models", f"{MODEL}=1"),
                *("--transport", transport, "--mix", "interactive=1", "--json", str(out)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            await ended(config, known)
            process.send_signal(number)
            stdout, stderr = await process.communicate()
            assert process.returncode == 130, stderr.decode()
            assert "interrupted  5 of 12 requests were not sent" in stdout.decode()
            assert "accounted    7 sent = " in stdout.decode()
            report = msgspec.json.decode(out.read_bytes(), type=Report)
            # The last to end may have ended for the gateway and not yet for its client.
            done = report.fates["finished"]
            assert 0 < done <= 3
            assert report.interrupted == Interruption(in_flight=7 - done, not_sent=5)
            assert [one.requests for one in report.classes] == [report.requests] == [done]


def burst() -> list[WorkloadRequest]:
    """Requests of all classes and both models at once, so that there is something to plan."""
    rng = random.Random(2)
    return [
        WorkloadRequest(
            arrival_s=0.0,
            model=("mistral-7b", "vicuna-13b")[number % 3 == 0],
            slo_class=CLASSES[number % 3],
            prompt_tokens=rng.randint(200, 1500),
            output_tokens=rng.randint(50, 200),
            max_tokens=512,
        )
        for number in range(BURST)
    ]


@pytest.mark.parametrize(
    ("backend", "licensed"),
    [
        ("gurobi", True),
        ("gurobi", False),
        ("highs", True),
        ("pulp", True),
        ("search", True),
        ("greedy", True),
    ],
)
async def test_a_mixed_load_is_served_whatever_plans(
    backend: str, licensed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not licensed:
        monkeypatch.setenv("GRB_LICENSE_FILE", str(tmp_path / "no-such-licence"))
    config = fleet.temporary_config(
        tmp_path,
        [
            # Both models on one GPU in turn: however groups are placed, some hinder others.
            "agents=[{name: one, gpu: a100, models: [mistral-7b, vicuna-13b]}]",
            f"solver.backend={backend}",
            "solver.replan.period_s=0.1",
            f"agents.*.engine.sim.time_scale={2 * TIME_SCALE}",
        ],
    )
    async with fleet.running(config, tmp_path) as running:
        async with asyncio.timeout(PATIENCE_S):
            # A backend's process may take longer to start than one burst lasts.
            solves, fallen = await served(running)
            while not (solves if licensed else fallen).get(backend):
                solves, fallen = await served(running)
    if not licensed:
        assert backend not in solves
        assert solves.keys() & {"highs", "search", "greedy"}


async def served(running: fleet.Running) -> tuple[dict[str, float], dict[str, float]]:
    """Send a burst by both transports; returns the solves and the step-downs by backend, so far."""
    config = running.config
    metrics = replay.metrics_urls(config, running.url)
    reports = await asyncio.gather(
        *(
            replay.measured(
                burst(),
                replay.Target(
                    url=running.url,
                    grpc_address=config.gateway.grpc_listen,
                    transport=transport,
                    metrics_urls=metrics,
                ),
                slos=replay.slos_of(config),
                bodies=load.Bodies(),
            )
            for transport in ("http", "grpc")
        )
    )
    for report, outcomes in reports:
        assert report.fates == dict.fromkeys(report.fates, 0) | {"finished": BURST}
        assert {outcome.slo_class for outcome in outcomes} == set(CLASSES)
    found = await scrape.read(metrics)
    return (
        scrape.by_label(found, "qlm_solves_total", "backend"),
        scrape.by_label(found, "qlm_backend_step_downs_total", "backend"),
    )
