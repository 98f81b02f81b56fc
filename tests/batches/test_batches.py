"""Batches end to end: what becomes of lines, states, files, counts, and several models in one file."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from qlm_core import messages as m
from qlm_core.model import RequestId
from qlm_core.outcome import ShedReason
from tests.batches.beds import CHAT, EMBED, PLAIN, Json, bed, chat, chats, plain
from tests.gateway.peers import soon


async def test_a_batch_runs_each_of_its_lines_once() -> None:
    async with bed() as one:
        one.answer()
        made = await one.create(chats(40), metadata={"night": "1"})
        assert (made.status, made.object, made.endpoint) == ("validating", "batch", CHAT)
        assert made.request_counts is not None
        assert made.request_counts.total == 0
        assert made.expires_at == made.created_at + 86_400
        batch = await one.until(made)
        assert batch.status == "completed"
        assert (batch.model, batch.metadata) == ("tiny", {"night": "1"})
        assert batch.in_progress_at
        assert batch.finalizing_at
        assert batch.completed_at
        assert batch.error_file_id is None
        assert batch.errors is None
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (7 * 40, 40)
        assert batch.usage.total_tokens == 8 * 40
        output, _ = await one.results(batch)
        line = output["line-7"]
        assert line["id"].startswith("batch_req_")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        body = line["response"]["body"]
        assert body["object"] == "chat.completion"
        # Whoever reads a file of results holds it against these types, more strictly than OpenAI's client does.
        answer = openai.types.chat.ChatCompletion.model_validate(body)
        assert answer.choices[0].message.content == "to line-7"
        assert answer.service_tier == "default"
        # In the order of the file, although any order would do.
        assert list(output) == [f"line-{number}" for number in range(40)]
        file = await one.client.files.retrieve(batch.output_file_id or "")
        assert file.purpose == "batch_output"
        assert file.filename == f"{batch.id}_output.jsonl"


async def test_completions_are_batched_as_well() -> None:
    async with bed() as one:
        one.answer()
        batch = await one.until(await one.create([plain("a"), plain("b")], endpoint=PLAIN))
        output, _ = await one.results(batch)
        assert output["b"]["response"]["body"]["choices"][0]["text"] == "to b"


async def test_embeddings_are_batched_as_well() -> None:
    async with bed() as one:
        vector = b'{"object": "list", "data": [{"embedding": [0.10, 1e-3]}], "usage": {"prompt_tokens": 5}}'
        one.agent.on_payload = lambda payload: one.agent.send(
            m.Chunk(payload.id, payload.attempt, vector, 0, plain=False, whole=True),
            m.AttemptEnded(payload.id, payload.attempt, "stop", 5, 0),
        )
        lines = [
            {
                "custom_id": id,
                "method": "POST",
                "url": EMBED,
                "body": {"model": "tiny", "input": said},
            }
            for id, said in (("a", "x" * 40), ("b", [[1, 2, 3], [4]]))
        ]
        batch = await one.until(await one.create(lines, endpoint=EMBED))
        assert batch.status == "completed"
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (10, 0)
        text = (await one.client.files.content(batch.output_file_id or "")).text
        # Number by number as the engine wrote it.
        assert text.count("[0.10, 1e-3]") == 2
        arrived = [fact.request for fact in one.fleet.solver.heard(m.Arrived)]
        assert {(one.prompt_tokens, one.max_output_tokens) for one in arrived} == {(10, 0), (4, 0)}


async def test_a_batch_of_more_inputs_to_embed_than_it_may_have_fails_at_once() -> None:
    async with bed(batches={"embedding_inputs_max": 3}) as one:
        lines = [
            {
                "custom_id": id,
                "method": "POST",
                "url": EMBED,
                "body": {"model": "tiny", "input": ["x", "y"]},
            }
            for id in "ab"
        ]
        batch = await one.until(await one.create(lines, endpoint=EMBED))
        assert batch.status == "failed"
        assert batch.errors is not None
        [fault] = batch.errors.data or []
        assert (fault.code, fault.param, fault.line) == ("too_many_tasks", "input_file_id", None)
        assert "more than 3 inputs" in str(fault.message)
        assert not one.agent.payloads


async def test_an_answer_is_one_line_whatever_is_in_it_and_however_an_engine_writes() -> None:
    async with bed() as one:
        written = b'{\r\n  "object": "list",\n  "data": [{"embedding": [0.10]}],\n "usage": {"prompt_tokens": 5}\n}'
        one.agent.on_payload = lambda payload: one.agent.send(
            m.Chunk(payload.id, payload.attempt, written, 0, plain=False, whole=True),
            m.AttemptEnded(payload.id, payload.attempt, "stop", 5, 0),
        )
        body = {"model": "tiny", "input": "x"}
        line = {"custom_id": "a\u2028b", "method": "POST", "url": EMBED, "body": body}
        output, _ = await one.results(await one.until(await one.create([line], endpoint=EMBED)))
        assert output["a\u2028b"]["response"]["body"]["data"] == [{"embedding": [0.1]}]
        # Some readers end a line at each of these.
        odd = "one\u2028two\u2029three\u0085four\x0b\x1cfive\r\nsix"
        one.answer(lambda payload, said: odd)
        output, _ = await one.results(await one.until(await one.create([chat("a\u2029b")])))
        answer = output["a\u2029b"]["response"]["body"]
        assert answer["choices"][0]["message"]["content"] == odd


async def test_what_an_engine_refuses_is_an_error_line_with_its_words() -> None:
    async with bed() as one:

        def script(payload: m.Payload, said: str) -> str | None:
            if said != "line-1":
                return "good"
            one.agent.send(
                m.AttemptEnded(
                    payload.id,
                    payload.attempt,
                    "error",
                    7,
                    0,
                    error="top_k: must be positive",
                    error_status=422,
                )
            )
            return None

        one.answer(script)
        batch = await one.until(await one.create(chats(3)))
        assert batch.status == "completed"
        output, errors = await one.results(batch)
        assert list(output) == ["line-0", "line-2"]
        line = errors["line-1"]
        assert line["error"] is None
        assert line["response"]["status_code"] == 422
        assert line["response"]["body"]["error"]["message"] == "top_k: must be positive"
        assert line["response"]["request_id"]


async def test_a_body_that_the_gateway_refuses_is_an_error_line_and_never_runs() -> None:
    async with bed() as one:
        one.answer()
        lines = [chat("good"), chat("bad", max_tokens=-1)]
        batch = await one.until(await one.create(lines))
        output, errors = await one.results(batch)
        assert list(output) == ["good"]
        assert errors["bad"]["response"]["status_code"] == 400
        assert errors["bad"]["response"]["body"]["error"]["param"] == "max_tokens"
        assert len(one.agent.payloads) == 1


async def test_a_batch_of_which_every_line_fails_is_completed_without_an_output_file() -> None:
    async with bed() as one:
        batch = await one.until(await one.create([chat("bad", max_tokens=-1)]))
        assert batch.status == "completed"
        assert batch.output_file_id is None
        _, errors = await one.results(batch)
        assert list(errors) == ["bad"]


async def test_a_file_may_ask_for_several_models() -> None:
    async with bed() as one:
        one.answer(lambda payload, said: f"{payload.model} to {said}")
        lines = [chat("a"), chat("b", model="other"), chat("c")]
        batch = await one.until(await one.create(lines))
        assert batch.status == "completed"
        assert batch.model is None
        output, _ = await one.results(batch)
        said = [
            line["response"]["body"]["choices"][0]["message"]["content"] for line in output.values()
        ]
        assert said == ["tiny to a", "other to b", "tiny to c"]
        assert output["b"]["response"]["body"]["model"] == "other"


async def test_a_faulty_file_fails_as_a_whole_and_nothing_runs() -> None:
    async with bed() as one:
        one.answer()
        lines = [chat("a"), chat("a"), chat("b", model="nobody"), chat("c") | {"url": "/v1/x"}]
        batch = await one.until(await one.create(lines))
        assert batch.status == "failed"
        assert batch.failed_at
        assert batch.errors is not None
        assert batch.errors.data is not None
        # What is wrong with lines is told before what is wrong with models.
        assert [(fault.code, fault.line) for fault in batch.errors.data] == [
            ("duplicate_custom_id", 2),
            ("invalid_url", 4),
        ]
        assert batch.request_counts is not None
        assert batch.request_counts.total == 0
        assert one.agent.payloads == []


async def test_models_that_nobody_serves_are_told_by_line() -> None:
    async with bed() as one:
        batch = await one.until(await one.create([chat("a"), chat("b", model="nobody")]))
        assert batch.errors is not None
        assert batch.errors.data is not None
        (fault,) = batch.errors.data
        assert (fault.code, fault.param, fault.line) == ("model_not_found", "body.model", 2)
        said = "The provided model 'nobody' is not supported by the Batch API. Use one of: "
        assert fault.message == f"{said}tiny, other, elsewhere."


async def test_a_model_that_only_agents_know_is_served() -> None:
    async with bed() as one:
        one.answer()
        batch = await one.until(await one.create([chat("a", model="elsewhere")]))
        assert batch.status == "completed"


async def test_a_file_of_another_purpose_makes_no_batch() -> None:
    async with bed() as one:
        file_id = await one.upload(chats(1), "user_data")
        with pytest.raises(openai.BadRequestError, match="with the purpose 'batch'") as caught:
            await one.client.batches.create(
                input_file_id=file_id, endpoint=CHAT, completion_window="24h"
            )
        assert (caught.value.param, caught.value.code) == ("input_file_id", "invalid_value")
        assert (await one.client.batches.list()).data == []


async def test_a_file_that_is_not_there_fails_the_batch() -> None:
    async with bed() as one:
        made = await one.client.batches.create(
            input_file_id="file-123", endpoint=CHAT, completion_window="24h"
        )
        batch = await one.until(made)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        (fault,) = batch.errors.data
        assert (fault.code, fault.param, fault.line) == ("invalid_request", "file_id", None)
        assert fault.message is not None
        assert fault.message.startswith("Cannot find file file-123, or organization")


async def test_a_batch_needs_its_file_no_more_once_it_is_created() -> None:
    async with bed() as one:
        made = await one.create(chats(3))
        await one.client.files.delete(made.input_file_id)
        one.answer()
        batch = await one.until(made)
        assert batch.status == "completed"
        assert len((await one.results(batch))[0]) == 3
        assert list(one.fleet.gateway.batches.folder.iterdir()) == []


async def test_lines_wait_in_their_file_until_an_engine_has_room() -> None:
    async with bed(pulls=False, batches={"waiting_lines_max": 3}) as one:
        made = await one.until(await one.create(chats(10)), "in_progress")
        arrived = one.fleet.solver.heard
        await soon(lambda: len(arrived(m.Arrived)) == 3)
        ids = [fact.request.id for fact in arrived(m.Arrived)]
        one.answer(lambda payload, said: None)
        one.agent.pull(ids[1])
        await soon(lambda: len(arrived(m.Arrived)) == 4)
        assert made.request_counts is not None
        assert (made.request_counts.total, made.request_counts.completed) == (10, 0)


async def test_every_line_is_due_with_its_batch_in_the_laxest_class() -> None:
    async with bed() as one:
        await one.create(chats(2), window="30m")
        await soon(lambda: len(one.fleet.solver.heard(m.Arrived)) == 2)
        first, second = (fact.request for fact in one.fleet.solver.heard(m.Arrived))
        assert first.slo == second.slo
        assert (first.slo.ttft_s, first.slo.e2e_s) == (1800.0, 1800.0)
        assert first.slo_class == "batch-2"
        assert first.batch == second.batch != ""


async def test_lines_beyond_the_budget_of_bytes_wait() -> None:
    async with bed(pulls=False, batches={"open_bytes_max": 500}) as one:
        await one.create(chats(10))
        await soon(lambda: one.fleet.solver.heard(m.Arrived))
        await asyncio.sleep(0.1)
        arrived = one.fleet.solver.heard(m.Arrived)
        assert len(arrived) == 500 // len(json.dumps(chat("line-0")))
        one.answer()
        one.fleet.solver.on_arrival = one.agent.pull
        for fact in arrived:
            one.agent.pull(fact.request.id)
        await soon(lambda: len(one.agent.payloads) == 10)


def embedding(id: str) -> Json:
    body = {"model": "tiny", "input": "x"}
    return {"custom_id": id, "method": "POST", "url": EMBED, "body": body}


@pytest.mark.parametrize(("endpoint", "line"), [(CHAT, chat("a")), (EMBED, embedding("a"))])
async def test_a_line_that_is_shed_for_want_of_room_is_tried_again(
    endpoint: str, line: Json
) -> None:
    async with bed() as one:
        one.agent.on_payload = lambda payload: one.agent.send(
            m.Chunk(payload.id, payload.attempt, b'{"choices": []}', 0, plain=False, whole=True),
            m.AttemptEnded(payload.id, payload.attempt, "stop", 5, 0),
        )
        solver = one.fleet.solver
        shed: list[str] = []

        def on_arrival(id: RequestId) -> None:
            if shed:
                one.agent.pull(id)
            else:
                shed.append(id)
                solver.orders.put(m.ShedOrder(id, ShedReason.SATURATED))

        solver.on_arrival = on_arrival
        batch = await one.until(await one.create([line], endpoint=endpoint))
        assert batch.status == "completed"
        output, _ = await one.results(batch)
        answered = output["a"]
        assert answered["id"] == shed[0]
        assert answered["response"]["request_id"] != shed[0]


async def test_an_input_that_an_engine_refuses_to_embed_is_an_error_line_with_its_words() -> None:
    async with bed() as one:
        one.agent.on_payload = lambda payload: one.agent.send(
            m.AttemptEnded(payload.id, payload.attempt, "error", error="odd!", error_status=422)
        )
        batch = await one.until(await one.create([embedding("a")], endpoint=EMBED))
        _, errors = await one.results(batch)
        refused = errors["a"]["response"]
        assert (refused["status_code"], refused["body"]["error"]["message"]) == (422, "odd!")


async def test_a_line_that_somebody_ends_alone_is_an_error_line() -> None:
    async with bed() as one:
        one.answer(lambda payload, said: "good" if said == "line-1" else None)
        made = await one.create(chats(2))
        await soon(lambda: len(one.agent.payloads) == 2)
        id = next(one.id for one in one.agent.payloads if one.id.endswith("_0"))
        await one.client.delete(f"/requests/{id}", cast_to=object)
        batch = await one.until(made)
        _, errors = await one.results(batch)
        assert errors["line-0"]["response"]["status_code"] == 499


async def test_errors_of_creating_are_openais() -> None:
    async with bed() as one:
        with pytest.raises(openai.BadRequestError) as caught:
            await one.client.post("/batches", body={"endpoint": CHAT}, cast_to=object)
        assert caught.value.body == {
            "message": "Missing required parameter: 'input_file_id'.",
            "type": "invalid_request_error",
            "param": "input_file_id",
            "code": "missing_required_parameter",
        }
