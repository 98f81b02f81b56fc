"""What is at which path, with which methods, from which pages, and when the gateway says that it is ready."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway import routes
from qlm_core import messages as m
from qlm_core.model import ModelName
from tests.gateway.peers import Agent, Solver, config, fleet, running, solving, soon
from tests.gateway.test_http import CHAT, get, post

PAGE = "https://chat.example.com"


async def ask(
    method: str, url: str, headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers) as answer,
    ):
        told = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, await answer.text(), told


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running(config()) as (_, at):
        yield f"http://{at.http}"


async def test_a_slash_too_many_is_overlooked() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        for path in ("/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions//"):
            assert (await post(f"{it.url}{path}", CHAT))[0] == 200
        plain = await get(f"{it.url}/v1/models")
        assert plain == await get(f"{it.url}/v1/models/")
        assert await get(f"{it.url}/v1/models/tiny/") == await get(f"{it.url}/v1/models/tiny")


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/tiny"])
async def test_a_head_is_a_get_without_a_body(url: str, path: str) -> None:
    got, _, told = await ask("GET", f"{url}{path}")
    assert (got, int(told["content-length"]) > 0) == (200, True)
    status, body, told = await ask("HEAD", f"{url}{path}")
    assert (status, body) == (200, "")
    assert int(told["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("PUT", "/v1/requests/x", "GET, HEAD, DELETE"),
        ("GET", "/v1/responses", "POST"),
        ("POST", "/v1/responses/x", "GET, HEAD, DELETE"),
        ("GET", "/v1/responses/x/cancel", "POST"),
        ("POST", "/v1/responses/x/input_items", "GET, HEAD"),
        ("PUT", "/v1/files", "GET, HEAD, POST"),
        ("POST", "/v1/files/f", "GET, HEAD, DELETE"),
        ("DELETE", "/v1/files/f/content", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    url: str, method: str, path: str, allow: str
) -> None:
    status, _, told = await ask(method, f"{url}{path}")
    assert (status, told["allow"]) == (405, allow)


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/moderations", "not served here. Ask a server of moderation models"),
        ("POST", "/v1/responses/compact", "a shorter conversation"),
        ("POST", "/v1/responses/input_tokens/", "usage.input_tokens"),
        ("POST", "/v1/conversations", "Use POST /v1/responses with previous_response_id"),
        ("POST", "/v1/uploads", "POST /v1/files"),
        ("GET", "/files", "something at /v1/files"),
        ("POST", "/v1/audio/transcriptions", "audio models"),
        ("POST", "/v1/images/generations", "image models"),
        ("POST", "/v1/moderations", "moderation models"),
        ("POST", "/v1/assistants", "Use POST /v1/chat/completions"),
        ("POST", "/v1/fine_tuning/jobs", "trained elsewhere"),
        ("GET", "/v1/chat/completions/chatcmpl-1", "/v1/requests/ID"),
        ("POST", "/chat/completions", "something at /v1/chat/completions"),
        ("GET", "/models", "base URL, which ends in /v1"),
        ("POST", "/v1/v1/completions", "something at /v1/completions"),
        ("GET", "/v1/embeddingsx", "docs/api.md"),
        ("GET", "/", "docs/api.md"),
    ],
)
async def test_what_is_not_here_is_told_what_is(
    url: str, method: str, path: str, words: str
) -> None:
    status, body, _ = await ask(method, f"{url}{path}")
    said = json.loads(body)["error"]
    assert (status, said["code"], said["type"]) == (404, "not_found", "invalid_request_error")
    assert words in said["message"]


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/metrics"])
def test_what_stands_without_the_version_is_said_to(path: str) -> None:
    said = routes.nothing_at(f"/v1{path}/")
    assert said.endswith(f"there is something at {path}. That path stands without /v1.")


def test_a_name_with_a_slash_is_one_model() -> None:
    route = routes.find("/v1/models/meta-llama/Llama-3/")
    assert route is not None
    assert (route.name, route.arg) == ("model", "meta-llama/Llama-3")


# --------------------------------------------------------------------------- pages in browsers

ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}

# docs/api.md's table of response headers.
EXPOSED = (
    "x-request-id",
    "x-qlm-request-id",
    "x-qlm-estimated-wait-ms",
    "x-llm-d-flow-queue-duration-ms",
    "x-llm-d-request-dropped-reason",
    "x-should-retry",
    "retry-after",
    "retry-after-ms",
    "location",
    "preference-applied",
    "x-qlm-clamped",
    "allow",
    "content-disposition",
    "content-range",
    "accept-ranges",
    "etag",
)


def cors_of(told: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in told.items() if name.startswith("access-control-")}


async def test_no_page_is_let_in_unless_configured(url: str) -> None:
    assert (await ask("OPTIONS", f"{url}/v1/chat/completions", ASKS))[0] == 405
    assert cors_of((await ask("GET", f"{url}/v1/models", {"origin": PAGE}))[2]) == {}


@pytest.mark.parametrize("origins", [[PAGE, "http://localhost:3000"], ["*"]])
async def test_a_page_that_is_let_in_may_send_and_read(origins: list[str]) -> None:
    async with running(config(cors_origins=origins, api_keys=["k"])) as (_, at):
        url = f"http://{at.http}/v1/models"
        # A browser asks without the key.
        status, body, told = await ask("OPTIONS", url, ASKS)
        assert (status, body) == (200, "")
        allowed = "*" if origins == ["*"] else PAGE
        assert cors_of(told) == {
            "access-control-allow-origin": allowed,
            "access-control-allow-methods": "GET, HEAD, POST, DELETE",
            "access-control-allow-headers": ASKS["access-control-request-headers"],
            "access-control-max-age": "600",
        }
        for headers, expected in (({}, 401), ({"authorization": "Bearer k"}, 200)):
            status, _, told = await ask("GET", url, {"origin": PAGE} | headers)
            assert (status, told["access-control-allow-origin"]) == (expected, allowed)
            assert tuple(told["access-control-expose-headers"].split(", ")) == EXPOSED
            assert told.get("vary") == (None if allowed == "*" else "Origin")
        assert cors_of((await ask("GET", url))[2]) == {}


async def test_a_page_that_is_not_let_in_is_told_nothing() -> None:
    async with running(config(cors_origins=[PAGE])) as (_, at):
        url = f"http://{at.http}/v1/models"
        stranger = {"origin": "https://chat.example.com.evil.test"}
        status, body, told = await ask("OPTIONS", url, ASKS | stranger)
        assert (status, json.loads(body)["error"]["code"]) == (403, "origin_not_allowed")
        assert (cors_of(told), told["vary"]) == ({}, "Origin")
        _, _, told = await ask("GET", url, stranger)
        assert "access-control-allow-origin" not in told
        assert told["vary"] == "Origin"


async def test_a_stream_reaches_a_page() -> None:
    async with fleet(cors_origins=["*"]) as it:
        it.agent.answer("x")
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{it.url}/v1/chat/completions",
                json=CHAT | {"stream": True},
                headers={"origin": PAGE},
            ) as answer,
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert (await answer.text()).endswith("data: [DONE]\n\n")


# --------------------------------------------------------------------------- readiness


async def ready(url: str) -> tuple[int, Any]:
    status, body = await get(f"{url}/readyz")
    return status, json.loads(body)


def unready(reason: str) -> tuple[int, Any]:
    return 503, {"status": "unready", "reason": reason}


async def test_a_gateway_is_ready_when_a_request_could_be_served() -> None:
    solver = Solver()
    async with solving(solver) as address, running(config(solver=address)) as (gateway, at):
        url = f"http://{at.http}"
        async with Agent(at.agents):
            await soon(lambda: solver.heard(m.AnnounceDone))
            await soon(gateway._solver.models)
            assert await ready(url) == (200, {"status": "ready", "reason": ""})
            solver.orders.put(m.Fleet(()))
            await soon(lambda: not gateway._solver.models())
            assert await ready(url) == unready("no agent serves any model")
            solver.orders.put(m.Fleet((ModelName("tiny"),), up=False))
            await soon(gateway._solver.models)
            assert await ready(url) == unready("no engine of any agent is up")
        solver.orders.close()
        await soon(lambda: not gateway._solver.connected)
        # It lives all the same.
        assert await get(f"{url}/health") == (200, '{"status":"ok","solver":false}')


async def test_a_gateway_without_a_solver_is_not_ready(url: str) -> None:
    assert await ready(url) == unready("no solver is connected")
    assert (await get(f"{url}/healthz"))[0] == 200


async def test_a_draining_gateway_is_not_ready() -> None:
    async with fleet() as it:
        await asyncio.wait_for(it.gateway.driver.drain(), 5.0)
        assert await ready(it.url) == unready("the gateway is shutting down")
