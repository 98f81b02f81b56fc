"""What batches cost: reading a large file, the first line, cancel, lines a second, files at the end, memory while lines wait.

Real processes: solver, gateway and two agents, one of them with a zero-delay engine, as `qlm up` runs them. This process is the
client. Times are as it sees them, asking every few milliseconds; memory is that of the gateway's and the solver's processes.
Lines that wait are of a model whose engine takes as long as a GPU, so they are planned and some of them run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.figures import Figure, show, to_json
from qlm import fleet
from qlm.report import quantile

MODEL, WAITING_MODEL = "mistral-7b", "vicuna-13b"
AGENT, WAITING_AGENT = "bench-0", "bench-1"
PATH = "/v1/completions"
# Outputs of a usual length, so that few lines have ended by the end of a measurement.
WAITING_TOKENS = 300
POLL_S = 0.005
PATIENCE_S = 600.0
RATE_RPS = 50.0
TEXT = "Some words of a document that somebody wants to have summarised tonight. "
# What a line has beside its prompt.
REST_BYTES = 180
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        lines, file_bytes: of the large file.
        run: lines that are run through the zero-delay engine.
        batches: how many of the large file's wait at a time.
        seconds: of interactive requests, each time.
    """

    lines: int = 50_000
    file_bytes: int = 200_000_000
    run: int = 50_000
    batches: int = 20
    seconds: float = 10.0


