"""One contract for every store, and what only the durable one can show."""

import asyncio
import dataclasses
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gateway.store import (
    Endings,
    MemoryStore,
    Most,
    SqliteStore,
    Store,
    StoredEnd,
    StoredRequest,
    StoreError,
    sqlite,
)
from gateway.store.rows import ended_of
from qlm_core.endpoint import Endpoint
from qlm_core.errors import QlmError
from qlm_core.ledger import EndRecord
from qlm_core.model import Estimate, ModelName, Phase, RequestId, Slo
from qlm_core.outcome import ShedReason


def request(
    id: str, *, arrived_at: float = 1.0, key: str = "", owner: str = "", fingerprint: str = ""
) -> StoredRequest:
    return StoredRequest(
        id=RequestId(id),
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model=ModelName("m"),
        slo_class="interactive",
        slo=Slo(ttft_s=20.0, e2e_s=3.0),
        prompt_tokens=3,
        max_output_tokens=9,
        tenant="t",
        service_tier="default",
        body=b'{"messages": []}',
        arrived_at=arrived_at,
        expires_at=99.0,
        idempotency_key=key,
        owner=owner,
        fingerprint=fingerprint,
    )


def end(id: str, *, ended_at: float = 2.0) -> StoredEnd:
    record = EndRecord(
        phase=Phase.FINISHED,
        reason="stop",
        prompt_tokens=3,
        output_tokens=4,
        queue_s=0.1,
        ttft_s=0.2,
        tpot_s=None,
        e2e_s=0.5,
        attained=True,
        attempts=1,
        evictions=0,
        estimate=Estimate(mean_s=1.0, p50_s=1.0, p90_s=2.0, p99_s=3.0),
    )
    return StoredEnd(id=RequestId(id), ended_at=ended_at, record=record, answer=b'{"choices": []}')


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqliteStore(str(tmp_path / "q"))
    assert (await made.open()).starts == 1
    yield made
    await made.close()


async def test_what_is_added_is_found(store: Store) -> None:
    assert await store.add(request("a")) == ("a", "")
    assert await store.find(RequestId("a")) == (request("a"), None)
    assert await store.find(RequestId("b")) is None


async def test_open_requests_come_in_order_of_arrival(store: Store) -> None:
    for id, arrived_at in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        await store.add(request(id, arrived_at=arrived_at))
    await store.end(end("c"))
    assert [found.id for found in await store.open_requests()] == ["b", "a"]


async def test_a_request_ends_once(store: Store) -> None:
    await store.add(request("a"))
    assert await store.end(end("a")) is True
    assert await store.end(end("a", ended_at=9.0)) is False
    assert await store.end(end("unknown")) is False
    found = await store.find(RequestId("a"))
    assert found == (replace(request("a"), body=b""), end("a"))


