"""What a large batch costs interactive requests: the same chats to the fleet of `qlm demo`, alone and beside the batch.

Real processes with simulated GPUs, two models, three agents. Chats arrive in bursts, the same ones each time; the batch asks for
both models with lengths like those of the demo, and is due at the end of a window. Printed are how many chats were in time, how
long they waited, and when the batch was done beside when it was said to be, which is read from it until it says something.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, show, to_json
from qlm import batch_replay, fleet, load, replay
from qlm.batch_client import OVER, BatchClient
from qlm.report import Outcome, Report, quantile
from qlm_core.config import Config
from qlm_core.sim.workload import Mix, Stream, WorkloadRequest, generate

CHATS, LINES = "interactive", "batch-2"
MODELS = Mix((("mistral-7b", 0.6), ("vicuna-13b", 0.4)))
SEED = 16
POLL_S = 1.0
PATIENCE_S = 3_600.0
# By how many points fewer chats may be in time beside the batch.
POINTS_MAX = 0.5
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        lines, window: of the batch.
        seconds, rate_rps: of chats, each time.
    """

    lines: int = 5_000
    window: str = "30m"
    seconds: float = 300.0
    rate_rps: float = 8.0


QUICK = Sizes(lines=500, window="10m", seconds=40.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; status 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_beside", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, in two minutes or so")
    parser.add_argument("--lines", type=int, help="of the batch")
    parser.add_argument("--window", help="of the batch: 30m, 2h")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    sizes = QUICK if args.quick else Sizes()
    sizes = replace(sizes, lines=args.lines or sizes.lines, window=args.window or sizes.window)
    with tempfile.TemporaryDirectory(prefix="qlm-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), sizes))
    print(to_json(figures) if args.json else show(figures))
    return 1 if any(figure.met is False for figure in figures) else 0


async def measure(folder: Path, sizes: Sizes) -> list[Figure]:
    """All figures."""
    config = fleet.temporary_config(folder, ["log.level=warning"])
    bodies = load.Bodies(
        model_len={name: model.max_model_len for name, model in config.models.items()}
    )
    input_file = folder / "lines.jsonl"
    batch_replay.write(input_file, lines(sizes), bodies)
    chats = workload(CHATS, sizes.rate_rps, sizes.seconds)
    async with (
        fleet.running(config, folder) as running,
        BatchClient(running.url) as client,
    ):
        alone = await chatting(running, chats, bodies)
        batch = Batch(client, await client.upload(input_file), sizes.window)
        await batch.create()
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(chatting(running, chats, bodies))
            tasks.create_task(batch.until_over())
    return compared(alone, beside.result()) + batch.figures(sizes.lines)


def workload(slo_class: str, rate_rps: float, seconds: float) -> list[WorkloadRequest]:
    """Requests of a class, the same at each call."""
    stream = Stream(
        slo_class=slo_class,
        models=MODELS,
        rate_rps=rate_rps,
        cv=2.0 if slo_class == CHATS else 1.0,
        until_s=seconds,
        max_tokens=512,
    )
    return list(generate([stream], seed=SEED))


def lines(sizes: Sizes) -> list[WorkloadRequest]:
    """The requests of the batch."""
    rate_rps = 100.0
    found = workload(LINES, rate_rps, 1.5 * sizes.lines / rate_rps + 1.0)
    assert len(found) >= sizes.lines, "half as many again were generated"
    return found[: sizes.lines]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chats:
    """How chats fared."""

    report: Report
    outcomes: list[Outcome]

    @property
    def in_time(self) -> float:
        """Per cent of them."""
        return 100.0 * self.report.attainment_ratio

    def first_token_s(self, share: float) -> float:
        """A quantile of the waits for a first token."""
        found = [one.ttft_s for one in self.outcomes if one.ttft_s is not None]
        return quantile(sorted(found), share) or 0.0


async def chatting(
    running: fleet.Running, chats: Sequence[WorkloadRequest], bodies: load.Bodies
) -> Chats:
    """Send chats as they arrive and wait for all of them."""
    config: Config = running.config
    target = replay.Target(
        url=running.url, grpc_address=config.gateway.grpc_listen, transport="http"
    )
    report, outcomes = await replay.measured(
        chats, target, slos=replay.slos_of(config), bodies=bodies
    )
    return Chats(report=report, outcomes=outcomes)


class Batch:
    """The batch, and what was said of it first."""

    def __init__(self, client: BatchClient, file_id: str, window: str) -> None:
        self._client = client
        self._file_id = file_id
        self._window = window
        self._batch: Json = {}
        self._said: Json = {}
        self._began_s = self._took_s = 0.0

    async def create(self) -> None:
        """Submit it."""
        self._began_s = asyncio.get_running_loop().time()
        self._batch = await self._client.create(
            self._file_id, endpoint=batch_replay.ENDPOINT, window=self._window, metadata={}
        )

    async def until_over(self) -> None:
        """Look at it until it is over. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            while self._batch["status"] not in OVER:
                await asyncio.sleep(POLL_S)
                self._batch = await self._client.get_patiently(self._batch["id"])
                said = self._batch["qlm"] or {}
                if not self._said and said.get("finish_p50_at") is not None:
                    self._said = said
        self._took_s = asyncio.get_running_loop().time() - self._began_s

    def figures(self, lines: int) -> list[Figure]:
        """What came of it."""
        batch, counts = self._batch, self._batch["request_counts"]
        window_s = batch["expires_at"] - batch["created_at"]
        figures = [
            Figure(
                name="batch: lines completed",
                value=counts["completed"],
                unit="lines",
                least=lines,
            ),
            Figure(name="batch: lines failed", value=counts["failed"], unit="lines", most=0.0),
            Figure(name="batch: took", value=self._took_s, unit="s", most=window_s),
        ]
        for share in ("p50", "p90"):
            at = self._said.get(f"finish_{share}_at")
            if at is not None:
                name = f"batch: said first to take, {share}"
                figures.append(Figure(name=name, value=at - batch["created_at"], unit="s"))
        return figures


def compared(alone: Chats, beside: Chats) -> list[Figure]:
    """Chats alone and beside the batch."""
    return [
        Figure(name="chats", value=alone.report.requests, unit="requests"),
        Figure(name="chats in time, alone", value=alone.in_time, unit="%"),
        Figure(
            name="chats in time, beside the batch",
            value=beside.in_time,
            unit="%",
            least=alone.in_time - POINTS_MAX,
        ),
        *(
            Figure(
                name=f"first token, {label}, {where}", value=chats.first_token_s(share), unit="s"
            )
            for share, label in ((0.5, "p50"), (0.99, "p99"))
            for where, chats in (("alone", alone), ("beside the batch", beside))
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
