"""A real nginx before a gateway, configured as shipped: streams pass as they come, and metrics stay inside."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from qlm import ports
from tests.gateway.peers import Fleet, fleet, soon

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx: `apt-get install nginx-light`")
SHIPPED = Path(__file__).resolve().parents[2] / "deploy/nginx/qlm.conf"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}


@contextlib.asynccontextmanager
async def before(it: Fleet, folder: Path) -> AsyncIterator[str]:
    """The shipped server, on a port of its own, before this gateway."""
    [address] = ports.free_addresses(1)
    text = SHIPPED.read_text()
    for shipped, here in (
        ("server 127.0.0.1:7400;", f"server {it.addresses.http};"),
        ("listen 80;", f"listen {address};"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text += f"{kind}_temp_path {folder}/{kind};\n"
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{text}}}\n"
    )
    assert NGINX is not None
    program = await asyncio.create_subprocess_exec(
        NGINX, "-p", folder, "-c", file, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20.0), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"http://{address}/health"):
                        break
                assert program.returncode is None
                await asyncio.sleep(0.05)
        yield f"http://{address}"
    finally:
        program.terminate()
        await program.wait()


async def test_a_stream_comes_token_by_token(tmp_path: Path) -> None:
    async with (
        fleet() as it,
        before(it, tmp_path) as url,
        aiohttp.ClientSession(url) as session,
        asyncio.timeout(30.0),
    ):
        asked = asyncio.create_task(session.post("/v1/chat/completions", json=CHAT))
        payload = await it.agent.payload()
        # The status comes with the first of them, and no word is said before the one before it is here.
        it.agent.say(payload, "zero")
        answer = await asked
        assert answer.status == 200
        for word in ("zero", "one", "two"):
            if word != "zero":
                it.agent.say(payload, word)
            while word not in (await answer.content.readuntil(b"\n\n")).decode():
                pass
        it.agent.say(payload, finish="stop")
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


async def test_the_page_is_fed_and_metrics_stay_inside(tmp_path: Path) -> None:
    async with (
        fleet(ui={"refresh_s": 0.05}) as it,
        before(it, tmp_path) as url,
        aiohttp.ClientSession(url) as session,
    ):
        async with session.get("/metrics") as answer:
            assert answer.status == 403
        async with session.get("/ui") as answer:
            assert answer.status == 200
        async with session.get("/ui/feed") as answer, asyncio.timeout(10.0):
            for name in ("whole", "change", "change"):
                event = await answer.content.readuntil(b"\n\n")
                assert event.startswith(f"event: {name}\n".encode())
        assert it.gateway.page is not None
        # And a viewer that goes away is gone.
        await soon(lambda: it.gateway.page is not None and not it.gateway.page.viewers)


async def test_a_client_that_hangs_up_ends_its_request(tmp_path: Path) -> None:
    async with fleet() as it, before(it, tmp_path) as url:
        async with aiohttp.ClientSession(url) as session:
            asked = asyncio.create_task(session.post("/v1/chat/completions", json=CHAT))
            payload = await it.agent.payload()
            it.agent.say(payload, "one")
            answer = await asked
            await answer.content.readany()
            answer.close()
        await soon(lambda: it.gateway.driver.live(payload.id) is None)
