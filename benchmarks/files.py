"""What a file of a batch's largest size costs a gateway: seconds and memory to upload it, and to fetch it again.

A gateway runs as a real process; the benchmark's process is its clients. Memory is the largest resident size during each
step, less the one before the first (`VmHWM` and `VmRSS` of /proc/PID/status). An interactive client asks for `/health` all the
while, and its slowest answer says whether files hold up the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp

from benchmarks.figures import Figure, show, to_json
from qlm import config_file, fleet
from qlm.service import READY

MEGABYTES = 200
AT_ONCE = 8
LINES = 50_000
PIECE_BYTES = 262_144
POLL_S = 0.02
MEMORY_BYTES = 200e6
UPLOAD_S = 10.0
CONTENT_TYPE = "multipart/form-data; boundary=files"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; status 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help="of the file")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="uploads side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), args.megabytes, args.at_once))
    print(to_json(figures) if args.json else show(figures))
    return 1 if any(figure.met is False for figure in figures) else 0


async def measure(folder: Path, megabytes: int, at_once: int) -> list[Figure]:
    """All figures, with a file of that size."""
    config = fleet.temporary_config(folder, ["agents=[]"])
    file = folder / "config.yaml"
    file.write_text(config_file.to_yaml(config, redact=False))
    source = folder / "source.jsonl"
    digest = make(source, megabytes * 1_000_000)
    url = f"http://{config.gateway.http_listen}"
    with gateway(file) as pid:
        async with aiohttp.ClientSession() as session:
            before = _memory(pid, "VmRSS")
            # The first of everything loads what the others find there.
            await _upload(session, url, folder / "config.yaml", "user_data")
            figures = []
            async with asked_all_the_while(session, url) as waits:
                (id,), took_s, grown = await _uploads(session, url, source, pid, 1)
                figures += [
                    Figure(name=f"upload, {megabytes} MB", value=took_s, unit="s", most=UPLOAD_S),
                    _memory_figure("upload", grown - before),
                ]
                began_s = time.perf_counter()
                _reset(pid)
                if await _fetched(session, url, id) != digest:
                    raise SystemExit("the file came back as another one")
                figures += [
                    Figure(name="fetch", value=time.perf_counter() - began_s, unit="s"),
                    _memory_figure("fetch", _memory(pid, "VmHWM") - before),
                ]
                _, took_s, grown = await _uploads(session, url, source, pid, at_once)
                figures += [
                    Figure(name=f"{at_once} uploads at once", value=took_s, unit="s"),
                    _memory_figure(f"{at_once} uploads", grown - before),
                ]
            figures.append(
                Figure(name="slowest /health meanwhile", value=max(waits) * 1e3, unit="ms")
            )
    return figures


def make(path: Path, size: int) -> str:
    """Write a batch's input of about that size; returns its digest."""
    digest = hashlib.sha256()
    content = "x" * max(1, size // LINES - 180)
    with path.open("wb") as file:
        for number in range(LINES):
            body = {"model": "mistral-7b", "messages": [{"role": "user", "content": content}]}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions"}
            data = json.dumps(line | {"body": body}).encode() + b"\n"
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def gateway(file: Path) -> Iterator[int]:
    """A gateway that runs while the block does; its process."""
    command = [sys.executable, "-m", "qlm", "gateway", "--config", str(file), "--supervised"]
    with (file.parent / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline().decode().strip() == READY
            yield process.pid
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


@contextlib.asynccontextmanager
async def asked_all_the_while(
    session: aiohttp.ClientSession, url: str
) -> AsyncIterator[list[float]]:
    """How long answers to somebody else take while the block runs, seconds."""
    waits: list[float] = []

    async def ask() -> None:
        while True:
            began_s = time.perf_counter()
            async with session.get(f"{url}/health") as answer:
                await answer.read()
            waits.append(time.perf_counter() - began_s)
            await asyncio.sleep(POLL_S)

    asking = asyncio.create_task(ask())
    try:
        yield waits
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _uploads(
    session: aiohttp.ClientSession, url: str, source: Path, pid: int, count: int
) -> tuple[list[str], float, int]:
    """So many uploads side by side: the ids, how long they took, and the gateway's largest size meanwhile."""
    _reset(pid)
    began_s = time.perf_counter()
    ids = await asyncio.gather(*(_upload(session, url, source, "batch") for _ in range(count)))
    return list(ids), time.perf_counter() - began_s, _memory(pid, "VmHWM")


async def _upload(session: aiohttp.ClientSession, url: str, source: Path, purpose: str) -> str:
    async def form() -> AsyncIterator[bytes]:
        yield b'--files\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
        yield purpose.encode()
        yield b'\r\n--files\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        with source.open("rb") as file:
            while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield data
        yield b"\r\n--files--\r\n"

    headers = {"content-type": CONTENT_TYPE}
    async with session.post(f"{url}/v1/files", data=form(), headers=headers) as answer:
        said = await answer.json()
    if answer.status != 200:
        raise SystemExit(f"the gateway said {answer.status}: {said}")
    id: str = said["id"]
    return id


async def _fetched(session: aiohttp.ClientSession, url: str, id: str) -> str:
    """The digest of a file as the gateway gives it back."""
    digest = hashlib.sha256()
    async with session.get(f"{url}/v1/files/{id}/content") as answer:
        async for data in answer.content.iter_any():
            digest.update(data)
    return digest.hexdigest()


def _memory_figure(what: str, grown: int) -> Figure:
    name = f"{what}: memory of the gateway grew by"
    return Figure(name=name, value=grown / 1e6, unit="MB", most=MEMORY_BYTES / 1e6)


def _memory(pid: int, which: str) -> int:
    """VmRSS or VmHWM of a process, bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{which}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _reset(pid: int) -> None:
    """Let the largest size begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
