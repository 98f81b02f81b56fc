"""A fleet to be harmed: each part under a supervisor of its own, two scripted engines, and proxies on the links where wanted.

Parts are `solver`, `gateway`, the agents `one` and `two`, and their engines `engine-one` and `engine-two`. A part that dies is
started again, as `qlm up` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.chaos import script
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.witness import Witness
from qlm import config_file, fleet, ports
from qlm.supervisor import ChildSpec, Supervisor
from qlm_core.config import Config
from qlm_core.errors import QlmError

AGENTS = ("one", "two")
PARTS = ("solver", "gateway", *AGENTS)
ENGINES = ("engine-one", "engine-two")
# Links by the name of who dials and who is dialled.
LINKS = ("agents-gateway", "agents-solver", "gateway-solver", "one-engine", "http", "grpc")

_NONE: Mapping[str, str] = {}
# Fewer than there are clients, so that something waits and is planned.
_SLOTS = 4
_ENGINE_RESTART_S = 0.5
_STOP_S = 10.0
_START_TRIES = 3


async def until(reached: Callable[[], bool]) -> None:
    """Wait until something is so. What processes do outside tells nobody, so it is asked again and again."""
    while not reached():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Bed:
    """A fleet that runs.

    Args:
        folder: for the store, the configuration, logs and the engines' log.
        links: whether parts reach each other through proxies that can be harmed.
        overrides: of the configuration, as `--set` takes them.

    Attributes:
        config: the whole configuration.
        said: what parts have logged, as (part, line).
    """

    def __init__(self, folder: Path, *, links: bool = False, overrides: Sequence[str] = ()) -> None:
        self.folder = folder
        self.said: list[tuple[str, str]] = []
        self.proxies: dict[str, Proxy] = {}
        self.witness = Witness(folder / "engines.jsonl")
        self._heard = asyncio.Event()
        self._engines = _engines(folder)
        self._supervisors: dict[str, Supervisor] = {}
        self.config = self._configured(overrides)
        self.http, self.grpc = self.config.gateway.http_listen, self.config.gateway.grpc_listen
        if links:
            self._link()

    # ---------------------------------------------------------------- life

    async def start(self, first: Sequence[str] = (), variables: Mapping[str, str] = _NONE) -> None:
        """Start everything and wait until all of it serves; some parts with variables that nobody else gets."""
        for proxy in self.proxies.values():
            await proxy.start()
        await asyncio.gather(*(engine.start() for engine in self._engines.values()))
        file = self.folder / "config.yaml"
        file.write_text(config_file.to_yaml(self.config, redact=False))
        specs = {spec.name: spec for spec in fleet.children(self.config, ["--config", str(file)])}
        self._supervisors = {name: self._supervisor(spec) for name, spec in specs.items()}
        with self.environment(variables):
            starting = [asyncio.create_task(self._supervisors[n].__aenter__()) for n in first]
            await until(lambda: all(self.pid(name) is not None for name in first))
        others = [one for name, one in self._supervisors.items() if name not in first]
        await asyncio.gather(*starting, *(one.__aenter__() for one in others))

    async def stop(self) -> None:
        """End everything."""
        for name in (*PARTS, *ENGINES):
            self.wake(name)
        await asyncio.gather(*(one.stop() for one in self._supervisors.values()))
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))
        for proxy in self.proxies.values():
            await proxy.stop()

    # ---------------------------------------------------------------- parts

    def pid(self, name: str) -> int | None:
        """The process of a part, None while it is down."""
        engine = self._engines.get(name)
        return engine.pid if engine is not None else self._supervisors[name].pid(name)

    def kill(self, name: str) -> None:
        """kill -9."""
        self._signal(name, signal.SIGKILL)

    def pause(self, name: str) -> None:
        """Freeze a part where it is."""
        self._signal(name, signal.SIGSTOP)

    def terminate(self, name: str) -> None:
        """Ask a part to stop; as nobody else knows of that, it is started again."""
        self._signal(name, signal.SIGTERM)

    def wake(self, name: str) -> None:
        """Let a frozen part go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def restarts(self, name: str) -> int:
        """How often a part was started again."""
        engine = self._engines.get(name)
        return engine.restarts if engine is not None else self._supervisors[name].restarts(name)

    async def until_restarted(self, name: str, restarts: int) -> None:
        """Wait until a part has been started again so often and serves."""
        await until(lambda: self.restarts(name) >= restarts and self.pid(name) is not None)
        engine = self._engines.get(name)
        await (engine.ready.wait() if engine else self._supervisors[name].until_ready(name))

    async def kill_and_wait(self, *names: str) -> None:
        """kill -9 of parts at once; back when all of them serve again."""
        before = {name: self.restarts(name) for name in names}
        for name in names:
            self.kill(name)
        await asyncio.gather(*(self.until_restarted(n, count + 1) for n, count in before.items()))

    @contextlib.asynccontextmanager
    async def down(self, name: str) -> AsyncIterator[None]:
        """A part killed and not started again while the block runs."""
        restarts = self.restarts(name)
        self.kill(name)
        # Held before it does anything: a supervisor has started it, and that is all.
        await until(lambda: self.restarts(name) > restarts and self.pid(name) is not None)
        self.pause(name)
        try:
            yield
        finally:
            self.wake(name)
            await self.until_restarted(name, restarts + 1)

    # ---------------------------------------------------------------- what is started meanwhile

    @contextlib.contextmanager
    def environment(self, variables: Mapping[str, str]) -> Iterator[None]:
        """What is started while the block runs has these variables; who is started in its place later has not."""
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    async def until_said(self, words: str, *, count: int = 1) -> None:
        """Wait until parts have logged these words so often."""
        while sum(words in line for _, line in self.said) < count:
            self._heard.clear()
            await self._heard.wait()

    # ---------------------------------------------------------------- parts of it

    def _configured(self, overrides: Sequence[str]) -> Config:
        agents = [
            {
                "name": name,
                "gpu": "a100",
                "models": [script.MODEL],
                "engine": {
                    "kind": "openai",
                    "openai": {
                        "base_url": f"http://{self._engines[f'engine-{name}'].listen}",
                        "max_num_seqs": _SLOTS,
                    },
                },
            }
            for name in AGENTS
        ]
        base = Config.from_mapping(
            {"models": {script.MODEL: {"max_model_len": 8192}}, "agents": agents}
        )
        # A disk that is to fill up leaves room for uploads until then.
        own = ["solver.backend=search", "gateway.files.disk_free_bytes_min=0"]
        return fleet.temporary_config(self.folder, [*own, *overrides], base=base)

    def _link(self) -> None:
        """Have every link lead through a proxy."""
        config = self.config
        targets = dict(
            zip(
                LINKS,
                (
                    config.gateway.agents_listen,
                    config.solver.listen,
                    config.solver.listen,
                    self._engines["engine-one"].listen,
                    config.gateway.http_listen,
                    config.gateway.grpc_listen,
                ),
                strict=True,
            )
        )
        listens = dict(zip(LINKS, ports.free_addresses(len(LINKS)), strict=True))
        self.proxies = {name: Proxy(listens[name], target) for name, target in targets.items()}
        self.http, self.grpc = listens["http"], listens["grpc"]
        self.config = config_file.override(
            config,
            [
                f"gateway.advertise={listens['agents-gateway']}",
                f"agents.*.solver={listens['agents-solver']}",
                f"gateway.solver={listens['gateway-solver']}",
                f"agents.one.engine.openai.base_url=http://{listens['one-engine']}",
            ],
        )

    def _supervisor(self, spec: ChildSpec) -> Supervisor:
        return Supervisor([spec], log=self._log, stop_grace_s=_STOP_S)

    def _log(self, name: str, line: str) -> None:
        self.said.append((name, line))
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{name:<8} | {line}\n")
        self._heard.set()


