"""When a batch would be done that is not created: asked by the body that would create it, and refused as that would be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qlm.__main__ import main
from qlm_core import messages as m
from qlm_core.model import Estimate, Slo
from tests.batches.beds import CHAT, EMBED, Bed, Json, bed, chat, chats, client_of, jsonl
from tests.gateway.peers import config, running, soon
from tests.gateway.test_http import post

SAID = m.BatchForecast(
    Estimate(mean_s=1.0, p50_s=1.0, p90_s=2.0, p99_s=3.0), True, 60.0, 90.0, "it goes first"
)


async def ask(one: Bed, file_id: str, key: str = "unused", **changed: Any) -> tuple[int, Json]:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "8h"} | changed
    headers = {"authorization": f"Bearer {key}"}
    status, told, _ = await post(f"{one.fleet.url}/v1/estimate", body, headers)
    return status, told


async def test_the_solver_is_asked_what_it_would_be_told_of_the_batch() -> None:
    lines = [chat(f"tiny-{number}", max_tokens=12) for number in range(4)]
    lines += [chat(f"other-{number}", model="elsewhere", max_tokens=30) for number in range(3)]
    async with bed() as one:
        status, told = await ask(one, await one.upload(lines))
        assert status == 200, told
        [question] = one.fleet.solver.asked
        assert (question.slo_class, question.slo) == ("batch-2", Slo(ttft_s=28800.0, e2e_s=28800.0))
        counts = [(part.model, part.lines, part.max_output_tokens) for part in question.parts]
        assert counts == [("tiny", 4, 12), ("elsewhere", 3, 30)]
        assert told["lines"] == 7
    async with bed(batches={"waiting_lines_max": 1}) as one:
        one.answer(lambda payload, said: None)
        one.fleet.solver.on_arrival = lambda id: None
        await one.create(lines, window="8h")
        await soon(lambda: len(one.fleet.solver.heard(m.BulkWaiting)) >= 2)
        for part, bulk in zip(question.parts, one.fleet.solver.heard(m.BulkWaiting), strict=False):
            # One of each model is a request by then.
            assert (part.model, part.lines) == (bulk.model, bulk.lines + 1)
            assert part.prompt_tokens_mean == bulk.prompt_tokens_mean
            assert part.max_output_tokens == bulk.max_output_tokens
            assert (question.slo_class, question.slo) == (bulk.slo_class, bulk.slo)


async def test_a_line_without_a_limit_has_that_of_its_model_and_inputs_to_embed_have_none() -> None:
    async with bed() as one:
        await ask(one, await one.upload(chats(3)))
        embed = {"custom_id": "a", "method": "POST", "url": EMBED}
        body = {"model": "tiny", "input": ["x" * 40]}
        await ask(one, await one.upload([embed | {"body": body}]), endpoint=EMBED)
        limits = [asked.parts[0].max_output_tokens for asked in one.fleet.solver.asked]
        assert limits == [1000, 0]


async def test_the_answer_has_what_a_batch_would_have_and_nothing_is_created() -> None:
    async with bed() as one:
        one.fleet.solver.forecast = SAID
        file_id = await one.upload(chats(3))
        status, told = await ask(one, file_id, metadata={"a": "b"})
        assert status == 200, told
        created = await one.client.batches.list()
        assert created.data == []
        assert not one.fleet.solver.heard(m.Arrived)
        assert not one.fleet.solver.heard(m.BulkWaiting)
        assert (await one.client.files.retrieve(file_id)).id == file_id
        assert told["object"] == "estimate"
        said = told["qlm"]
        assert (said["feasible"], said["explanation"]) == (True, "it goes first")
        assert said["finish_p90_at"] - said["finish_p50_at"] == 30
        assert said == {name: told[name] for name in said}
        batch = await one.create(chats(1))
        assert list(said) == list(batch.qlm)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"endpoint": "/v1/x"}, "endpoint", "invalid_value"),
        ({"completion_window": None}, "completion_window", "missing_required_parameter"),
        ({"completion_window": "-1h"}, "completion_window", "invalid_value"),
        ({"input_file_id": 3}, "input_file_id", "invalid_type"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
    ],
)
async def test_what_is_wrong_with_the_call_is_told_as_of_a_batch(
    changed: Json, param: str, code: str
) -> None:
    async with bed() as one:
        status, told = await ask(one, "file-0", **changed)
        assert status == 400
        assert (told["error"]["param"], told["error"]["code"]) == (param, code)
        body = {"input_file_id": "file-0", "endpoint": CHAT, "completion_window": "8h"} | changed
        assert (await post(f"{one.fleet.url}/v1/batches", body))[:2] == (status, told)


@pytest.mark.parametrize(
    "more", [{"body": {}}, {"model": "tiny"}, {"models": []}, {"lines": 3}, {"url": CHAT}]
)
async def test_sizes_beside_a_file_are_refused(more: Json) -> None:
    async with bed() as one:
        status, told = await ask(one, "file-0", **more)
        assert (status, told["error"]["param"]) == (400, next(iter(more)))


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([chat("a"), chat("a"), chat("b", stream=True)], 400),
        (b'{"custom_id": "a"\n', 400),
        (b"[]\n{}", 400),
        ([chat("a", model="nobodys")], 404),
    ],
)
async def test_what_would_fail_the_batch_is_told_as_the_batch_would(
    lines: list[Json] | bytes, status: int
) -> None:
    async with bed() as one:
        if isinstance(lines, bytes):
            lines = jsonl([chat("sound")]) + b"\n" + lines
        file_id = await one.upload(lines)
        found, told = await ask(one, file_id)
        assert found == status
        batch = await one.client.batches.create(
            input_file_id=file_id, endpoint=CHAT, completion_window="24h"
        )
        batch = await one.until(batch)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert told["errors"] == batch.errors.model_dump()
        first = told["errors"]["data"][0]
        assert told["error"] == {
            "message": f"Line {first['line']}: {first['message']}",
            "type": "invalid_request_error",
            "param": first["param"],
            "code": first["code"],
        }
        assert not one.fleet.solver.asked


KEYS = {"alice": {"key": "alices"}, "bob": {"key": "bobs"}}


async def test_anothers_file_is_as_one_that_never_was() -> None:
    async with bed(api_keys=KEYS) as one, client_of(one.fleet.url, "alices") as alice:
        one.client = alice
        file_id = await one.upload(chats(1))
        for id, key in ((file_id, "bobs"), ("file-0", "alices"), ("../x", "bobs")):
            status, told = await ask(one, id, key)
            assert status == 400
            message = f"Cannot find file {id}, or organization does not have access to it."
            assert told["error"]["message"] == message
            assert (told["error"]["param"], told["error"]["code"]) == ("file_id", "invalid_request")
            assert len(told["errors"]["data"]) == 1
        status, _ = await ask(one, file_id, "alices")
        assert status == 200


async def test_a_file_of_another_purpose_is_refused_as_by_a_batch() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1), purpose="user_data")
        status, told = await ask(one, file_id)
        assert (status, told["error"]["param"]) == (400, "input_file_id")
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "8h"}
        assert (await post(f"{one.fleet.url}/v1/batches", body))[1] == told


async def test_a_tenant_without_room_for_the_batch_hears_that() -> None:
    async with bed(batches={"tenant_tokens_max": 10}) as one:
        status, told = await ask(one, await one.upload(chats(100)))
        assert (status, told["error"]["code"]) == (400, "token_limit_exceeded")
    async with bed(batches={"tenant_open_batches_max": 1}) as one:
        file_id = await one.upload(chats(1))
        status, _ = await ask(one, file_id)
        assert status == 200
        await one.create(chats(1))
        status, told = await ask(one, file_id)
        assert (status, told["error"]["code"]) == (429, "queue_full")


async def test_while_a_file_is_read_it_counts_as_an_open_batch() -> None:
    async with bed(batches={"tenant_open_batches_max": 2}) as one:
        file_id = await one.upload(chats(1))
        async with one.fleet.gateway.batches._validator._turn:
            asking = [asyncio.create_task(ask(one, file_id)) for _ in range(2)]
            await soon(lambda: one.fleet.gateway._desk.batches._creating)
            await asyncio.sleep(0.1)
            status, told = await ask(one, file_id)
            assert (status, told["error"]["code"]) == (429, "queue_full")
        assert [status for status, _ in await asyncio.gather(*asking)] == [200, 200]


async def test_who_hangs_up_leaves_nothing_counted() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1))
        creating = one.fleet.gateway._desk.batches._creating
        async with one.fleet.gateway.batches._validator._turn, aiohttp.ClientSession() as session:
            body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "8h"}
            call = session.post(f"{one.fleet.url}/v1/estimate", json=body)
            asking = asyncio.create_task(call.__aenter__())
            await soon(lambda: creating)
            asking.cancel()
        await soon(lambda: not creating)


async def test_without_a_solver_nobody_can_say() -> None:
    async with running(config()) as (_, at):
        body = {"input_file_id": "file-0", "endpoint": CHAT, "completion_window": "8h"}
        status, told, _ = await post(f"http://{at.http}/v1/estimate", body)
        assert (status, told["error"]["code"]) == (503, "unavailable")


async def command(one: Bed, *words: str) -> int:
    return await asyncio.to_thread(main, ["batch", "estimate", *words, "--url", one.fleet.url])


async def test_the_command_asks_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "night.jsonl"
    path.write_bytes(jsonl(chats(3)))
    async with bed() as one:
        one.fleet.solver.forecast = SAID
        assert await command(one, str(path), "--window", "2h") == 0
        text = capfd.readouterr().out
        assert "lines   3" in text
        assert "finish  done at " in text
        assert "why     it goes first" in text
        [part] = one.fleet.solver.asked[0].parts
        assert (part.model, part.lines) == ("tiny", 3)
        assert one.fleet.solver.asked[0].slo.e2e_s == 7200.0
        one.fleet.solver.forecast = m.BatchForecast(SAID.wait, False, 6e4, 9e4, "too much")
        assert await command(one, str(path), "--json") == 1
        assert json.loads(capfd.readouterr().out)["qlm"]["feasible"] is False
        path.write_bytes(jsonl([chat("a"), chat("a")]))
        assert await command(one, str(path)) == 2
        assert "Line 2: The custom_id 'a' is a duplicate" in capfd.readouterr().err
        assert (await one.client.files.list()).data == []
        assert (await one.client.batches.list()).data == []
