"""Whatever a model server answers, HTTP or not: each job ends once, what was said travels to its client, and no key gets out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
from hypothesis import given
from hypothesis import strategies as st

from agents.engines.connection import Connection, Patience
from agents.engines.requests import Abilities, CannotContinue
from gateway.answer import BadChunkError
from gateway.budget import Budget
from gateway.live import Backlog, Live
from gateway.store import StoredRequest
from protos import wire
from qlm_core.executor import JobDone, JobLost, JobOutput, JobRefused, JobTurnedAway
from qlm_core.ledger import EndRecord
from qlm_core.messages import AttemptEnded, Payload
from qlm_core.model import ModelName, Phase, RequestId, Slo
from tests.agents.test_reading import events
from tests.endpoints import generating
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import KEY, Notes

ENDS = (JobDone, JobLost, JobRefused, JobTurnedAway)
END_S = 10.0
BACKLOG = Backlog(chunks_max=2, bytes_max=10_000_000, unread=Budget(10_000_000))
COUNTS = [0, 1, 7, -1, 2**31 - 1, 2**31, 2**32, 2**63, 10**30, 1.5, 1e300, None, "5", True, [], {}]
ENDINGS = [
    b"data: [DONE]\n\n", b"event: error\ndata: {}\n\n", b"data: ", b"", b": comment\n\n", b"retry: 99999999999999\n\n",
    b'data: {"choices": [{"index": 0, "text": "z", "delta": {}, "finish_reason": "stop"}]}\n\n',
    b"data: " + b"[" * 5000 + b"\n\n",
    b'data: {"error": {"message": "%b", "code": 10%b}}\n\n' % (b"e" * 30_000, b"0" * 300),
]  # fmt: skip
counted = st.builds(
    lambda prompt, completion, cached: json.dumps(
        {
            "choices": [],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
    ).encode(),
    st.sampled_from(COUNTS),
    st.sampled_from(COUNTS),
    st.sampled_from(COUNTS),
)
streams = st.lists(
    (events | counted).map(lambda data: b"data: %b\n\n" % data.replace(b"\n", b" "))
    | st.sampled_from(ENDINGS),
    max_size=5,
).map(b"".join)
whole = events | counted
bodies = streams | streams | whole | st.binary(max_size=40)
HEADS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n",
    b"HTTP/1.1 400 Bad\r\n\r\n", b"HTTP/1.1 401 No\r\n\r\n", b"HTTP/1.1 404 No\r\n\r\n",
    b"HTTP/1.1 302 There\r\nlocation: /\r\n\r\n",
    b"HTTP/1.1 429 Full\r\nretry-after: 99999999999999999999\r\n\r\n", b"HTTP/1.1 503 Full\r\nretry-after: nan\r\n\r\n",
    b"HTTP/1.1 500 Broken\r\nretry-after: Fri, 99 Nov 9999 99:99:99 GMT\r\n\r\n", b"HTTP/1.1 999 Odd\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 20x OK\r\n\r\n", b"SSH-2.0-x\r\n", b"\x15\x03\x01",
    b"",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
]  # fmt: skip
answers = st.tuples(st.sampled_from(HEADS[:2]) | st.sampled_from(HEADS), bodies).map(b"".join)


@contextlib.asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[str]:
    """A server that gives everybody the same bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def run(answer: bytes, *, chat: bool, ids: bool, body: bytes) -> list[object]:
    """All that comes of a job."""
    said: list[object] = []
    async with saying(answer) as url:
        engine = Connection(
            url,
            served={ModelName("m"): "m"},
            api_key=KEY,
            patience=Patience(first_s=END_S, next_s=END_S),
            event_bytes_max=100_000,
            able=Abilities(ids=ids),
        )
        engine.open(said.append)
        try:
            await ask(
                engine, said, Payload(RequestId("r"), 1, ModelName("m"), generating(chat), body)
            )
        finally:
            await engine.close()
    return said


async def ask(engine: Connection, said: list[object], job: Payload) -> None:
    """Have a job run to its end, and put to the server what else agents ask of one."""
    engine.submit(job)
    async with asyncio.timeout(END_S):
        while not isinstance(said[-1] if said else None, ENDS):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert KEY not in await engine.probe(ModelName("m"), timeout_s=END_S)
    await engine.learn_shapes(ModelName("m"), timeout_s=END_S)
    with contextlib.suppress(CannotContinue, OSError, aiohttp.ClientError):
        await engine.tokenize("m", "x")


def live(*, chat: bool) -> Live:
    request = StoredRequest(
        id=RequestId("r"), endpoint=generating(chat), model=ModelName("m"), slo_class="c", slo=Slo(ttft_s=1.0), prompt_tokens=1,
        max_output_tokens=9, tenant="", service_tier="", body=b"{}", arrived_at=0.0, expires_at=1.0,
    )  # fmt: skip
    return Live(request, durable=True, running_usage=True, backlog=BACKLOG)


async def assert_answers(said: list[object], *, chat: bool) -> None:
    """What was said travels as it is, and makes an answer, or fails its own request."""
    client = live(chat=chat)
    follower = client.follow()
    *outputs, end = said
    for output in outputs:
        assert isinstance(output, JobOutput)
        [chunk] = wire.work_from_wire(wire.work_to_wire([output]))
        assert chunk == output
        try:
            client.add(chunk)  # type: ignore[arg-type]
        except BadChunkError:
            return
    assert KEY not in repr(end)
    if not isinstance(end, JobDone):
        return
    word = AttemptEnded(
        id=end.id,
        attempt=end.attempt,
        finish_reason=end.finish_reason,
        prompt_tokens=end.prompt_tokens,
        output_tokens=end.output_tokens,
        closing=end.closing,
        resumed_by=end.resumed_by,
    )
    [ended] = wire.work_from_wire(wire.work_to_wire([word]))
    assert isinstance(ended, AttemptEnded)
    record = EndRecord(
        phase=Phase.FINISHED, reason=ended.finish_reason, error="", error_status=0, prompt_tokens=ended.prompt_tokens,
        output_tokens=ended.output_tokens, queue_s=None, ttft_s=None, tpot_s=None, e2e_s=1.0, attained=True, attempts=1,
        evictions=0, estimate=None, closing=ended.closing, resumed_by=ended.resumed_by,
    )  # fmt: skip
    client.finish_output(record)
    assert json.loads(client.response(record))["object"]
    assert json.loads(client.usage_chunk(record))["usage"]
    client.close(record)
    while await follower.take():
        pass


@fuzzed
@given(answers, st.booleans(), st.booleans(), st.booleans())
async def test_every_answer_ends_its_job(
    answer: bytes, chat: bool, ids: bool, stream: bool
) -> None:
    asked = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    notes = Notes()
    logging.getLogger("qlm").addHandler(notes)
    try:
        said = await run(answer, chat=chat, ids=ids, body=json.dumps(asked).encode())
    finally:
        logging.getLogger("qlm").removeHandler(notes)
    assert [event for event in said if isinstance(event, ENDS)] == said[-1:]
    assert not (faults := notes.take()), faults
    await assert_answers(said, chat=chat)
