"""One thread that does what is asked of a database: reads as they are, writes together in group commits.

The thread collects what is asked for during `commit_interval_s`; only when it is committed do those who asked hear back.
A commit that fails is heard of by everyone in it as a StoreError, and nothing of it was done. Reads do not wait for a
commit to succeed. The thread outlives whatever fails in it: a full disk or a locked file is tried anew with the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import failpoints
from gateway.store.base import StoreError
from gateway.store.place import Place
from qlm_core.errors import kind_and_place

log = logging.getLogger(__name__)

# One commit holds at most this many operations, so that no caller waits for an endless batch.
BATCH_MAX = 2_000

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Any]


@dataclass(slots=True, eq=False)
class _Job:
    work: Work
    writes: bool
    future: asyncio.Future[Any]
    outcome: Any = None


class Jobs:
    """The thread and its connection, from one `asyncio` loop.

    Args:
        connect: opens the connection, and opens it anew where that is the only way on.
        connection: the first one; this owns it from now on.
        place: the database's file.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        connection: sqlite3.Connection,
        place: Place,
        *,
        commit_interval_s: float,
    ) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = connection
        self._place = place
        self._journal = place.journal()
        self._commit_interval_s = commit_interval_s
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="qlm-store", daemon=True)
        self._thread.start()

    async def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """The result of something that changes nothing. Raises StoreError."""
        return await self._ask(work, writes=False)

    async def write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """The result of one change, once that is committed. Raises StoreError."""
        return await self._ask(work, writes=True)

    async def close(self) -> None:
        """Do what was asked for and end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _ask(self, work: Callable[[sqlite3.Connection], Result], *, writes: bool) -> Result:
        if self._closed:
            raise StoreError("the store is closed")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put(_Job(work, writes, future))
        return await future

    # ---------------------------------------------------------------- in the thread

    def _run(self) -> None:
        more = True
        while more:
            jobs, more = self._collect()
            try:
                self._do(jobs)
            except Exception as error:  # the edge: the thread must outlive whatever it was
                log.error("the store failed oddly", extra={"reason": kind_and_place(error)})
                _fail(jobs, error)
                self._drop_connection()
            self._answer(jobs)
        self._drop_connection()

    def _collect(self) -> tuple[list[_Job], bool]:
        """The next batch, and whether more may follow."""
        first = self._jobs.get()
        if first is None:
            return [], False
        jobs = [first]
        due = time.monotonic() + self._commit_interval_s
        while len(jobs) < BATCH_MAX:
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _do(self, jobs: list[_Job]) -> None:
        try:
            connection = self._open()
        except (OSError, sqlite3.Error) as error:
            _fail(jobs, error)
            return
        for job in jobs:
            if not job.writes:
                _try(job, connection)
        writes = [job for job in jobs if job.writes]
        if not writes:
            return
        try:
            self._place.require()
        except OSError as error:
            _fail(writes, error)
        else:
            self._commit(connection, writes)

    def _open(self) -> sqlite3.Connection:
        """A connection whose journal the next start will find. Raises OSError, sqlite3.Error."""
        if self._connection is not None and self._place.journal() != self._journal:
            # Closing writes what is in a deleted journal into the file, if that is still there.
            self._place.require()
            log.error("the journal of the store was deleted; it is written anew")
            self._drop_connection()
        if self._connection is None:
            self._place.require()
            self._connection = self._connect()
            self._journal = self._place.journal()
        return self._connection

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Do all in one transaction. A full disk ends the whole of it, and so everything in it fails.

        What fails alone is undone alone, as each is one statement that changes anything, or undoes itself
        (`database.together`).
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                _try(job, connection)
                if not connection.in_transaction:
                    _fail(jobs, job.outcome)
                    return
            failpoints.at("gateway.store.before_commit", sqlite3.OperationalError)
            connection.execute("COMMIT")
            failpoints.at("gateway.store.after_commit")
        except sqlite3.Error as error:
            _fail(jobs, error)
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Whatever it says, nothing that was acknowledged depends on it.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _answer(self, jobs: list[_Job]) -> None:
        # A loop that closed without closing the store leaves nobody who waits for an answer.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_resolve, jobs)


def _try(job: _Job, connection: sqlite3.Connection) -> None:
    try:
        job.outcome = job.work(connection)
    except Exception as error:  # the edge: one odd job must not cost the others theirs
        job.outcome = _said(error)


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        job.outcome = _said(error)


def _said(error: Exception) -> StoreError:
    """An error for those who asked, clients among them; what is not the database's own may quote what was stored."""
    if isinstance(error, StoreError):
        return error
    expected = isinstance(error, sqlite3.Error | OSError)
    return StoreError(f"the store failed: {error if expected else type(error).__name__}")


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if isinstance(job.outcome, StoreError):
            job.future.set_exception(job.outcome)
        else:
            job.future.set_result(job.outcome)
