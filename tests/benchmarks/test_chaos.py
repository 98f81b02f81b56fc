"""The judges of `make chaos`: that each kind of harm is seen, on made-up logs and answers; and the proxy that does some of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.chaos import script
from benchmarks.chaos.clients import Asked, Fate, Kind
from benchmarks.chaos.engine import Begun, Left, Line, Sent
from benchmarks.chaos.faults import catalogue
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.run import Row
from benchmarks.chaos.witness import Witness
from qlm import ports

# --------------------------------------------------------------------------- the engines' log


def begun(attempt: str, *, after: int = 0, right: bool = True, at_s: float = 1.0) -> Begun:
    return Begun(
        at_s=at_s, engine="e", attempt=attempt, name="n", after=after, right=right, body={}
    )


def sent(attempt: str, first: int, last: int) -> Sent:
    return Sent(at_s=2.0, attempt=attempt, name="n", first=first, last=last)


def witness(folder: Path, *lines: Line, torn: bytes = b"") -> Witness:
    path = folder / "log.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines) + torn)
    return Witness(path)


def test_a_clean_run_is_not_accused(tmp_path: Path) -> None:
    seen = witness(
        tmp_path,
        *(begun("n-1"), sent("n-1", 0, 1), sent("n-1", 1, 2)),
        Left(at_s=3.0, attempt="n-1", name="n", whole=False),
        *(begun("n-2", after=1), sent("n-2", 1, 2), sent("n-2", 2, 3)),
        torn=b'{"type":"begun","at_s"',
    )
    assert seen.wrongly_continued() == seen.run_twice() == []
    assert seen.run_after_end({"n": 5.0}) == []
    assert seen.never_said({"n": 3}) == []


def test_an_attempt_behind_another_output_is_seen(tmp_path: Path) -> None:
    seen = witness(tmp_path, begun("n-1"), begun("n-2", after=2, right=False))
    assert seen.wrongly_continued() == ["attempt n-2 goes on after 2 tokens that are not its own"]


def test_an_attempt_that_ran_twice_is_seen(tmp_path: Path) -> None:
    assert witness(tmp_path, begun("n-1"), begun("n-1")).run_twice() == ["attempt n-1 came 2 times"]


def test_work_after_the_end_is_seen(tmp_path: Path) -> None:
    seen = witness(tmp_path, begun("n-1"), begun("n-2", at_s=6.0))
    assert seen.run_after_end({"n": 5.0}) == ["attempt n-2 came after the end of n"]


def test_an_attempt_that_was_overtaken_may_come_late(tmp_path: Path) -> None:
    seen = witness(tmp_path, begun("n-2"), begun("n-1", at_s=6.0), begun("n-3", at_s=7.0))
    assert seen.run_after_end({"n": 5.0}) == ["attempt n-3 came after the end of n"]


def test_tokens_that_no_engine_said_are_seen(tmp_path: Path) -> None:
    seen = witness(tmp_path, begun("n-1"), sent("n-1", 0, 1), sent("n-1", 2, 3))
    assert seen.never_said({"n": 3}) == ["n has 3 tokens, of which engines said 1 in a row"]


# --------------------------------------------------------------------------- clients


def test_a_prompt_tells_how_far_its_answer_is() -> None:
    prompt, said = script.prompt("a b"), script.answer("a b", 3)
    assert script.begun(prompt) == ("a b", 0, True)
    assert script.begun(prompt + said) == ("a b", 3, True)
    assert script.begun(prompt + said + script.token("a b", 4)) == ("a b", 4, False)
    assert script.begun(prompt + said[:-1]) == ("a b", 3, False)


@pytest.mark.parametrize(
    "text",
    [
        script.answer("n", 2),
        script.answer("n", 4),
        script.answer("n", 2) + script.token("n", 1),
        script.answer("m", 3),
    ],
    ids=["short", "long", "twice", "another's"],
)
def test_a_text_that_is_not_exact_is_wrong(text: str) -> None:
    asked = Asked(kind=Kind.GRPC, name="n", tokens=3)
    asked.shown(text)
    asked.end(Fate.FINISHED)
    assert asked.wrong


def test_a_stream_that_was_taken_up_again_is_as_right_as_one() -> None:
    asked = Asked(kind=Kind.GRPC, name="n", tokens=3)
    for tokens in (1, 2, 1, 3):
        asked.shown(script.answer("n", tokens))
    asked.end(Fate.FINISHED)
    assert not asked.wrong


@pytest.mark.parametrize("harm", ["lost", "duplicated", "wrong", "hung"])
def test_one_harmed_request_decides_the_verdict(harm: str) -> None:
    row = Row(fault="f", requests=9, finished=8, recovery_s=0.1)
    assert row.verdict == "ok"
    setattr(row, harm, 1)
    assert row.verdict == harm


def test_service_that_is_not_whole_in_time_is_late() -> None:
    assert Row(fault="f", recovery_s=2.5).verdict == "late"
    assert Row(fault="f", recovery_s=None).verdict == "late"


def test_faults_have_names_of_their_own() -> None:
    names = [fault.name for fault in catalogue()]
    assert len(dict.fromkeys(names)) == len(names)


# --------------------------------------------------------------------------- the proxy

PATIENCE_S = 10.0


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Before a server that says everything again."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listen, target = ports.free_addresses(2)
    host, _, port = target.rpartition(":")
    server = await asyncio.start_server(echo, host, int(port))
    proxy = Proxy(listen, target)
    await proxy.start()
    yield proxy
    await proxy.stop()
    server.close()


class Peer:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hears(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await self.reader.readexactly(len(data)) == data

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await self.reader.read(1)


@pytest.fixture
async def peer(proxy: Proxy) -> AsyncIterator[Peer]:
    host, _, port = proxy.listen.rpartition(":")
    peer = Peer(*await asyncio.open_connection(host, int(port)))
    peer.writer.write(b"one")
    await peer.hears(b"one")
    yield peer
    peer.writer.close()


@pytest.mark.parametrize(("there", "back"), [(True, True), (True, False), (False, True)])
async def test_what_is_held_up_comes_late_and_whole(
    there: bool, back: bool, proxy: Proxy, peer: Peer
) -> None:
    proxy.hold(there=there, back=back)
    peer.writer.write(b"two")
    await peer.hears_nothing()
    proxy.heal()
    await peer.hears(b"two")


async def test_a_reset_is_felt_and_new_connections_pass(proxy: Proxy, peer: Peer) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await peer.reader.read(1)
    host, _, port = proxy.listen.rpartition(":")
    again = Peer(*await asyncio.open_connection(host, int(port)))
    again.writer.write(b"three")
    await again.hears(b"three")
    again.writer.close()
