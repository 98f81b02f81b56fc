"""Whatever lies in a store's rows: the gateway starts, serves everybody else, and says in a line which rows it cannot read."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.base import StoredEnd, StoredRequest
from gateway.store.sqlite import SqliteStore
from qlm_core.endpoint import Endpoint
from qlm_core.ledger import EndRecord
from qlm_core.model import Estimate, ModelName, Phase, RequestId, Slo
from tests.fuzz.bodies import CANARY, bodies
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import Notes
from tests.gateway.peers import config, running

REQUEST = StoredRequest(
    id=RequestId("r"),
    endpoint=Endpoint.COMPLETIONS,
    model=ModelName("tiny"),
    slo_class="batch-1",
    slo=Slo(ttft_s=60.0),
    prompt_tokens=1,
    max_output_tokens=2,
    tenant="t",
    service_tier="",
    body=b"",
    arrived_at=1e9,
    expires_at=4e9,
)
END = StoredEnd(
    id=RequestId("r"),
    ended_at=1e9,
    record=EndRecord(
        phase=Phase.FINISHED, reason="stop", error="", error_status=0, prompt_tokens=1, output_tokens=1, queue_s=0.1,
        ttft_s=0.2, tpot_s=None, e2e_s=0.3, attained=True, attempts=1, evictions=0,
        estimate=Estimate(mean_s=1.0, p50_s=1.0, p90_s=1.0, p99_s=1.0),
    ),
    answer=b'{"choices": [{"index": 0, "text": "a"}]}',
)  # fmt: skip
ODD = [
    None,
    0,
    -1,
    2**63 - 1,
    1e308,
    float("inf"),
    5e-324,
    "",
    "x",
    "é",
    b"",
    b"\xff",
    b"\xc0",
    b"null",
    1.7e9,
    9e18,
]
cells = st.sampled_from(ODD) | st.text(max_size=5) | st.binary(max_size=12) | st.floats()


def packed(value: Any) -> st.SearchStrategy[bytes]:
    """A value as rows hold it, with other fields, or with other bytes."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,))
    fields = st.dictionaries(st.sampled_from(sorted(plain)), cells | st.just([]), max_size=2)
    edited = fields.map(lambda some: msgspec.msgpack.encode(plain | some))
    whole = msgspec.msgpack.encode(plain)
    damaged = st.tuples(st.integers(0, len(whole)), st.binary(max_size=2)).map(
        lambda at: whole[: at[0]] + at[1] + whole[at[0] + len(at[1]) :]
    )
    return edited | edited | damaged


rows = st.tuples(
    st.just("r") | st.text(max_size=5),
    cells,
    st.just(1e9) | cells,
    packed(REQUEST) | cells,
    st.just(b'{"prompt": "%b"}' % CANARY.encode()) | bodies(Endpoint.COMPLETIONS) | cells,
    st.none() | cells,
    st.none() | packed(END) | cells,
    st.just("") | cells,
)
_INSERT = (
    "INSERT OR IGNORE INTO requests (id, idempotency_key, arrived_at, head, body, ended_at, ended, fingerprint) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


async def filled(path: Path, what: list[tuple[Any, ...]]) -> list[str]:
    """A store with these rows, as far as the database takes them; the ids that are in it."""
    store = SqliteStore(str(path))
    await store.open()
    await store.close()
    with sqlite3.connect(path) as connection:
        for row in what:
            try:
                connection.execute(_INSERT, row)
            except (sqlite3.Error, OverflowError, UnicodeError):
                continue
        ids = [id for (id,) in connection.execute("SELECT id FROM requests")]
    connection.close()
    return ids


@fuzzed
@given(what=st.lists(rows, min_size=1, max_size=3))
async def test_no_row_keeps_a_gateway_from_serving(
    tmp_path_factory: pytest.TempPathFactory, what: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "requests.db"
    ids = await filled(path, what)
    notes = Notes()
    logging.getLogger().addHandler(notes)
    try:
        store = {"kind": "sqlite", "path": str(path)}
        async with running(config(store=store)) as (_, at), aiohttp.ClientSession() as http:
            for id in [*map(str, ids), "r", "nobody"]:
                for kind in ("requests", "responses"):
                    url = f"http://{at.http}/v1/{kind}/{json.dumps(id)[1:-1]}"
                    async with http.get(url) as answer:
                        said = await answer.text()
                        assert answer.status < 500 or "request_set_aside" in said, said
            async with http.get(f"http://{at.http}/health") as answer:
                assert answer.status == 200
    finally:
        logging.getLogger().removeHandler(notes)
    assert not (faults := notes.take()), faults