class _Engine:
    """A scripted engine as a process that is started again when it dies."""

    def __init__(self, name: str, listen: str, log: Path) -> None:
        self.listen = listen
        self.restarts = 0
        self.ready = asyncio.Event()
        self._command = [
            *(sys.executable, "-m", "benchmarks.chaos.engine", "--name", name),
            *("--listen", listen, "--log", str(log)),
        ]
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it serves."""
        self._keeper = asyncio.create_task(self._keep())
        await self.ready.wait()

    async def stop(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
            self._process = process
            assert process.stdout is not None
            try:
                if await process.stdout.readline():
                    self.ready.set()
                await process.wait()
            finally:
                self.ready.clear()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(_ENGINE_RESTART_S)
            self.restarts += 1


def _engines(folder: Path) -> dict[str, _Engine]:
    listens = ports.free_addresses(len(ENGINES))
    log = folder / "engines.jsonl"
    return {name: _Engine(name, at, log) for name, at in zip(ENGINES, listens, strict=True)}


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    *,
    links: bool = False,
    overrides: Sequence[str] = (),
    first: Sequence[str] = (),
    variables: Mapping[str, str] = _NONE,
) -> AsyncIterator[Bed]:
    """A fleet while the block runs."""
    bed = await _started(folder, links, overrides, first, variables)
    try:
        yield bed
    finally:
        await bed.stop()


async def _started(
    folder: Path,
    links: bool,
    overrides: Sequence[str],
    first: Sequence[str],
    variables: Mapping[str, str],
) -> Bed:
    """A fleet that serves; another one where somebody has taken one of its addresses meanwhile. Raises QlmError."""
    for tries_left in reversed(range(_START_TRIES)):
        bed = Bed(folder, links=links, overrides=overrides)
        try:
            await bed.start(first, variables)
        except QlmError:
            await bed.stop()
            if not tries_left:
                raise
        else:
            return bed
    raise AssertionError
