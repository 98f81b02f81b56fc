"""One `vllm serve` process: its command line, its start, its sleep, its death.

The process listens on loopback only, in a session of its own, and dies with its agent. Facts of vLLM's that this
relies on: `/health` answers 503 once the engine core is dead; a sleeping server says so only in `/is_sleeping` and
lets requests hang; after waking, only a real request shows that it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import aiohttp

from agents.engines import tether
from agents.engines.adapters import Adapters
from agents.engines.base import Listener
from agents.engines.connection import Connection, Patience
from agents.engines.faults import unsaid
from agents.engines.requests import Abilities
from qlm_core.config import ModelConfig, VllmEngineConfig
from qlm_core.errors import QlmError
from qlm_core.model import ModelName

log = logging.getLogger("qlm.engine")

_POLL_S = 0.25
_HEALTH_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 120.0
_CONTROL_TIMEOUT_S = 120.0
_LOGS = Path("run")
_GIB = 1 << 30

_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(?P<labels>[^}]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

_NoAnswer = (OSError, TimeoutError, aiohttp.ClientError)


class ServerError(QlmError):
    """A server did not start, or did not do what it was told."""


class Health(Enum):
    """What a look at a process says: it answered, it lives but did not answer in time, or there is nothing to wait for."""

    WELL = "well"
    LATE = "late"
    ILL = "ill"


class Server:
    """A server for one model and its adapters.

    Args:
        adapters: where each of them lies.
        devices: the GPUs that it sees, by index; empty: as this process.
        tensor_parallel: over so many of them the model is spread.

    Attributes:
        cold_s, sleep_s, wake_s: how long the last start, sleep and wake took; 0 before the first.
    """

    def __init__(
        self,
        model: ModelName,
        *,
        settings: ModelConfig,
        section: VllmEngineConfig,
        port: int,
        agent: str,
        can_sleep: bool,
        patience: Patience,
        event_bytes_max: int,
        adapters: dict[ModelName, str],
        devices: tuple[int, ...] = (),
        tensor_parallel: int = 1,
    ) -> None:
        self.model = model
        self.cold_s = self.sleep_s = self.wake_s = 0.0
        served: dict[ModelName, str] = {name: name for name in (model, *adapters)}
        self.connection = Connection(
            f"http://127.0.0.1:{port}",
            served=served,
            patience=patience,
            event_bytes_max=event_bytes_max,
            able=Abilities(
                ids=True,
                context_tokens=settings.max_model_len,
                output_tokens_max=output_limit_of(Path(settings.path)) if settings.path else 0,
            ),
        )
        self.adapters = Adapters(
            self.connection, self._order, adapters, loaded_max=section.max_cpu_loras
        )
        self._section = section
        self._settings = settings
        self._devices = devices
        self._tensor_parallel = tensor_parallel
        self._port = port
        self._log_path = _LOGS / f"{agent}-{model}.log".replace("/", "_")
        self._can_sleep = can_sleep
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    def command(self) -> list[str]:
        """The command line."""
        section, settings = self._section, self._settings
        line = [*section.command, settings.path or self.model]
        line += ["--host", "127.0.0.1", "--port", str(self._port)]
        line += ["--served-model-name", self.model]
        line += ["--max-model-len", str(settings.max_model_len)]
        line += ["--max-num-seqs", str(section.max_num_seqs)]
        line += ["--scheduling-policy", "priority"]
        # How many tokens of a prompt were found in a cache is part of the answer then.
        line.append("--enable-prompt-tokens-details")
        if self._tensor_parallel > 1:
            line += ["--tensor-parallel-size", str(self._tensor_parallel)]
        if section.kv_offload_bytes:
            line += ["--kv-offloading-size", f"{section.kv_offload_bytes / _GIB:.6g}"]
        if section.sleep_mode and self._can_sleep:
            line.append("--enable-sleep-mode")
        if self.adapters:
            line += ["--enable-lora", "--max-loras", str(section.max_loras)]
            line += ["--max-cpu-loras", str(section.max_cpu_loras)]
            line += ["--max-lora-rank", str(section.max_lora_rank)]
        return [*line, *section.args]

    async def start(self, listener: Listener) -> None:
        """Start the process and wait until it has answered a request. Raises ServerError."""
        begun_s = time.monotonic()
        switches = {"VLLM_SERVER_DEV_MODE": "1"}
        if self.adapters:
            switches["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self._devices:
            switches["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._devices))
        own = {name: value.reveal() for name, value in self._section.env.items()}
        environment = os.environ | switches | own
        command = self.command()
        # Asked beforehand, since what is started is the tether, which always is there.
        if shutil.which(command[0], path=environment.get("PATH")) is None:
            raise ServerError(
                f"cannot run {command[0]!r}: there is no such program. Install vLLM or correct "
                "engine.vllm.command."
            )
        with _open_log(self._log_path) as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", tether.__file__, str(os.getpid()), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        log.info("vllm starts", extra={"model": self.model, "pid": self._process.pid})
        self.adapters.open(listener)
        try:
            async with asyncio.timeout(self._section.start_timeout_s):
                await self._wait_until_healthy()
        except TimeoutError:
            await self.stop()
            raise ServerError(
                f"{self.model}: not ready within {self._section.start_timeout_s} s; see "
                f"{self._log_path}. Raise engine.vllm.start_timeout_s if it only needs longer."
            ) from None
        except ServerError:
            await self.stop()
            raise
        await self._probe()
        await self.connection.learn_shapes(self.model, timeout_s=_PROBE_TIMEOUT_S)
        self.cold_s = time.monotonic() - begun_s

    async def stop(self) -> None:
        """End the process, by force if it takes too long. Idempotent."""
        await self.adapters.close()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self._section.stop_timeout_s):
                    await process.wait()
            except TimeoutError:
                log.warning("vllm killed", extra={"model": self.model, "pid": process.pid})
        # Its session may hold an engine core that outlived it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._process = None

    async def sleep(self) -> None:
        """Move the weights to host memory (level 1). Raises ServerError."""
        # An adapter must not come to memory that has gone.
        await self.adapters.settle()
        begun_s = time.monotonic()
        await self._order("/sleep?level=1")
        if not await self._is_sleeping():
            raise ServerError(f"{self.model}: told to sleep, but stays awake")
        self.sleep_s = time.monotonic() - begun_s

    async def wake(self) -> None:
        """Bring the weights back, then the KV cache, and see that it works. Raises ServerError."""
        begun_s = time.monotonic()
        await self._order("/wake_up?tags=weights")
        await self._order("/wake_up?tags=kv_cache")
        if await self._is_sleeping():
            raise ServerError(f"{self.model}: told to wake up, but sleeps on")
        await self._probe()
        self.wake_s = time.monotonic() - begun_s

    async def health(self) -> Health:
        """How process and engine core are."""
        if not self.running:
            return Health.ILL
        try:
            status, _ = await self.connection.get("/health", timeout_s=_HEALTH_TIMEOUT_S)
        except TimeoutError:
            # A server that is merely busy answers late; one that hangs never does.
            return Health.LATE if self.running else Health.ILL
        except _NoAnswer:
            return Health.ILL
        return Health.WELL if status == 200 else Health.ILL

    async def kv_cache_tokens(self) -> int:
        """KV capacity as the engine reports it, 0 if it does not."""
        try:
            status, text = await self.connection.get("/metrics", timeout_s=_HEALTH_TIMEOUT_S)
        except _NoAnswer as error:
            extra = {"model": self.model, "reason": unsaid(error)}
            log.warning("vllm does not tell its KV capacity", extra=extra)
            return 0
        found = _CACHE_INFO.search(text.decode(errors="replace")) if status == 200 else None
        if found is None:
            return 0
        labels = dict(_LABEL.findall(found["labels"]))
        if labels.get("kv_cache_size_tokens", "").isdigit():
            return int(labels["kv_cache_size_tokens"])
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0

    def weights_bytes(self) -> int:
        """Size of the weights on disk, 0 if they do not lie in a folder here."""
        folder = Path(self._settings.path)
        if not self._settings.path or not folder.is_dir():
            return 0
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    async def _wait_until_healthy(self) -> None:
        while await self.health() is not Health.WELL:
            if not self.running:
                code = self._process.returncode if self._process is not None else None
                raise ServerError(
                    f"{self.model}: 'vllm serve' ended with code {code}; see {self._log_path}"
                )
            await asyncio.sleep(_POLL_S)

    async def _probe(self) -> None:
        problem = await self.connection.probe(self.model, timeout_s=_PROBE_TIMEOUT_S)
        if problem:
            raise ServerError(f"{self.model}: the first request failed ({problem})")

    async def _order(self, path: str, body: dict[str, str] | None = None) -> None:
        try:
            status, answer = await self.connection.post(
                path, body or {}, timeout_s=_CONTROL_TIMEOUT_S
            )
        except _NoAnswer as error:
            raise ServerError(f"{self.model}: {path}: no answer ({unsaid(error)})") from error
        if status != 200:
            raise ServerError(f"{self.model}: {path}: HTTP {status} {answer[:200]!r}")

    async def _is_sleeping(self) -> bool:
        try:
            _, answer = await self.connection.get("/is_sleeping", timeout_s=_CONTROL_TIMEOUT_S)
        except _NoAnswer as error:
            raise ServerError(f"{self.model}: /is_sleeping: no answer ({unsaid(error)})") from error
        return b"true" in answer


def output_limit_of(model: Path) -> int:
    """The limit on output that a model's folder says, which vLLM keeps where a client names none; 0 for none."""
    try:
        said = json.loads((model / "generation_config.json").read_text())
    except (OSError, ValueError):
        return 0
    limit = said.get("max_new_tokens") if isinstance(said, dict) else None
    return limit if isinstance(limit, int) and limit > 0 else 0


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")