async def test_what_is_kept_beside_an_end_is_kept_with_it_or_not_at_all(store: Store) -> None:
    def note(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO facts VALUES ('beside', 1)")

    def fail(connection: sqlite3.Connection) -> None:
        note(connection)
        raise sqlite3.OperationalError("it is full")

    def noted(connection: sqlite3.Connection) -> int:
        query = "SELECT count(*) FROM facts WHERE name = 'beside'"
        count: int = connection.execute(query).fetchone()[0]
        return count

    await store.add(request("a"))
    with pytest.raises(StoreError):
        await store.end(end("a"), fail)
    assert await store.database.read(noted) == 0
    assert await store.find(RequestId("a")) == (request("a"), None)
    assert await store.end(end("a"), note) is True
    assert await store.database.read(noted) == 1
    # Nothing is kept beside what has ended already.
    assert await store.end(end("a"), fail) is False


async def test_an_idempotency_key_names_one_request(store: Store) -> None:
    first, again = request("a", key="k", fingerprint="1"), request("b", key="k", fingerprint="2")
    both = await asyncio.gather(store.add(first), store.add(again))
    # What it names is told with its content, for whoever sent another.
    assert both == [("a", "1"), ("a", "1")]
    assert (await store.add(request("c"))).id == "c"
    assert (await store.add(request("d"))).id == "d"
    await store.end(end("a"))
    assert await store.add(request("e", key="k")) == ("a", "1")


async def test_an_idempotency_key_belongs_to_its_owner(store: Store) -> None:
    for owner in ("", "x", "y"):
        assert (await store.add(request(f"of-{owner}", key="k", owner=owner))).id == f"of-{owner}"
    # Neither side of a key can pass for a part of the other.
    assert (await store.add(request("odd", key="x/k"))).id == "odd"
    assert (await store.add(request("again", key="k", owner="x"))).id == "of-x"


def shed(id: str, reason: ShedReason) -> StoredEnd:
    ended = end(id)
    record = dataclasses.replace(ended.record, phase=Phase.SHED, reason=reason.value)
    return replace(ended, record=record, answer=b"")


@pytest.mark.parametrize("reason", ShedReason)
async def test_an_end_that_says_come_back_frees_the_key(store: Store, reason: ShedReason) -> None:
    await store.add(request("a", key="k"))
    await store.end(shed("a", reason))
    freed = reason is not ShedReason.TTL_EXPIRED
    assert (await store.add(request("b", key="k"))).id == ("b" if freed else "a")
    # It is still found by its id, and its own end leaves the key to its new owner.
    found = await store.find(RequestId("a"))
    assert found == (replace(request("a", key="k"), body=b""), shed("a", reason))
    assert await store.sweep(ended_before=3.0) == 1
    assert (await store.add(request("c", key="k"))).id == ("b" if freed else "c")


async def test_sweeping_takes_old_ends_only(store: Store) -> None:
    for id in "abc":
        await store.add(request(id, key=f"key-{id}"))
    await store.end(end("a", ended_at=1.0))
    await store.end(end("b", ended_at=5.0))
    assert await store.sweep(ended_before=3.0) == 1
    assert await store.find(RequestId("a")) is None
    assert await store.find(RequestId("b")) is not None
    assert [found.id for found in await store.open_requests()] == ["c"]
    assert (await store.add(request("again", key="key-a"))).id == "again"


def ids(endings: Endings) -> list[str]:
    return [ending.request.id for ending in endings.endings]


async def test_what_has_ended_is_listed_with_the_latest_first(store: Store) -> None:
    for id, owner, ended_at in (("a", "x", 2.0), ("b", "y", 3.0), ("c", "x", 3.0), ("d", "x", 1.0)):
        await store.add(request(id, owner=owner, key=f"key-{id}"))
        await store.end(end(id, ended_at=ended_at))
    await store.add(request("open", owner="x"))
    everything = await store.endings(None, None, 9)
    assert (ids(everything), everything.more) == (["c", "b", "a", "d"], False)
    first = everything.endings[0]
    assert (first.request.owner, first.ended_at, first.record) == ("x", 3.0, end("c").record)
    part = await store.endings(None, None, 2)
    assert (ids(part), part.more) == (["c", "b"], True)
    part = await store.endings(None, (3.0, "b"), 1)
    assert (ids(part), part.more) == (["a"], True)
    mine = await store.endings("x", (3.0, "c"), 2)
    assert (ids(mine), mine.more) == (["a", "d"], False)
    assert await store.endings("x", None, 0) == ([], True)
    assert await store.endings("nobody", None, 9) == ([], False)
    assert await store.find_key("x/key-a") == "a"
    assert await store.find_key("y/key-a") is None


async def test_a_list_passes_over_what_cannot_be_read_and_ends_before_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(str(tmp_path / "q.sqlite"))
    await store.open()
    for index in range(6):
        await store.add(request(f"r{index}"))
        await store.end(end(f"r{index}", ended_at=float(index)))
    await store.database.write(
        lambda connection: connection.execute("UPDATE requests SET ended = x'00' WHERE id = 'r4'")
    )
    monkeypatch.setattr(sqlite, "PAGE_BYTES", len(ended_of(end("r5"))) + 1)
    part = await store.endings(None, None, 9)
    assert (ids(part), part.more) == (["r5", "r3"], True)
    assert store.rows_aside == 1
    assert ids(await store.endings(None, (3.0, "r3"), 9)) == ["r2", "r1"]
    await store.close()


async def test_a_request_may_be_kept_with_its_end(store: Store) -> None:
    made = replace(request("a", owner="x"), asked=b"asked", kept=True)
    assert await store.keep(made, end("a")) is True
    assert await store.keep(made, end("a", ended_at=9.0)) is False
    assert await store.find(RequestId("a")) == (replace(made, body=b""), end("a"))
    assert await store.open_requests() == []
    assert ids(await store.endings("x", None, 9)) == ["a"]
    assert await store.sweep(ended_before=3.0) == 1
    assert await store.find(RequestId("a")) is None


async def test_a_request_that_has_ended_can_be_forgotten(store: Store) -> None:
    await store.add(request("a", key="k"))
    assert await store.forget(RequestId("a")) is False
    await store.end(end("a"))
    assert await store.forget(RequestId("a")) is True
    assert await store.forget(RequestId("a")) is False
    assert await store.find(RequestId("a")) is None
    assert (await store.add(request("b", key="k"))).id == "b"


async def test_a_chain_is_read_until_it_ends_or_is_long_enough(store: Store) -> None:
    async def read(rows: int = 10, kept_bytes: int = 1000) -> list[str]:
        most = Most(rows=rows, kept_bytes=kept_bytes)
        found = await store.chain(RequestId("d"), lambda one: RequestId(one.asked.decode()), most)
        assert all(one.end == end(one.request.id) for one in found)
        return [one.request.id for one in found]

    assert await read() == []
    for id, earlier in (("a", "gone"), ("b", "a"), ("c", "b"), ("d", "c")):
        await store.keep(replace(request(id), asked=earlier.encode()), end(id))
    assert await read() == ["d", "c", "b", "a"]
    assert await read(rows=2) == ["d", "c"]
    each = len(b"c") + len(end("d").answer)
    assert await read(kept_bytes=each + 1) == ["d", "c"]
    await store.set_aside(RequestId("b"), "odd")
    assert await read() == ["d", "c"]


async def test_memory_keeps_a_bounded_number_of_ends() -> None:
    store = MemoryStore(ended_max=2)
    for id in "abc":
        await store.add(request(id))
        await store.end(end(id))
    assert await store.find(RequestId("a")) is None
    assert await store.find(RequestId("c")) is not None


async def test_everything_survives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "q.sqlite"
    store = SqliteStore(str(path))
    await store.open()
    await store.add(request("a"))
    await store.add(request("b"))
    await store.end(end("b"))
    await store.close()
    again = SqliteStore(str(path), fsync=True)
    assert (await again.open()).starts == 2
    assert await again.open_requests() == [request("a")]
    found = await again.find(RequestId("b"))
    assert found is not None
    assert found[1] == end("b")
    await again.close()


async def test_the_file_is_private_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    store = SqliteStore(str(path))
    await store.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(QlmError, match=r"another gateway has .* open"):
        await SqliteStore(str(path)).open()
    await store.close()


async def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(QlmError, match="schema version 99"):
        await SqliteStore(str(path)).open()


# A store as the release before fingerprints wrote it, with one request that is open and one that has ended.
OLD_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    idempotency_key TEXT UNIQUE,
    arrived_at REAL NOT NULL,
    head BLOB NOT NULL,
    body BLOB NOT NULL,
    ended_at REAL,
    ended BLOB
);
CREATE INDEX requests_open ON requests (arrived_at) WHERE ended_at IS NULL;
CREATE INDEX requests_ended ON requests (ended_at) WHERE ended_at IS NOT NULL;
INSERT INTO facts VALUES ('starts', 4);
PRAGMA user_version = 1;
"""


def old_head(id: str, key: str) -> bytes:
    head = msgspec.to_builtins(request(id, key=key))
    for field in ("trace", "key_owner", "fingerprint", "endpoint", "asked", "kept"):
        del head[field]
    return msgspec.msgpack.encode(head | {"chat": True, "body": b""})


async def test_a_file_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(OLD_SCHEMA)
        body, ended = b'{"messages": []}', msgspec.msgpack.encode(end("done"))
        old.executemany(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                ("open", "k1", 1.0, old_head("open", "k1"), body, None, None),
                ("done", "k2", 1.0, old_head("done", "k2"), b"", 2.0, ended),
                ("bare", None, 2.0, old_head("bare", ""), body, None, None),
            ],
        )
    old.close()
    for start in (5, 6):
        store = SqliteStore(str(path))
        assert (await store.open()).starts == start
        assert await store.open_requests() == [request("open", key="k1"), request("bare")]
        # Keys were nobody's in particular, and what they named was not noted.
        assert await store.add(request("new", key="k1", fingerprint="1")) == ("open", "")
        assert await store.add(request("new", key="k2", fingerprint="1")) == ("done", "")
        assert (await store.add(request(f"x{start}", key="k1", owner="x"))).id == "x5"
        assert await store.find(RequestId("done")) == (
            replace(request("done", key="k2"), body=b""),
            end("done"),
        )
        assert ids(await store.endings("", None, 9)) == ["done"]
        await store.end(replace(end("x5"), ended_at=0.0))
        await store.close()


async def test_a_failing_store_says_so(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    store = SqliteStore(str(path))
    await store.open()
    other = sqlite3.connect(path)
    other.execute("DROP TABLE requests")
    other.close()
    with pytest.raises(StoreError, match="no such table"):
        await store.add(request("a"))
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.add(request("a"))


async def test_a_file_from_before_ends_were_listed_tells_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite"
    store = SqliteStore(str(path))
    await store.open()
    for id, owner in (("a", "x"), ("b", "y"), ("odd", "x")):
        await store.add(request(id, owner=owner))
        await store.end(end(id))
    await store.close()
    with sqlite3.connect(path) as old:
        old.execute("DROP INDEX requests_owned_ended")
        old.execute("ALTER TABLE requests DROP COLUMN owner")
        old.execute("UPDATE requests SET head = x'c1' WHERE id = 'odd'")
        old.execute("PRAGMA user_version = 4")
    old.close()
    await store.open()
    assert ids(await store.endings("x", None, 9)) == ["a"]
    assert ids(await store.endings("y", None, 9)) == ["b"]
    await store.close()
