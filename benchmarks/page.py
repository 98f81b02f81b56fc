"""What the page costs a gateway: its CPU at 200 requests a second with the page off, and with 0, 1 and 20 viewers.

    .venv/bin/python -m benchmarks.page [--seconds 8] [--instances 200]

The fleet is real, its engine answers at once, and each viewer reads all that it is told. With `--instances` another gateway looks
at a stand-in for a solver with so many instances and 10,000 requests that wait, where every queue is another in each step: the
most that there can be to tell. This process is the load; CPU time is read from the system.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
import msgspec
import uvloop
from playwright.async_api import CDPSession, async_playwright

from benchmarks.browser import ARGUMENTS, chromium
from benchmarks.dataplane import AGENT, MODEL
from protos.qlm.v1 import gateway_session_service_pb2 as pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as pb_grpc
from qlm import fleet, ports
from tests.page.views import large

RATE_RPS = 200.0
VIEWERS = (0, 1, 20)
WAITING = 10_000
# Counts frames for so long, in the page.
_COUNTED = """(for_ms) => new Promise((done) => {
  const began = performance.now(), events = window.qlm.events;
  let frames = 0, last = began, longest = 0;
  const frame = (now) => {
    frames += 1;
    longest = Math.max(longest, now - last);
    last = now;
    if (now - began < for_ms) requestAnimationFrame(frame);
    else done([frames, longest, window.qlm.events - events]);
  };
  requestAnimationFrame(frame);
})"""
_WARM_UP_S = 2.0
_BODY = msgspec.json.encode({"model": MODEL, "prompt": "x" * 400, "max_tokens": 1})


@dataclass
class Viewers:
    """Who look on, and how much they have read."""

    bytes: int = 0
    events: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """All that one is told."""
        async for block in answer.content.iter_any():
            self.bytes += len(block)
            self.events += block.count(b"event: ")


async def _measure(seconds: float) -> list[str]:
    lines = []
    for viewers in (None, *VIEWERS):
        with tempfile.TemporaryDirectory(prefix="qlm-page-") as name:
            overrides = [
                f"agents=[{{name: {AGENT}, gpu: a100, models: [{MODEL}], engine: {{sim: {{zero_delay: true}}}}}}]",
                "log.level=warning",
                f"gateway.ui.enabled={'false' if viewers is None else 'true'}",
            ]
            config = fleet.temporary_config(Path(name), overrides)
            async with fleet.running(config, Path(name)) as running:
                pid = running.supervisor.pid("gateway")
                assert pid is not None
                share, told = await _loaded(running.url, pid, seconds, viewers or 0, RATE_RPS)
                what = "page off" if viewers is None else f"{viewers:2} viewers"
                lines.append(_line(what, share, told, seconds))
    return lines


async def _large(seconds: float, instances: int) -> list[str]:
    """A gateway beside a solver of many instances, without requests of its own."""
    lines = []
    server = grpc.aio.server()
    pb_grpc.add_GatewaySessionServiceServicer_to_server(_Solver(instances), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for viewers in VIEWERS:
        with tempfile.TemporaryDirectory(prefix="qlm-page-") as name:
            [http, agents, rpc] = ports.free_addresses(3)
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "qlm", "gateway"),
                *(
                    f"--set=gateway.{key}={value}"
                    for key, value in _places(name, http, agents, rpc)
                ),
                f"--set=gateway.solver=127.0.0.1:{port}",
                "--set=log.level=error",
            )
            try:
                await _answers(f"http://{http}")
                share, told = await _loaded(f"http://{http}", program.pid, seconds, viewers, 0.0)
                lines.append(_line(f"{viewers:2} viewers", share, told, seconds))
                if viewers == VIEWERS[0]:
                    browser = await _in_browser(f"http://{http}", seconds)
            finally:
                program.terminate()
                await program.wait()
    await server.stop(None)
    return lines + browser


async def _in_browser(url: str, seconds: float) -> list[str]:
    """How a browser gets along with it, drawing without a GPU: frames, the longest pause, time and memory of the program."""
    executable = chromium()
    if executable is None:
        return ["no Chromium, so nothing is said of the browser"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        await page.goto(f"{url}/ui")
        await page.locator(".group").first.wait_for()
        tools = await page.context.new_cdp_session(page)
        await tools.send("Performance.enable")
        before = await _metrics(tools)
        frames, longest_ms, events = await page.evaluate(_COUNTED, 1000 * seconds)
        after = await _metrics(tools)
        await browser.close()
    script, whole = (
        100 * (after[name] - before[name]) / seconds for name in ("ScriptDuration", "TaskDuration")
    )
    megabytes, nodes = after["JSHeapUsedSize"] / 1e6, after["Nodes"]
    return [
        f"browser      {frames / seconds:6.1f} frames/s, the longest pause {longest_ms:.0f} ms, {events} events",
        f"             script {script:.1f} %, in all {whole:.1f} % of a core; {megabytes:.1f} MB of objects, {nodes:.0f} nodes",
    ]


async def _metrics(tools: CDPSession) -> dict[str, float]:
    told = await tools.send("Performance.getMetrics")
    return {one["name"]: one["value"] for one in told["metrics"]}


def _places(folder: str, http: str, agents: str, rpc: str) -> list[tuple[str, str]]:
    return [
        ("http_listen", http),
        ("agents_listen", agents),
        ("grpc_listen", rpc),
        ("store.path", f"{folder}/qlm.sqlite"),
    ]


class _Solver(pb_grpc.GatewaySessionServiceServicer):
    """Gives a large view, made before it is asked."""

    def __init__(self, instances: int) -> None:
        self._views = [
            msgspec.json.encode(large(instances, WAITING, tick=tick)) for tick in range(20)
        ]
        self._asked = 0

    async def View(self, request: object, context: object) -> pb.ViewResponse:  # noqa: ARG002
        """One view after the other."""
        self._asked += 1
        return pb.ViewResponse(view_json=self._views[self._asked % len(self._views)])


async def _answers(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(30):
            while True:
                try:
                    async with session.get(f"{url}/health"):
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)


async def _loaded(
    url: str, pid: int, seconds: float, viewers: int, rate_rps: float
) -> tuple[float, Viewers]:
    """The share of a core that a process takes under load, and what viewers were told meanwhile."""
    told = Viewers()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, AsyncExitStack() as stack:
        for _ in range(viewers):
            answer = await stack.enter_async_context(
                session.get(f"{url}/ui/feed", timeout=aiohttp.ClientTimeout(total=None))
            )
            told.tasks.append(asyncio.create_task(told.read(answer)))
        await _send(session, url, _WARM_UP_S, rate_rps)
        told.bytes = told.events = 0
        before_s, began_s = _cpu_s(pid), time.perf_counter()
        await _send(session, url, seconds, rate_rps)
        share = (_cpu_s(pid) - before_s) / (time.perf_counter() - began_s)
        for task in told.tasks:
            task.cancel()
    return share, told


async def _send(session: aiohttp.ClientSession, url: str, seconds: float, rate_rps: float) -> None:
    if not rate_rps:
        await asyncio.sleep(seconds)
        return
    began_s = time.perf_counter()
    tasks = []
    for number in range(int(seconds * rate_rps)):
        await asyncio.sleep(max(0.0, began_s + number / rate_rps - time.perf_counter()))
        tasks.append(asyncio.create_task(_once(session, url)))
    await asyncio.gather(*tasks)


async def _once(session: aiohttp.ClientSession, url: str) -> None:
    headers = {"content-type": "application/json"}
    async with session.post(f"{url}/v1/completions", data=_BODY, headers=headers) as answer:
        await answer.read()
        answer.raise_for_status()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line(what: str, share: float, told: Viewers, seconds: float) -> str:
    line = f"{what:<12} {100 * share:6.1f} % of a core"
    if told.events:
        each = told.bytes / told.events / 1000
        line += f"   {each:7.1f} kB an event, {told.bytes / seconds / 1000:8.1f} kB/s to all"
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the page costs a gateway.")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--instances", type=int, default=0, help="of a large fleet as well")
    args = parser.parse_args(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(f"CPU of the gateway at {RATE_RPS:g} requests/s")
        print("\n".join(runner.run(_measure(args.seconds))), flush=True)
        if args.instances:
            print(
                f"CPU with {args.instances} instances and {WAITING:,} waiting requests, idle otherwise"
            )
            print("\n".join(runner.run(_large(args.seconds, args.instances))))


if __name__ == "__main__":
    main()
