"""What clients of other servers are used to: tiers, when to come back and when not, targets out of range, sessions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from msgspec.structs import replace
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from gateway.admission import Admission
from gateway.intake import Intake, Wish
from gateway.keys import Caller
from gateway.tiers import KNOWN, Tiers, told_tier
from qlm_core import messages as m
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest, QueueFull
from qlm_core.ledger import EndRecord
from qlm_core.model import ModelName, Phase
from qlm_core.outcome import ShedReason
from tests.doors.beds import KEYS
from tests.gateway.peers import Fleet, config, ended, fleet, running, soon
from tests.gateway.test_http import CHAT, client, get, post
from tests.gateway.test_store import request as stored

ANYONE = Caller(tenant="", operator=True)


def tiers(**classes: Any) -> Tiers:
    sections = {name: {"ttft_s": 1.0, "service_tiers": own} for name, own in classes.items()}
    return Tiers(
        Config.from_mapping({"slo_classes": sections, "default_slo_class": next(iter(classes))})
    )


# --------------------------------------------------------------------------- tiers


@pytest.mark.parametrize("tier", KNOWN)
def test_every_tier_of_openais_is_known_whatever_the_configuration_names(tier: str) -> None:
    assert tiers(only=[]).select("", tier, ANYONE) == ("only", "default")
    assert tiers(a=["default"], b=["x"]).select("", tier, ANYONE) == ("a", "default")


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("auto", ("normal", "default")),
        (None, ("normal", "default")),
        ("default", ("normal", "default")),
        ("fast", ("first", "priority")),
        ("priority", ("first", "priority")),
        ("flex", ("last", "flex")),
        ("batch", ("last", "flex")),
        ("scale", ("normal", "default")),
        ("last", ("last", "flex")),
    ],
)
def test_a_tier_selects_its_class_and_the_one_used_is_told(
    tier: str | None, expected: tuple[str, str]
) -> None:
    known = tiers(normal=["default"], first=["priority"], last=["flex", "batch"])
    assert known.select("", tier, ANYONE) == expected


def test_a_class_that_is_nearly_right_is_recognised() -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'last'"):
        tiers(normal=["default"], last=["flex"]).select("lasst", None, ANYONE)


def test_fast_may_have_a_class_of_its_own_and_is_answered_as_what_it_means() -> None:
    known = tiers(normal=["default"], first=["fast"])
    assert known.select("", "fast", ANYONE) == ("first", "priority")
    assert known.select("first", "flex", ANYONE) == ("first", "priority")


def test_what_is_said_beside_the_body_goes_first_and_tiers_count_there_too() -> None:
    known = tiers(normal=["default"], first=["priority"], last=["flex"])
    assert known.select("flex", "priority", ANYONE) == ("last", "flex")
    assert known.select("fast", None, ANYONE) == ("first", "priority")


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ([], "default"),
        (["background"], "default"),
        (["auto", "background"], "default"),
        (["background", "flex", "scale"], "flex"),
        (["fast"], "priority"),
        (["ultrafast", "scale"], "scale"),
        (["scale", "default"], "default"),
    ],
)
def test_what_openais_types_are_to_hold_is_told_a_tier_of_openais(
    own: list[str], told: str
) -> None:
    assert told_tier(own) == told
    assert tiers(only=own).select("", "only", ANYONE) == ("only", told)


def test_who_may_not_ask_for_the_default_class_gets_one_of_their_own() -> None:
    known = tiers(normal=["default"], last=["flex"])
    theirs = Caller(tenant="t", classes=("last",))
    assert known.select("", "scale", theirs) == ("last", "flex")


@pytest.mark.parametrize(
    ("asked", "tier", "field"), [("", "gold", "service_tier"), ("gold", None, "slo_class")]
)
def test_what_nobody_knows_is_told_what_is_known(asked: str, tier: str | None, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tiers(normal=["default"], last=["batch"]).select(asked, tier, ANYONE)
    assert (caught.value.field, caught.value.code) == (field, f"unknown_{field}")
    for word in ("normal", "last", "batch", *KNOWN):
        assert word in str(caught.value)


async def test_the_openai_client_is_told_the_tier_that_was_used() -> None:
    async with fleet() as it:
        it.agent.answer("x")
        async with client(it) as api:
            fast = await api.chat.completions.create(**CHAT, service_tier="fast")  # type: ignore[call-overload]
            scale = await api.chat.completions.create(**CHAT, service_tier="scale")  # type: ignore[call-overload]
            stream = await api.chat.completions.create(**CHAT, service_tier="fast", stream=True)  # type: ignore[call-overload]
            assert {part.service_tier async for part in stream} == {"priority"}
        assert (fast.service_tier, scale.service_tier) == ("priority", "scale")


@pytest.mark.parametrize("word", [None, "auto", "fast", "flex", "background", "batch-2"])
async def test_whatever_selected_the_class_answers_hold_against_openais_types(
    word: str | None,
) -> None:
    async with fleet() as it:
        it.agent.answer("x")
        for path, body, kind in (
            ("chat/completions", CHAT, ChatCompletion),
            ("responses", {"model": "tiny", "input": "x"}, Response),
        ):
            _, told, _ = await post(f"{it.url}/v1/{path}", body | {"service_tier": word})
            assert told["service_tier"] is not None
            kind.model_validate(told)
        streamed = CHAT | {"service_tier": word, "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{it.url}/v1/chat/completions", json=streamed) as answer,
        ):
            events = (await answer.text()).split("\n\n")
        chunks = [one.removeprefix("data: ") for one in events if one.startswith("data: {")]
        assert chunks
        for chunk in chunks:
            ChatCompletionChunk.model_validate_json(chunk)


# --------------------------------------------------------------------------- targets out of range


@pytest.mark.parametrize(
    ("headers", "told", "slo"),
    [
        ({"x-llm-d-slo-ttft-ms": "-5"}, "ttft_s=0.001", (0.001, 0.2, None)),
        ({"x-slo-ttft-ms": "1e12"}, "ttft_s=604800", (604_800.0, 0.2, None)),
        (
            {"x-slo-ttft-ms": "0", "x-slo-tpot-ms": "1e30"},
            "ttft_s=0.001, tpot_s=604800",
            (0.001, 604_800.0, None),
        ),
        ({"x-qlm-slo-e2e-ms": "1e300"}, "e2e_s=604800", (20.0, 0.2, 604_800.0)),
        ({"x-llm-d-inference-ttl": "200h"}, "ttl_s=86400", (20.0, 0.2, None)),
        ({"x-slo-ttft-ms": "5000"}, None, (5.0, 0.2, None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_out_of_range_is_brought_within_and_the_answer_says_so(
    headers: dict[str, str], told: str | None, slo: tuple[Any, ...], stream: bool
) -> None:
    async with fleet() as it:
        it.agent.answer("x")
        url = f"{it.url}/v1/chat/completions"
        if stream:
            async with client(it, default_headers=headers) as api:
                raw = await api.chat.completions.with_raw_response.create(**CHAT, stream=True)  # type: ignore[call-overload]
            answered = raw.headers
        else:
            answered = (await post(url, CHAT, headers))[2]
        assert answered.get("x-qlm-clamped") == told  # type: ignore[union-attr]
        arrived = it.solver.heard(m.Arrived)[0].request.slo
        assert (arrived.ttft_s, arrived.tpot_s, arrived.e2e_s) == slo


# --------------------------------------------------------------------------- sessions


@pytest.mark.parametrize(
    ("headers", "fields", "tenant"),
    [
        ({"x-claude-code-session-id": "c"}, {}, "c"),
        ({"session-id": "s"}, {}, "s"),
        ({"session_id": "s"}, {}, "s"),
        ({"x-session-affinity": "a"}, {}, "a"),
        ({"x-session-affinity": "a", "x-claude-code-session-id": "c"}, {}, "c"),
        ({"session-id": "s"}, {"user": "u"}, "u"),
        ({"session-id": "s", "x-tenant-id": "t"}, {}, "t"),
        ({"session-id": "s" * 300}, {}, "s" * 256),
    ],
)
async def test_a_session_is_a_tenant_where_none_is_said(
    headers: dict[str, str], fields: dict[str, str], tenant: str
) -> None:
    async with fleet() as it:
        it.agent.answer("x")
        await post(f"{it.url}/v1/chat/completions", CHAT | fields, headers)
        assert it.solver.heard(m.Arrived)[0].request.tenant == tenant


# --------------------------------------------------------------------------- coming back


async def test_what_waited_out_its_time_is_not_sent_again() -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: None
        headers = {"x-llm-d-inference-ttl": "20ms"}
        async with client(it, default_headers=headers).with_options(max_retries=5) as api:
            with pytest.raises(openai.RateLimitError, match="time to live") as raised:
                await api.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert raised.value.code == "rejected-ttl-expired"
        told = raised.value.response.headers
        assert told["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
        assert told["x-should-retry"] == "false"
        assert "retry-after" not in told
        assert len(it.solver.heard(m.Arrived)) == 1
        text = (await get(f"{it.url}/metrics"))[1]
        assert 'reason="rejected-ttl-expired",slo_class="interactive"} 1.0' in text


@pytest.mark.parametrize(
    "orders",
    [m.Fleet((ModelName("other"),)), m.Fleet((ModelName("tiny"),), up=False), m.Fleet(())],
    ids=["another model", "no engine up", "no agent"],
)
async def test_what_waited_for_an_engine_that_is_not_there_is_told_so(orders: m.Fleet) -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: None
        it.solver.orders.put(orders)
        await soon(lambda: not it.gateway._solver.serves(ModelName("tiny")))
        headers = {"x-llm-d-inference-ttl": "20ms"}
        status, told, answered = await post(f"{it.url}/v1/chat/completions", CHAT, headers)
        assert (status, told["error"]["code"]) == (503, "rejected-no-endpoints")
        assert answered["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"  # type: ignore[index, call-overload]
        assert 1 <= int(answered["retry-after"]) <= 120  # type: ignore[index, call-overload]


async def test_what_an_engine_had_did_not_wait_for_one() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.solver.orders.put(m.Fleet(()))
        headers = {"x-llm-d-inference-ttl": "200ms"}
        status, told, _ = await post(f"{it.url}/v1/chat/completions", CHAT, headers)
        assert (status, told["error"]["code"]) == (429, "rejected-ttl-expired")


async def test_nobody_is_told_to_come_back_later_than_clients_heed() -> None:
    async with fleet() as it:
        it.solver.on_arrival = lambda id: it.solver.orders.put(
            m.ShedOrder(id, ShedReason.LATE, 900.0)
        )
        _, _, told = await post(f"{it.url}/v1/chat/completions", CHAT)
        said = [told[name] for name in ("retry-after", "retry-after-ms")]  # type: ignore[index, call-overload]
        assert said == ["120", "120000"]


def shed(admission: Admission, body: bytes, now_s: float) -> EndRecord:
    """How a request ends that came in and of which the solver had too many."""
    request = replace(stored("r", owner="t"), body=body)
    record = EndRecord(
        phase=Phase.SHED, reason=ShedReason.SATURATED.value, error="", prompt_tokens=1, output_tokens=0, queue_s=None,
        ttft_s=None, tpot_s=None, e2e_s=0.1, attained=False, attempts=0, evictions=0, estimate=None,
    )  # fmt: skip
    return admission.ended(request, record, now_s)


def test_what_the_solver_has_no_room_for_comes_back_one_after_the_other() -> None:
    admission = Admission(config(), served=lambda model: True, now_s=0.0)
    turns = [shed(admission, b"%d" % index, 10.0).retry_after_s for index in range(4)]
    assert turns == sorted(set(turns))
    assert turns[0] >= 1.0


def test_a_tenant_at_its_own_limit_has_turns_of_its_own() -> None:
    intake = Intake(config(), lambda: ())
    admission = Admission(config(), served=lambda model: True, now_s=0.0)

    def admit(tenant: str, seed: int, open_requests: int, now_s: float) -> float:
        body = b'{"model": "tiny", "prompt": "x", "seed": %d}' % seed
        caller = Caller(tenant=tenant, requests_max=2)
        draft = intake.draft(body, Endpoint.COMPLETIONS, wish=Wish(), caller=caller)
        try:
            admission.admit(
                draft, open_requests=9, own_requests=open_requests, connections=None, now_s=now_s
            )
        except QueueFull as error:
            return error.retry_after_s
        return 0.0

    turns = [admit("a", seed, 2, 10.0) for seed in range(3)]
    assert turns == sorted(set(turns))
    assert admit("b", 0, 1, 10.0) == 0.0
    # There is room again: it is for whose turn it is, not for who comes by.
    now_s = 10.0 + turns[0]
    assert admit("a", 7, 1, now_s) > 0.0
    assert admit("a", 0, 1, now_s) == 0.0


async def waiting(it: Fleet, count: int, headers: dict[str, str]) -> list[asyncio.Task[Any]]:
    tasks = [
        asyncio.create_task(
            post(f"{it.url}/v1/chat/completions", CHAT | {"seed": -1 - index}, headers)
        )
        for index in range(count)
    ]
    await soon(lambda: len(it.agent.payloads) == count)
    return tasks


async def test_a_tenant_at_its_own_limit_is_told_when_to_come_back() -> None:
    keys = json.loads(json.dumps(KEYS))
    keys["alice"]["requests_max"] = 2
    key = {"authorization": f"Bearer {keys['alice']['key']}"}
    async with fleet(api_keys=keys) as it:
        it.agent.on_payload = lambda payload: None
        tasks = await waiting(it, 2, key)
        status, told, headers = await post(f"{it.url}/v1/chat/completions", CHAT, key)
        assert (status, told["error"]["code"]) == (429, "queue_full")
        assert "of this API key: the limit of 2" in told["error"]["message"]
        assert int(headers["retry-after-ms"]) >= 1  # type: ignore[index, call-overload]
        for payload in it.agent.payloads:
            it.agent.say(payload, "x", finish="stop")
        assert [(await task)[0] for task in tasks] == [200, 200]
        await soon(lambda: ended(it.solver) == [Phase.FINISHED] * 2)


async def test_without_any_solver_nothing_is_served() -> None:
    async with running(config()) as (_, at):
        headers = {"x-llm-d-inference-ttl": "20ms"}
        status, told, _ = await post(f"http://{at.http}/v1/chat/completions", CHAT, headers)
        assert (status, told["error"]["code"]) == (503, "rejected-no-endpoints")
