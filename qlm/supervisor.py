"""Runs the processes of a fleet as children: starts them, waits until they serve, restarts crashed ones, stops all.

Children are whole `qlm` processes rather than parts of this one, so that a crash of one is the crash of one, and a
fleet on one machine works exactly as a fleet on many. Each child holds a pipe to this process and stops when that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import failpoints
from qlm.service import JOINED, READY
from qlm_core.errors import QlmError, Unavailable

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 10.0
# A child that served for this long was well; its next crash is counted as a first one.
STABLE_S = 30.0
START_ATTEMPTS_MAX = 5
# Of a fleet that did not come up nobody needs a drain.
FAILED_GRACE_S = 2.0
EXIT_MISUSE = 2
SUPERVISED = ("--supervised",)
# A longer line of a child's is passed on in parts.
LINE_BYTES_MAX = 65_536

Log = Callable[[str, str], None]
# Started or about to be; serving; and, of an agent, with somebody who gives it requests.
Stage = Literal["starting", "ready", "joined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child: a name for people and the `qlm` arguments that start it.

    Attributes:
        last: it is stopped when all others have ended, since they need it for that.
    """

    name: str
    arguments: tuple[str, ...]
    last: bool = False


class _Child:
    """A child across its restarts."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: Process | None = None
        self.ready = asyncio.Event()
        self.joined = asyncio.Event()
        self.served = False
        self.last_line = ""
        self.restarts = 0


class Supervisor:
    """Keeps a set of children running; used as an asynchronous context manager.

    Args:
        specs: the children, all started at once.
        log: called with (child name, line) for each line a child logs; must not wait, since all children would.
        ready_timeout_s: how long the children have until all of them serve.
        stop_grace_s: how long they have to stop once they are told to, before they are killed.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        log: Log,
        ready_timeout_s: float = 60.0,
        stop_grace_s: float = 60.0,
    ) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        self._log = log
        self._ready_timeout_s = ready_timeout_s
        self._stop_grace_s = stop_grace_s
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Supervisor:
        self._keepers = [asyncio.create_task(self._keep(c)) for c in self._children.values()]
        try:
            await self._all_ready()
        except BaseException:
            await self._stop(FAILED_GRACE_S)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def pid(self, name: str) -> int | None:
        """The process id of a child, None while it is down."""
        process = self._children[name].process
        return process.pid if process is not None and process.returncode is None else None

    def restarts(self, name: str) -> int:
        """How often the child was started again."""
        return self._children[name].restarts

    def stage(self, name: str) -> Stage:
        """How far the child has come since it was last started."""
        child = self._children[name]
        if child.joined.is_set():
            return "joined"
        if child.ready.is_set():
            return "ready"
        return "starting"

    async def until_ready(self, name: str) -> None:
        """Wait until the child serves."""
        await self._children[name].ready.wait()

    async def until_joined(self, name: str) -> None:
        """Wait until the child, an agent, can be given requests."""
        await self._children[name].joined.wait()

    async def wait(self) -> None:
        """Wait until a child fails for good. Raises what made it fail."""
        done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in done:
            keeper.result()

    async def stop(self) -> None:
        """End all children: first asked, then killed. Idempotent."""
        await self._stop(self._stop_grace_s)

    async def _stop(self, grace_s: float) -> None:
        self._stopping.set()
        for last in (False, True):
            group = [child for child in self._children.values() if child.spec.last is last]
            for child in group:
                if child.process is not None:
                    _send(child.process, signal.SIGTERM)
            await self._wait_for_ends(group, grace_s)
            for child in group:
                process = child.process
                if process is not None and process.returncode is None:
                    self._log(
                        child.spec.name, f"killed by SIGKILL: did not stop within {grace_s:g} s"
                    )
                    _send(process, signal.SIGKILL)
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _wait_for_ends(self, group: Sequence[_Child], timeout_s: float) -> None:
        keepers = [
            keeper
            for child, keeper in zip(self._children.values(), self._keepers, strict=True)
            if child in group and not keeper.done()
        ]
        if keepers:
            await asyncio.wait(keepers, timeout=timeout_s)

    async def _all_ready(self) -> None:
        everything = asyncio.gather(*(child.ready.wait() for child in self._children.values()))
        try:
            await asyncio.wait(
                cast("list[asyncio.Future[object]]", [everything, *self._keepers]),
                timeout=self._ready_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()
            if not everything.done():
                late = [name for name, c in self._children.items() if not c.ready.is_set()]
                raise Unavailable(
                    f"{', '.join(late)}: not ready after {self._ready_timeout_s:g} s. See the log."
                )
        finally:
            everything.cancel()
            await asyncio.gather(everything, return_exceptions=True)

    async def _keep(self, child: _Child) -> None:
        """Run the child again and again until told to stop or it is past help."""
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_FIRST_S
        while True:
            started_s = loop.time()
            status = await self._run_once(child)
            if self._stopping.is_set():
                return
            name = child.spec.name
            if not child.served and status == EXIT_MISUSE:
                raise QlmError(child.last_line.removeprefix("qlm: error: "))
            if not child.served and child.restarts + 1 >= START_ATTEMPTS_MAX:
                raise Unavailable(
                    f"{name}: ended {START_ATTEMPTS_MAX} times before it served; "
                    f"last words: {child.last_line}"
                )
            if loop.time() - started_s > STABLE_S:
                backoff_s = BACKOFF_FIRST_S
            self._log(name, f"{_cause(status)}; starts again in {backoff_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
                return
            backoff_s = min(2 * backoff_s, BACKOFF_LAST_S)
            failpoints.at("qlm.supervisor.restarting")
            child.restarts += 1

    async def _run_once(self, child: _Child) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *_safe_path(), "-m", "qlm", *child.spec.arguments, *SUPERVISED),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # A Ctrl-C at the terminal is for the supervisor, which then stops children in order.
            start_new_session=True,
        )
        child.process = process
        if self._stopping.is_set():
            _send(process, signal.SIGTERM)
        try:
            await asyncio.gather(self._watch_output(child, process), self._pump(child, process))
            return await process.wait()
        finally:
            child.ready.clear()
            child.joined.clear()
            if process.returncode is None:
                _send(process, signal.SIGKILL)
                await process.wait()
                self._log(child.spec.name, "killed by SIGKILL: no longer supervised")

    async def _watch_output(self, child: _Child, process: Process) -> None:
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            if line == READY:
                child.served = True
                child.ready.set()
            elif line == JOINED:
                child.joined.set()
            else:
                self._log(child.spec.name, line)

    async def _pump(self, child: _Child, process: Process) -> None:
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            child.last_line = line or child.last_line
            self._log(child.spec.name, line)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length, so that no child ever blocks on its log."""
    rest = b""
    while block := await reader.read(LINE_BYTES_MAX):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) >= LINE_BYTES_MAX:
            lines.append(rest)
            rest = b""
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _safe_path() -> tuple[str, ...]:
    """How an interpreter is told to take no package from the folder where it starts.

    A folder named `agents` may lie there, which is somebody else's. In our own checkout the packages that lie there are ours, and
    may be nowhere else.
    """
    return () if Path.cwd() == Path(__file__).parents[1] else ("-P",)


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _cause(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
