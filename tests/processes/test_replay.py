"""A trace through the whole system by both transports, with each planner backend."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from qlm import fleet
from qlm.report import Report

REQUESTS = 40
TIME_SCALE = 10


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests of a chat trace's shape within 20 s."""
    rng = random.Random(1)
    file = tmp_path / "trace.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
        for number in range(REQUESTS):
            writer.writerow([number * 0.5, rng.randint(20, 1500), rng.randint(5, 300)])
    return file


async def replayed(config_file: Path, trace: Path, transport: str, folder: Path) -> Report:
    import asyncio

    out = folder / f"{transport}.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qlm", "replay", str(trace), "--config", str(config_file)),
        *("--transport", transport, "--time-scale", str(TIME_SCALE), "--json", str(out)),
        *("--plot", str(folder / f"{transport}.png")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert f"accounted    {REQUESTS} sent = {REQUESTS} finished" in stdout.decode()
    return msgspec.json.decode(out.read_bytes(), type=Report)


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
async def test_a_trace_is_served_whatever_plans(
    backend: str,
    licensed: bool,
    tmp_path: Path,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not licensed:
        monkeypatch.setenv("GRB_LICENSE_FILE", str(tmp_path / "no-such-licence"))
    overrides = [f"solver.backend={backend}", f"agents.*.engine.sim.time_scale={TIME_SCALE}"]
    config = fleet.temporary_config(tmp_path, overrides)
    async with fleet.running(config, tmp_path):
        for transport in ("http", "grpc"):
            report = await replayed(tmp_path / "config.yaml", trace, transport, tmp_path)
            assert report.fates == {
                "finished": REQUESTS,
                "shed": 0,
                "failed": 0,
                "cancelled": 0,
                "lost": 0,
            }
            assert sum(one.requests for one in report.classes) == REQUESTS
            assert all(one.output_tokens > 0 for one in report.classes)
            assert (tmp_path / f"{transport}.png").stat().st_size > 10_000
            assert report.swaps is not None