QUICK = Sizes(lines=10_000, file_bytes=40_000_000, run=5_000, batches=4, seconds=4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; status 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of it, in under a minute")
    parser.add_argument("--batches", type=int, help="how many large batches wait at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    sizes = QUICK if args.quick else Sizes()
    if args.batches is not None:
        sizes = replace(sizes, batches=args.batches)
    with tempfile.TemporaryDirectory(prefix="qlm-bench-") as folder:
        figures = asyncio.run(measure(Path(folder), sizes))
    print(to_json(figures) if args.json else show(figures))
    return 1 if any(figure.met is False for figure in figures) else 0


def overrides() -> tuple[str, ...]:
    """An agent with a zero-delay engine, and one for the other model that is as fast as a GPU."""
    fast = f"{{name: {AGENT}, gpu: a100, models: [{MODEL}], engine: {{sim: {{zero_delay: true}}}}}}"
    slow = f"{{name: {WAITING_AGENT}, gpu: a100, models: [{WAITING_MODEL}], engine: {{kind: sim}}}}"
    return (
        f"agents=[{fast}, {slow}]",
        # Times are told from the moment of asking; nothing is to wait for a finish time.
        "gateway.batches.finish_wait_s_max=0",
        "log.level=warning",
    )


async def measure(folder: Path, sizes: Sizes) -> list[Figure]:
    """All figures."""
    config = fleet.temporary_config(folder, overrides())
    large, small, waiting = (folder / f"{name}.jsonl" for name in ("large", "small", "waiting"))
    prompt_bytes = sizes.file_bytes // sizes.lines - REST_BYTES
    write(large, sizes.lines, prompt_bytes, MODEL)
    write(waiting, sizes.lines, prompt_bytes, WAITING_MODEL, output_tokens=WAITING_TOKENS)
    write(small, sizes.run, 64, MODEL)
    async with (
        fleet.running(config, folder) as running,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session,
    ):
        bench = Bench(running, session, sizes)
        await bench.interactive(1.0)
        figures = await bench.large_file(large)
        figures += await bench.throughput(small)
        return figures + await bench.many_waiting(waiting)


def write(path: Path, lines: int, prompt_bytes: int, model: str, *, output_tokens: int = 1) -> None:
    """An input file; each line has a prompt of its own."""
    text = TEXT * (prompt_bytes // len(TEXT) + 1)
    with path.open("wb") as file:
        for number in range(lines):
            prompt = f"{number:08d} {text[:prompt_bytes]}"
            body = {"model": model, "prompt": prompt, "max_tokens": output_tokens}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": PATH, "body": body}
            file.write(msgspec.json.encode(line) + b"\n")


class Bench:
    """A fleet and its client."""

    def __init__(
        self, running: fleet.Running, session: aiohttp.ClientSession, sizes: Sizes
    ) -> None:
        self._url = f"{running.url}/v1"
        self._session = session
        self._sizes = sizes
        self._gateway = running.supervisor.pid("gateway")
        self._solver = running.supervisor.pid("solver")

    async def large_file(self, path: Path) -> list[Figure]:
        """Upload, validation and the first line of a large file; then it is cancelled."""
        forget_peak(self._gateway)
        before = resident(self._gateway, peak=False)
        began_s = time.perf_counter()
        file_id = await self._upload(path)
        upload_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        batch = await self._create(file_id)
        batch = await self._until(batch, lambda it: it["status"] != "validating")
        valid_s = time.perf_counter() - began_s
        assert batch["status"] == "in_progress", batch["errors"]
        batch = await self._until(batch, lambda it: it["request_counts"]["completed"])
        first_s = time.perf_counter() - began_s
        grown = resident(self._gateway, peak=True) - before
        began_s = time.perf_counter()
        await self._post(f"/batches/{batch['id']}/cancel")
        batch = await self._until(batch, lambda it: it["status"] == "cancelled")
        cancel_s = time.perf_counter() - began_s
        counts = batch["request_counts"]
        assert counts["completed"] + counts["failed"] == self._sizes.lines
        return [
            Figure(name="upload", value=upload_s, unit="s"),
            Figure(name="create to validated", value=valid_s, unit="s"),
            Figure(name="both", value=upload_s + valid_s, unit="s", most=10.0),
            Figure(name="create to the first line's answer", value=first_s, unit="s", most=1.0),
            Figure(name="gateway's memory meanwhile", value=grown / 1e6, unit="MB", most=200.0),
            Figure(name="cancel to cancelled", value=cancel_s, unit="s", most=5.0),
        ]

    async def throughput(self, path: Path) -> list[Figure]:
        """Small lines through an engine without delay, and the files at the end."""
        batch = await self._create(await self._upload(path))
        batch = await self._until(batch, lambda it: it["request_counts"]["completed"])
        began_s, done = time.perf_counter(), batch["request_counts"]["completed"]
        batch = await self._until(batch, lambda it: it["status"] != "in_progress")
        run_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        batch = await self._until(batch, lambda it: it["status"] == "completed")
        final_s = time.perf_counter() - began_s
        assert batch["request_counts"]["completed"] == self._sizes.run
        rate = (self._sizes.run - done) / run_s
        return [
            Figure(name="lines run", value=rate, unit="lines/s", least=700.0),
            Figure(name="finalising", value=final_s, unit="s", most=10.0),
        ]

    async def many_waiting(self, path: Path) -> list[Figure]:
        """Interactive requests without and with many batches that wait, and the memory that those take."""
        alone_s = await self.interactive(self._sizes.seconds)
        file_id = await self._upload(path)
        before = self._both()
        for _ in range(self._sizes.batches):
            batch = await self._create(file_id)
            await self._until(batch, lambda it: it["status"] == "in_progress")
        await asyncio.sleep(1.0)
        lines = self._sizes.batches * self._sizes.lines
        grown = self._both() - before
        beside_s = await self.interactive(self._sizes.seconds)
        return [
            Figure(name="lines that wait", value=lines, unit="lines"),
            Figure(
                name="memory of gateway and solver",
                value=grown / lines,
                unit="bytes/line",
                most=1_000.0,
            ),
            *(
                Figure(
                    name=f"interactive {where}, {label}",
                    value=(quantile(sorted(waits_s), share) or 0.0) * 1e3,
                    unit="ms",
                )
                for share, label in ((0.5, "p50"), (0.99, "p99"))
                for where, waits_s in (("alone", alone_s), ("beside", beside_s))
            ),
        ]

    async def interactive(self, seconds: float) -> list[float]:
        """Latencies of requests at a constant rate, whatever the answers."""
        body = msgspec.json.encode({"model": MODEL, "prompt": TEXT, "max_tokens": 1})
        began_s = time.perf_counter()

        async def once() -> float:
            sent_s = time.perf_counter()
            async with self._session.post(f"{self._url}/completions", data=body) as answer:
                await answer.read()
                answer.raise_for_status()
            return time.perf_counter() - sent_s

        tasks = []
        for number in range(int(seconds * RATE_RPS)):
            await asyncio.sleep(max(0.0, began_s + number / RATE_RPS - time.perf_counter()))
            tasks.append(asyncio.create_task(once()))
        return list(await asyncio.gather(*tasks))

    async def _upload(self, path: Path) -> str:
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=path.name)
            async with self._session.post(f"{self._url}/files", data=form) as answer:
                return str((await self._read(answer))["id"])

    async def _create(self, file_id: str) -> Json:
        asked = {"input_file_id": file_id, "endpoint": PATH, "completion_window": "24h"}
        return await self._post("/batches", asked)

    async def _post(self, path: str, body: Json | None = None) -> Json:
        async with self._session.post(f"{self._url}{path}", json=body or {}) as answer:
            return await self._read(answer)

    async def _until(self, batch: Json, reached: Callable[[Json], object]) -> Json:
        async with asyncio.timeout(PATIENCE_S):
            while not reached(batch):
                await asyncio.sleep(POLL_S)
                async with self._session.get(f"{self._url}/batches/{batch['id']}") as answer:
                    batch = await self._read(answer)
        return batch

    async def _read(self, answer: aiohttp.ClientResponse) -> Json:
        data = await answer.read()
        assert answer.status == 200, data
        return msgspec.json.decode(data, type=Json)

    def _both(self) -> int:
        return resident(self._gateway, peak=False) + resident(self._solver, peak=False)


def resident(pid: int | None, *, peak: bool) -> int:
    """Bytes of a process in memory, now or at most so far."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


def forget_peak(pid: int | None) -> None:
    """Let the peak count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
