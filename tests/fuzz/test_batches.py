"""Whatever is asked of /v1/batches, whatever stands in an input file, and whatever lies in the rows of batches."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches import results
from gateway.batches.endpoints import ENDPOINTS
from gateway.batches.index import Index
from gateway.batches.scan import Limits, scan
from gateway.batches.stored import StoredBatch, head_of
from gateway.store.sqlite import SqliteStore
from qlm_core.batches import BatchStatus
from qlm_core.endpoint import Endpoint
from qlm_core.model import BatchId, ModelName
from tests.fuzz import test_responses as responses
from tests.fuzz.bodies import CANARY, WORDS, bodies, values
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import Fleet, Notes, serving
from tests.fuzz.test_store import cells
from tests.gateway.peers import config, running

GOOD = {
    "input_file_id": "file-1",
    "endpoint": "/v1/completions",
    "completion_window": "24h",
    "metadata": {"k": "v"},
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
}
WINDOWS = ["0h", "9" * 400 + "h", "24H", "1e9d", "²h", "-1d", "1441m", "999999999d"]
LIMITS = Limits(lines_max=20, inputs_max=30, line_bytes_max=100_000, faults_max=7)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


asked = st.dictionaries(
    st.sampled_from([*GOOD, "model", ""]), values | st.sampled_from(WINDOWS), max_size=3
).map(lambda some: json.dumps(GOOD | some).encode("utf-8", "surrogatepass"))


@fuzzed
@given(asked | bodies(Endpoint.COMPLETIONS))
def test_no_body_does_harm(fleet: Fleet, body: bytes) -> None:
    status, answer = fleet.ask("POST", "/v1/batches", body)
    assert status < 500, answer
    if status == 200:
        id = json.loads(answer)["id"]
        assert fleet.ask("POST", f"/v1/batches/{id}/cancel")[0] in (200, 409)
    fleet.check()


@fuzzed
@given(
    st.sampled_from(["limit", "after", "x", ""]),
    st.sampled_from([*WORDS, "batch_" + "0" * 24, "²", "9" * 300, "-1"]),
)
def test_no_query_and_no_id_does_harm(fleet: Fleet, name: str, value: str) -> None:
    from urllib.parse import quote

    said = quote(value.encode("utf-8", "surrogatepass"))
    for path in (f"?{name}={said}", f"/{said}", f"/{said}/cancel"):
        method = "POST" if path.endswith("/cancel") else "GET"
        status, answer = fleet.ask(method, f"/v1/batches{path}")
        assert status < 500, answer
    fleet.check()


lines = st.dictionaries(
    st.sampled_from(["custom_id", "method", "url", "body", "x"]), values, max_size=4
).map(lambda some: {"custom_id": "a", "method": "POST", "url": "/v1/completions"} | some)
written = (
    lines.map(lambda line: json.dumps(line).encode("utf-8", "surrogatepass"))
    | bodies(Endpoint.COMPLETIONS).map(
        lambda body: (
            b'{"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": ' + body + b"}"
        )
    )
    | responses.requests.map(
        lambda body: (
            b'{"custom_id": "c", "method": "POST", "url": "/v1/responses", "body": '
            + responses.sent(body)
            + b"}"
        )
    )
    | st.binary(max_size=30)
)


@fuzzed
@given(st.lists(written, max_size=4), st.sampled_from(sorted(ENDPOINTS)))
def test_no_line_does_harm_and_what_is_sound_can_be_read(parts: list[bytes], path: str) -> None:
    data = b"\n".join(parts)
    found = scan(io.BytesIO(data), ENDPOINTS[path], LIMITS)
    assert len(found.faults) <= LIMITS.faults_max
    for fault in found.faults:
        assert len(fault.message) < 300
    msgspec.json.encode(found.faults)
    if found.faults:
        return
    index = Index.unpack(found.index)
    assert index.is_sound(len(found.models))
    ids = []
    for offset, size in zip(index.offsets, index.sizes, strict=True):
        line = results.read(data[offset : offset + size])
        ids.append(line.custom_id)
        written = results.never_run(BatchId("batch_0"), 0, line.custom_id, None)
        assert json.loads(written)["custom_id"] == line.custom_id
    assert len(dict.fromkeys(ids)) == len(ids)


BATCH = StoredBatch(
    id=BatchId("batch_" + "0" * 24),
    owner="",
    endpoint="/v1/completions",
    input_file_id="file-1",
    completion_window="24h",
    window_s=86_400.0,
    slo_class="batch-2",
    arrived_at=4e9,
    created_unix_s=1,
    status=BatchStatus.IN_PROGRESS,
    models=(ModelName("tiny"),),
)
ODD = [
    None,
    0,
    -1,
    2**63 - 1,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    b"",
    [],
    {},
    ["tiny", "other"],
    [1],
]
heads = st.dictionaries(
    st.sampled_from(StoredBatch.__struct_fields__),
    st.sampled_from([*ODD, *(one.value for one in BatchStatus)]),
    max_size=2,
).map(lambda some: msgspec.msgpack.encode(msgspec.to_builtins(BATCH) | some))


def index_of(model: int) -> bytes:
    index = Index()
    for line in range(2):
        index.add(offset=line * 10, size=10, model=model, prompt_tokens=1, output_limit=0)
    return index.pack()


indexes = st.sampled_from([index_of(0), index_of(9), b"", b"\xff" * 24, b"\xff" * 25]) | cells
records = st.tuples(st.sampled_from([2**32, 2**32 + 1, 2**32 + 99, 0]), cells, cells)


@fuzzed
@given(head=heads | cells, index=indexes, record=records)
async def test_no_row_keeps_a_gateway_from_serving(
    tmp_path_factory: pytest.TempPathFactory,
    head: Any,
    index: Any,
    record: tuple[int, Any, Any],
) -> None:
    path = tmp_path_factory.mktemp("store") / "requests.db"
    await filled(path, head, index, record)
    notes = Notes()
    logging.getLogger().addHandler(notes)
    try:
        store = {"kind": "sqlite", "path": str(path)}
        async with running(config(store=store)) as (_, at), aiohttp.ClientSession() as http:
            for rest in ("", "?after=batch_" + "0" * 24, f"/{BATCH.id}"):
                async with http.get(f"http://{at.http}/v1/batches{rest}") as answer:
                    assert answer.status < 500, await answer.text()
            async with http.get(f"http://{at.http}/health") as answer:
                assert answer.status == 200
    finally:
        logging.getLogger().removeHandler(notes)
    assert not (faults := notes.take()), faults


async def filled(path: Path, head: Any, index: Any, record: tuple[int, Any, Any]) -> None:
    """A store with these rows, as far as the database takes them."""
    store = SqliteStore(str(path))
    await store.open()
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    place, failed, tokens = record
    for statement, row in (
        ("INSERT INTO batches VALUES (1, ?, '', NULL, ?, NULL)", (BATCH.id, head)),
        ("INSERT INTO batch_indexes VALUES (1, ?)", (index,)),
        ("INSERT INTO batch_records VALUES (?, ?, ?, 0, 0, 0)", (place, failed, tokens)),
        ("INSERT INTO batch_results VALUES (?, ?)", (place, CANARY.encode())),
    ):
        try:
            connection.execute(statement, row)
        except (sqlite3.Error, OverflowError, UnicodeError):
            continue
    connection.close()


def test_a_sound_row_is_read() -> None:
    """Or the test above would see none that is."""
    from gateway.batches.stored import read_head

    assert read_head(head_of(BATCH)) == BATCH
