"""The page over HTTP: open files, a feed behind the keys, one question to the solver for all, and stories for their owners."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import gateway.page
from gateway.page.digest import of_tenant
from qlm_core import messages as m
from tests.gateway.peers import Agent, Fleet, config, running, solving, soon
from tests.page.views import Json, ShowingSolver, agent, group, view

KEYS: Json = {
    "alice": {"key": "key-of-alice-0123456789"},
    "bob": {"key": "key-of-bob-0123456789"},
    "root": {"key": "key-of-root-0123456789", "operator": True},
}
PACKAGE = Path(gateway.page.__file__).parent


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]['key']}"}


@contextlib.asynccontextmanager
async def fleet(**section: Any) -> AsyncIterator[tuple[Fleet, ShowingSolver]]:
    solver = ShowingSolver()
    ui = {"refresh_s": 0.02} | section.pop("ui", {})
    async with (
        solving(solver) as address,
        running(config(**({"solver": address} | section), ui=ui)) as (made, at),
        Agent(at.agents) as worker,
    ):
        if "solver" not in section:
            await soon(lambda: solver.heard(m.AnnounceDone))
        yield Fleet(made, at, solver, worker), solver


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Json]]:
    name = ""
    async for line in answer.content:
        text = line.decode().strip()
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))


async def test_the_files_are_open_to_all_and_fetch_nothing_from_elsewhere() -> None:
    async with fleet(api_keys=KEYS) as (it, _), aiohttp.ClientSession(it.url) as session:
        for path, kind in (
            ("/ui", "text/html"),
            ("/ui/", "text/html"),
            ("/ui/page.css", "text/css"),
            ("/ui/page.js", "text/javascript"),
        ):
            async with session.get(path) as answer:
                assert (answer.status, answer.content_type) == (200, kind)
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "connect-src 'self'" in policy
                text = await answer.text()
                # The one address in it is the name space of pictures.
                found = [
                    one for one in re.findall(r"https?://[^\"'`\s)]+", text) if "w3.org" not in one
                ]
                assert found == []


def test_the_program_was_built_from_its_sources() -> None:
    """As `make page` writes it; needs no node."""
    source = PACKAGE / "source"
    digest = hashlib.sha256()
    for path in sorted((source / "src").iterdir(), key=lambda one: one.name):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update((source / "package.json").read_bytes())
    first = (PACKAGE / "static" / "page.js").read_text().splitlines()[0]
    assert first == f"// sources {digest.hexdigest()}", "run `make page`"


async def test_the_feed_begins_with_the_whole_and_goes_on_with_what_is_new() -> None:
    async with fleet() as (it, solver), aiohttp.ClientSession(it.url) as session:
        async with session.get("/ui/feed") as answer:
            assert answer.content_type == "text/event-stream"
            feed = events(answer)
            name, said = await anext(feed)
            assert name == "whole"
            assert list(said["agents"]) == ["a100-0"]
            assert said["targets"]["interactive"]["ttft_s"] == 20.0
            assert [plan["backend"] for plan in said["plans"]] == ["search"]
            solver.view = view(agent("a100-0", group(1)), agent("b"))
            async for name, said in feed:
                assert name == "change"
                assert "targets" not in said
                if "b" in said.get("agents", {}):
                    break
        assert solver.groups_max == 60
        await soon(lambda: it.gateway.page is not None and it.gateway.page.viewers == 0)


async def test_all_viewers_share_one_question_and_nobody_asks_without_them() -> None:
    async with (
        fleet(ui={"refresh_s": 0.05}) as (it, solver),
        aiohttp.ClientSession(it.url) as session,
        contextlib.AsyncExitStack() as stack,
    ):
        assert solver.views == 0
        feeds = [events(await stack.enter_async_context(session.get("/ui/feed"))) for _ in range(5)]
        told = await asyncio.gather(*(anext(feed) for feed in feeds))
        heard = 1
        while heard < 4:
            await asyncio.gather(*(anext(feed) for feed in feeds))
            heard += 1
        assert all(name == "whole" for name, _ in told)
        # Each was told four times; the solver was asked about as often, not five times as often.
        assert solver.views <= heard + 3


async def test_so_many_may_look_on() -> None:
    async with (
        fleet(ui={"viewers_max": 1}) as (it, _),
        aiohttp.ClientSession(it.url) as session,
        session.get("/ui/feed") as answer,
    ):
        await anext(events(answer))
        async with session.get("/ui/feed") as second:
            assert second.status == 429
            assert "gateway.ui.viewers_max" in (await second.json())["error"]["message"]


async def test_without_a_solver_the_page_says_so() -> None:
    async with (
        running(config(ui={"refresh_s": 0.02})) as (_, at),
        aiohttp.ClientSession() as session,
        session.get(f"http://{at.http}/ui/feed") as answer,
    ):
        _, said = await anext(events(answer))
        assert said["solver"] is False
        assert "solver" in said["reason"]


async def test_a_view_that_cannot_be_read_ends_nothing_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fleet() as (it, solver), aiohttp.ClientSession(it.url) as session:
        sound = solver.view
        solver.view = {"agents": [{"id": "odd"}]}
        async with session.get("/ui/feed") as answer:
            feed = events(answer)
            _, said = await anext(feed)
            assert said["solver"] is False
            asked = solver.views
            await soon(lambda: solver.views > asked + 3)
            solver.view = sound
            async for _, said in feed:
                if said.get("solver"):
                    break
            assert list(said["agents"]) == ["a100-0"]
    told = [record for record in caplog.records if record.name == "gateway.page.hub"]
    assert [record.getMessage() for record in told] == ["the page cannot be renewed"]


async def test_a_stranger_sees_nothing_and_a_tenant_its_own() -> None:
    async with fleet(api_keys=KEYS) as (it, _), aiohttp.ClientSession(it.url) as session:
        for path in ("/ui/feed", "/ui/requests/x"):
            async with session.get(path) as answer:
                assert answer.status == 401
        id = await submitted(session, "alice")
        async with session.get("/ui/feed", headers=key("alice")) as answer:
            _, said = await anext(events(answer))
            assert said["yours"]["waiting"] == 1
            assert said["agents"]["a100-0"]["queue"] == []
            assert not {"plan", "plans", "tally", "batches", "waiting"} & set(said)
        async with session.get("/ui/feed", headers=key("bob")) as answer:
            assert (await anext(events(answer)))[1]["yours"]["waiting"] == 0
        async with session.get("/ui/feed", headers=key("root")) as answer:
            assert (await anext(events(answer)))[1]["agents"]["a100-0"]["queue"]
        async with session.get(f"/ui/requests/{id}", headers=key("bob")) as answer:
            assert answer.status == 404


async def submitted(session: aiohttp.ClientSession, who: str) -> str:
    body = {"model": "tiny", "prompt": "canary-prompt", "max_tokens": 3}
    headers = key(who) | {"x-qlm-async": "true"}
    async with session.post("/v1/completions", json=body, headers=headers) as answer:
        assert answer.status == 202
        return str((await answer.json())["id"])


async def test_a_story_tells_what_happened_and_why_it_waits() -> None:
    async with fleet(api_keys=KEYS) as (it, _), aiohttp.ClientSession(it.url) as session:
        id = await submitted(session, "alice")

        async def story() -> Json:
            async with session.get(f"/ui/requests/{id}", headers=key("alice")) as answer:
                assert answer.status == 200
                assert "canary-prompt" not in await answer.text()
                return dict(await answer.json())

        waiting = await story()
        assert waiting["request"]["phase"] == "waiting"
        assert waiting["why"]["why"] == "test"
        assert [step["what"] for step in waiting["steps"]] == ["arrived"]
        it.agent.answer("a", "b")
        it.agent.pull(id)
        await soon(lambda: it.gateway.driver.live(m.RequestId(id)) is None)
        ended = await story()
        assert ended["request"]["phase"] == "finished"
        assert "response" not in ended["request"]
        assert ended["why"] is None
        steps = [step["what"] for step in ended["steps"]]
        assert steps == ["arrived", "pulled", "first token", "finished"]
        assert ended["steps"][1]["agent"] == "agent-0"
        # And it counts for its class.
        async with session.get("/ui/feed", headers=key("root")) as answer:
            _, said = await anext(events(answer))
            assert said["tally"]["interactive"]["ended"] == 1


async def test_batches_are_told_with_their_progress_and_without_their_words() -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": "canary-prompt", "max_tokens": 3},
    }
    async with fleet() as (it, _), aiohttp.ClientSession(it.url) as session:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", json.dumps(line).encode(), filename="canary-name.jsonl")
        async with session.post("/v1/files", data=form) as answer:
            file = await answer.json()
        asked = {
            "input_file_id": file["id"],
            "endpoint": "/v1/completions",
            "completion_window": "8h",
            "metadata": {"a": "canary-note"},
        }
        async with session.post("/v1/batches", json=asked) as answer:
            batch = await answer.json()
        await soon(lambda: it.solver.heard(m.Arrived))
        async with session.get("/ui/feed") as answer:
            _, said = await anext(events(answer))
        [shown] = said["batches"]
        assert (shown["id"], shown["status"]) == (batch["id"], "in_progress")
        assert shown["request_counts"] == {"total": 1, "completed": 0, "failed": 0}
        assert shown["expires_at"] == batch["expires_at"]
        assert "canary" not in json.dumps(said)


@pytest.mark.parametrize("path", ["/ui", "/ui/page.js", "/ui/feed", "/ui/requests/x"])
async def test_it_can_be_turned_off(path: str) -> None:
    async with fleet(ui={"enabled": False}) as (it, solver), aiohttp.ClientSession() as session:
        assert it.gateway.page is None
        async with session.get(f"{it.url}{path}") as answer:
            assert answer.status == 404
            assert "gateway.ui.enabled" in (await answer.json())["error"]["message"]
        assert solver.views == 0


async def test_a_gateway_that_stops_lets_viewers_go() -> None:
    async with (
        fleet() as (it, _),
        aiohttp.ClientSession(it.url) as session,
        session.get("/ui/feed") as answer,
    ):
        feed = events(answer)
        await anext(feed)
        assert it.gateway.page is not None
        it.gateway.page.close()
        async for _ in feed:
            pass


def test_a_tenant_before_the_first_view() -> None:
    assert of_tenant({"agents": {}}, {"waiting": 0}) == {"agents": {}, "yours": {"waiting": 0}}
