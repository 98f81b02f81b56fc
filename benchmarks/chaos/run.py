"""One fault from beginning to end: a fleet, a load, the fault, and the judgement on every request."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.chaos.bed import Bed, running
from benchmarks.chaos.clients import Asked, Clients, Fate
from benchmarks.chaos.faults import WHOLE_S, Fault
from benchmarks.chaos.load import Load
from qlm_core.errors import QlmError
from qlm_core.model import Phase

_FLOWING_S = 30.0
_BEFORE_S = 0.7
_INFLICT_S = 90.0
_RECOVERY_S = 30.0
_AFTER_S = 1.5
_PATIENCE_S = 30.0
_NOTES_MAX = 12
_SETTLE_TRIES = 20
_SETTLE_S = 0.2


class Row(msgspec.Struct, kw_only=True):
    """What became of all requests of one fault.

    Attributes:
        failed: plain requests that failed visibly where they may.
        lost: durable requests whose record is not a finished one, and plain ones that failed where they may not.
        duplicated: requests under two ids, attempts that ran twice, and attempts after the end.
        wrong: requests whose text or record differs from what the engine says.
        hung: requests without an end long after the fault was healed, and what is still held when all have ended.
        silence_s: the longest time that a client waited for a byte.
        recovery_s: from healing until a fresh request of each kind was answered; None if it never was.
        whole_s: how long that may take.
        notes: what was found, in words.
    """

    fault: str
    requests: int = 0
    finished: int = 0
    failed: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    hung: int = 0
    silence_s: float = 0.0
    recovery_s: float | None = None
    whole_s: float = WHOLE_S
    notes: list[str] = []

    @property
    def verdict(self) -> str:
        """`ok`, or what is wrong in a word."""
        for name in ("lost", "duplicated", "wrong", "hung"):
            if getattr(self, name):
                return name
        if self.recovery_s is None or self.recovery_s > self.whole_s:
            return "late"
        return "ok"


async def run(fault: Fault, folder: Path | None = None) -> Row:
    """Do one fault to a fleet of its own; with a folder its files are kept there."""
    if folder is not None:
        folder.mkdir(parents=True)
        return await _run(fault, folder)
    with tempfile.TemporaryDirectory(prefix="qlm-chaos-") as name:
        return await _run(fault, Path(name))


async def _run(fault: Fault, folder: Path) -> Row:
    async with running(
        folder,
        links=fault.links,
        overrides=fault.overrides,
        first=fault.parts,
        variables=fault.variables(folder),
    ) as bed:
        return await harm(bed, fault)


async def harm(bed: Bed, fault: Fault) -> Row:
    """Do a fault to a fleet that runs, and judge all that was asked of it meanwhile."""
    row = Row(fault=fault.name, whole_s=fault.whole_s)
    async with Clients(bed.http, bed.grpc) as clients:
        load = Load(clients, fault.name)
        load.start()
        try:
            await _inflict(row, fault, bed, load)
            recovery_s = await load.recovered(_RECOVERY_S)
            row.recovery_s = recovery_s if recovery_s < _RECOVERY_S else None
            await asyncio.sleep(_AFTER_S)
            await load.stop(_PATIENCE_S)
        finally:
            await load.stop(0.0)
        await _judge(row, fault, bed, clients, load.asked)
    return row


async def _inflict(row: Row, fault: Fault, bed: Bed, load: Load) -> None:
    try:
        if not fault.at_once:
            async with asyncio.timeout(_FLOWING_S):
                await load.flowing()
            await asyncio.sleep(_BEFORE_S)
        async with asyncio.timeout(_INFLICT_S + fault.seconds):
            await fault.inflict(bed)
    except TimeoutError:
        row.notes.append("the fleet did not get far enough for the fault")
        row.hung += 1


async def _judge(
    row: Row, fault: Fault, bed: Bed, clients: Clients, asked: Sequence[Asked]
) -> None:
    """Count what became of every request, by its client, by the store and by the engines' log."""
    row.requests = len(asked)
    row.silence_s = max((one.silent_s() for one in asked), default=0.0)
    for one in asked:
        await _judge_one(row, fault, clients, one)
    twice = [one.name for one in asked if len(one.ids) > 1 and one.kind.durable]
    _count(row, "duplicated", [f"{name} was accepted under several ids" for name in twice])
    over = {one.name: one.ended_at for one in asked if one.fate is Fate.FINISHED}
    whole = {one.name: one.tokens for one in asked if one.fate is Fate.FINISHED}
    witness = bed.witness
    _count(row, "duplicated", witness.run_twice())
    _count(row, "duplicated", witness.run_after_end(over))
    _count(row, "wrong", witness.wrongly_continued())
    _count(row, "wrong", witness.never_said(whole))
    durable = [one for one in asked if one.kind.durable and one.ids]
    _count(row, "lost", await asyncio.to_thread(_unlike_store, bed, durable))
    if not row.hung:
        _count(row, "hung", await _left_over(clients))


async def _left_over(clients: Clients) -> list[str]:
    """What gateway and solver still hold though every client has its end; a moment is given for the last facts to travel."""
    found: list[str] = []
    for _ in range(_SETTLE_TRIES):
        try:
            found = await clients.left_over()
        except QlmError as error:
            found = [f"the fleet does not say what it holds: {error}"]
        if not found:
            break
        await asyncio.sleep(_SETTLE_S)
    return found


async def _judge_one(row: Row, fault: Fault, clients: Clients, one: Asked) -> None:
    if one.wrong:
        _count(row, "wrong", [f"{one.name}: {one.wrong}"])
    if one.fate is Fate.OPEN:
        _count(row, "hung", [f"{one.name}: {one.reason or 'no word'} (ids {list(one.ids)})"])
        return
    if one.fate is Fate.FINISHED:
        row.finished += 1
    elif fault.plain_may_fail and not one.kind.durable:
        row.failed += 1
    else:
        _count(row, "lost", [f"{one.name}: {one.reason}"])
    if not one.kind.durable or one.fate is not Fate.FINISHED:
        return
    for id in one.ids:
        try:
            phase, text = await clients.record(id)
        except QlmError as error:
            _count(row, "lost", [f"{one.name}: no record: {error}"])
            continue
        if phase is not Phase.FINISHED:
            _count(row, "lost", [f"{one.name}: its record says {phase.value}"])
        elif text != one.expected:
            _count(row, "wrong", [f"{one.name}: its record has another text"])


def _unlike_store(bed: Bed, durable: Sequence[Asked]) -> list[str]:
    """Durable requests of which the store does not hold exactly one ended row."""
    path = Path(bed.config.gateway.store.path)
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT id, ended_at IS NOT NULL FROM requests "
            "UNION ALL SELECT id, ended_at IS NOT NULL FROM batches"
        ).fetchall()
    connection.close()
    ended = dict(rows)
    found = []
    for one in durable:
        for id in one.ids:
            if id not in ended:
                found.append(f"{one.name}: the store has no row {id}")
            elif one.fate is not Fate.OPEN and not ended[id]:
                found.append(f"{one.name}: the store has no end of {id}")
    return found


def _count(row: Row, column: str, found: Sequence[str]) -> None:
    """Add to a column, and say why as long as there is room."""
    setattr(row, column, getattr(row, column) + len(found))
    row.notes += [f"{column}: {what}" for what in found[: _NOTES_MAX - len(row.notes)]]
