"""The actor that keeps one agent running on the node where Ray has placed it.

It writes the agent's configuration where its user alone can read it, and runs the agent as a child of a supervisor. Ray runs
this on its nodes, so whatever it is given and answers is plain data. A worker that is killed leaves a folder behind, which the
next actor on that node removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlm import config_file, fleet
from qlm.service import ORPHAN_GRACE_S
from qlm.supervisor import Supervisor

# An actor whose agent cannot be started ends after this long, so that Ray places it anew, and no sooner.
RETRY_S = 15.0
_PREFIX = "qlm-ray-"
# A folder that is younger may belong to an actor that is about to lock it.
_STALE_S = 60.0


class AgentActor:
    """One agent. Ray makes it again, with the same arguments, where its process or node has died.

    Args:
        name: the agent's.
        gpu: what it is for, which is told on.
        text: its configuration as YAML; `${NAME}` is taken from this node's environment.
        fingerprint: of what it was made from, which is told on.
    """

    def __init__(self, name: str, gpu: str, text: str, fingerprint: str) -> None:
        self._name = name
        self._gpu = gpu
        self._text = text
        self._fingerprint = fingerprint
        self._supervisor: Supervisor | None = None
        self._stopping = False
        self._why = ""
        self._stop_s_max = 0.0
        self._placed = _times_placed_again()
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def standing(self) -> dict[str, Any]:
        """How it stands, as `qlm.ray_fleet.Standing` has it."""
        import ray

        supervisor = self._supervisor
        restarts = supervisor.restarts(self._name) if supervisor is not None else 0
        context = ray.get_runtime_context()
        return {
            "agent": self._name,
            "gpu": self._gpu,
            "state": self._state(),
            "address": ray.util.get_node_ip_address(),
            "node_id": context.get_node_id(),
            "restarts": self._placed + restarts,
            "why": self._why,
            "fingerprint": self._fingerprint,
            "stop_s_max": self._stop_s_max,
        }

    async def stop(self) -> None:
        """Let the agent drain and end; whoever asked ends the actor then."""
        if not self._stopping:
            self._stopping = True
            self._life.cancel()
        await asyncio.wait([self._life])

    def _state(self) -> str:
        if self._stopping:
            return "draining"
        if self._why:
            return "failed"
        return "starting" if self._supervisor is None else self._supervisor.stage(self._name)

    async def _live(self) -> None:
        if self._placed:
            # If its process was killed, the agent has so long to end, and until then its ports, GPUs and name.
            await asyncio.sleep(ORPHAN_GRACE_S)
        try:
            with _written(self._name, self._text) as file:
                await self._serve(file)
        except Exception as error:
            # Whatever it is: where this would end in silence, Ray would go on believing that an agent is here.
            self._why = str(error) or type(error).__name__
            _log(self._name, f"{self._why} Ray places it anew in {RETRY_S:g} s")
        await asyncio.sleep(RETRY_S)
        # An actor that leaves by itself is not made again; one that dies is.
        os._exit(1)

    async def _serve(self, file: Path) -> None:
        """Keep the agent running until it fails for good. Raises what made it fail."""
        config = config_file.parse(self._text, environ=None)
        self._stop_s_max = fleet.stop_grace_s(config)
        arguments = ["--config", str(file)]
        specs = fleet.agent_children([self._name], arguments)
        self._supervisor = fleet.supervisor(config, arguments, log=_log, specs=specs)
        async with self._supervisor as supervisor:
            await supervisor.wait()


def _times_placed_again() -> int:
    import ray

    # Ray's own way to tell this needs its dashboard.
    from ray._private.state import actors

    known = actors(actor_id=ray.get_runtime_context().get_actor_id())
    return int(known.get("NumRestarts", 0))


def _log(name: str, line: str) -> None:
    """Into the log that Ray keeps of this worker."""
    with contextlib.suppress(OSError):
        print(f"{name} | {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _written(name: str, text: str) -> Iterator[Path]:
    """The configuration as a file while the block runs, locked as a sign that it is in use."""
    _remove_stale()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        file = Path(folder) / f"{name.replace('/', '_')}.yaml"
        file.touch(mode=0o600)
        with file.open("w", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            opened.write(text)
            opened.flush()
            yield file


def _remove_stale() -> None:
    """Remove what actors have left behind whose process was killed."""
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/*.yaml"):
        # It may be another user's, in use, or gone by now.
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime < _STALE_S:
                continue
            with file.open("r+") as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent)
