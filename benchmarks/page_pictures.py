"""The pictures of the page in docs/pictures: a mixed load, overload, and an instance that is down, on a fleet of its own.

    .venv/bin/python -m benchmarks.page_pictures docs/pictures

It needs Playwright (the dev extra) and a Chromium, which it looks for as the tests do. Two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.browser import ARGUMENTS, chromium
from qlm import fleet, load, replay
from qlm.commands import demo
from qlm_core.config import Config
from qlm_core.sim.workload import Mix, Stream, WorkloadRequest, generate

# For overload: targets that this fleet cannot keep at such rates.
_STRICT = (
    "slo_classes.interactive.ttft_s=4",
    "slo_classes.interactive.tpot_s=0.2",
    "slo_classes.batch-1.ttft_s=15",
    (
        "agents=[{name: a10-0, gpu: a10, models: [mistral-7b]}, {name: a10-1, gpu: a10, models: [mistral-7b]}, "
        "{name: a100-0, gpu: a100, models: [mistral-7b, vicuna-13b]}]"
    ),
)
_WIDTH, _HEIGHT = 1440, 900
_AFTER_S = 25.0
_OVERLOADED_S = 40.0
_WARM_UP_S = 4.0


async def _main(folder: Path) -> None:
    executable = chromium()
    if executable is None:
        raise SystemExit("no Chromium: install one, or name it in QLM_CHROMIUM")
    async with async_playwright() as playwright:
        profile = tempfile.mkdtemp(prefix="qlm-chromium-")
        browser = await playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
        try:
            async with _fleet() as running, _loaded(running.config, demo.workload(60.0)):
                await asyncio.sleep(_AFTER_S)
                await _picture(browser, running.url, folder / "page-mixed.png", scheme="light")
                await _picture(
                    browser, running.url, folder / "page-instance-down.png", down=running
                )
            async with _fleet(*_STRICT) as running, _loaded(running.config, overload()):
                await asyncio.sleep(_OVERLOADED_S)
                story = folder / "page-story.png"
                await _picture(browser, running.url, folder / "page-overload.png", story=story)
        finally:
            await browser.close()
            shutil.rmtree(profile, ignore_errors=True)


def overload() -> list[WorkloadRequest]:
    """About five times what the fleet can serve."""
    both = Mix((("mistral-7b", 0.6), ("vicuna-13b", 0.4)))
    rates = (("interactive", 45.0), ("batch-1", 12.0), ("batch-2", 3.0))
    streams = [
        Stream(slo_class=name, models=both, rate_rps=rate, cv=1.0, until_s=60.0, max_tokens=512)
        for name, rate in rates
    ]
    return list(generate(streams, seed=11))


@contextlib.asynccontextmanager
async def _fleet(*overrides: str) -> AsyncIterator[fleet.Running]:
    with tempfile.TemporaryDirectory(prefix="qlm-pictures-") as name:
        config = fleet.temporary_config(Path(name), ["log.level=warning", *overrides])
        async with fleet.running(config, Path(name)) as running:
            yield running


@contextlib.asynccontextmanager
async def _loaded(config: Config, requests: list[WorkloadRequest]) -> AsyncIterator[None]:
    url = f"http://{config.gateway.http_listen}"
    target = replay.Target(
        url=url,
        grpc_address=config.gateway.grpc_listen,
        transport="grpc",
        metrics_urls=replay.metrics_urls(config, url),
    )
    bodies = load.Bodies(
        model_len={name: model.max_model_len for name, model in config.models.items()}
    )
    counts, stop = load.Counts(), asyncio.Event()

    async def send() -> None:
        async with replay.transport(target) as way:
            await load.run(
                requests, way, bodies=bodies, counts=counts, concurrency_limit=100_000, stop=stop
            )

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        stop.set()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _picture(
    browser: Browser,
    url: str,
    file: Path,
    *,
    scheme: str = "dark",
    down: fleet.Running | None = None,
    story: Path | None = None,
) -> None:
    context = await browser.new_context(
        viewport={"width": _WIDTH, "height": _HEIGHT},
        color_scheme="light" if scheme == "light" else "dark",
    )
    page: Page = await context.new_page()
    await page.goto(f"{url}/ui")
    await page.wait_for_selector(".group")
    stopped = None
    if down is not None:
        # It does not come back: a stopped process is silent, which is what a lost host looks like.
        stopped = down.supervisor.pid("a100-1")
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        await page.wait_for_selector(".state.gone", timeout=30_000)
    await asyncio.sleep(_WARM_UP_S)
    await page.screenshot(path=file, full_page=True)
    if story is not None:
        # Of a request in the middle of a queue, which still waits for some time.
        groups = page.locator(".lane").first.locator(".group")
        await groups.nth(await groups.count() // 2).click()
        await page.get_by_role("button", name="Story of its first request").click()
        await page.locator(".story .why").wait_for()
        await page.locator(".story").screenshot(path=story)
    if stopped is not None:
        os.kill(stopped, signal.SIGCONT)
    await context.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the pictures of the page.")
    parser.add_argument("folder", type=Path)
    chosen: Path = parser.parse_args().folder
    chosen.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(chosen))
