"""An engine of `vllm serve` processes, one per model that is not an adapter, of which one is awake.

At the start every model that fits into host memory is loaded, and put to sleep and woken once, which shows that it can
be and how long that takes; then it sleeps, and the first one stays awake. So a swap is a sleep and a wake. Models that
do not fit are started and stopped. A process that dies is restarted with growing pauses if it was the awake one, else
it counts as cold. A model's LoRA adapters are loaded into its process as jobs ask for them. Jobs go over the same request
path as for any OpenAI-compatible server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace

from agents.engines.base import Listener
from agents.engines.connection import patience_of
from agents.engines.faults import unsaid
from agents.engines.openai import assumed_profile
from agents.engines.tiers import Tiers
from agents.engines.vllm_server import Health, Server, ServerError
from agents.streams import Backoff
from qlm_core.config import AgentConfig, Config
from qlm_core.executor import EngineDown, EngineReady, SwapFailed
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import ADAPTER_LOAD_S, EngineProfile

log = logging.getLogger("qlm.engine")

_WATCH_S = 0.5
# A live process counts as dead when the checks that it fails in a row weigh this much: three that it answers with an
# error or not at all, or six that it answers late, which a busy one may.
_MISSES_LOST = 6
_WEIGHTS = {Health.WELL: 0, Health.LATE: 1, Health.ILL: 2}
_RESTART_PAUSE_S_MAX = 60.0
# Where an engine does not say how much fits.
_KV_CACHE_TOKENS_ASSUMED = 200_000
# What is computed again of a request that comes back where blocks are kept in host memory, until it has been seen: the
# last block, and what was not copied yet.
_OFFLOADED_RESUME_SHARE = 0.05
# Agents that say they have this GPU run on the CPU, where sleeping moves no memory and its flag is refused.
CPU = "cpu"


class VllmEngine:
    """One serving instance made of vLLM servers."""

    def __init__(self, config: Config, agent: AgentConfig) -> None:
        self._section = agent.engine.vllm
        self._gpu = agent.gpu
        # A single GPU may serve what is listed for several, with weights of fewer bits.
        self._tensor_parallel = agent.tensor_parallel if agent.tensor_parallel > 1 else None
        self._host_memory_bytes = agent.host_memory_bytes
        # In the order of the configuration.
        self._bases = {ModelName(model): ModelName(config.base_of(model)) for model in agent.models}
        self._servers = {
            base: Server(
                base,
                settings=config.models[base],
                section=self._section,
                port=self._section.port_base + index,
                agent=agent.name,
                can_sleep=agent.gpu != CPU,
                patience=patience_of(agent.engine),
                event_bytes_max=agent.message_bytes_max // 2,
                devices=agent.devices,
                tensor_parallel=agent.tensor_parallel,
                adapters={
                    model: config.models[model].adapter
                    for model, own in self._bases.items()
                    if own == base != model
                },
            )
            for index, base in enumerate(dict.fromkeys(self._bases.values()))
        }
        self._kv_cache_tokens = dict.fromkeys(self._servers, self._section.kv_cache_tokens)
        self._tiers = Tiers(self.profiles, agent.host_memory_bytes)
        self._listener: Listener | None = None
        self._awake: Server | None = None
        # Starting, stopping, sleeping and waking happen one at a time.
        self._control = asyncio.Lock()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._stopping = False

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """The catalogue's profile where there is one, with the capacity and swap times measured here."""
        return tuple(self._profile(model) for model in self._bases)

    async def start(self, listener: Listener) -> None:
        """Load every model that fits, keep the first awake. Raises QlmError if one does not start."""
        self._listener = listener
        first, *others = self._servers.values()
        self._tiers = Tiers(self.profiles, self._host_memory_bytes)
        self._tiers.set(first.model, ModelTier.ASLEEP)
        try:
            if self._section.sleep_mode:
                for server in others:
                    if self._tiers.fits(server.model):
                        await self._start_server(server)
                        await server.sleep()
                        await server.wake()
                        await server.sleep()
                        self._tiers.set(server.model, ModelTier.ASLEEP)
            await self._start_server(first)
            if self._section.sleep_mode and others:
                await first.sleep()
                await first.wake()
        except ServerError:
            await self.stop()
            raise
        self._serve(first)
        self._spawn(self._keep_watch())

    async def stop(self) -> None:
        """End all processes. Idempotent."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await asyncio.gather(*(server.stop() for server in self._servers.values()))
        self._awake = None

    def submit(self, job: Payload, priority: int = 0) -> None:
        """Run a job of the awake model, or load its adapter and run it then."""
        self._servers[self._bases[job.model]].adapters.submit(job, priority)

    def evictable(self, job: Payload) -> bool:
        """Whether token ids continue it exactly."""
        return self._servers[self._bases[job.model]].connection.evictable(job)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Close a job's connection, which frees its memory within an iteration or two."""
        for server in self._servers.values():
            server.adapters.abort(id, attempt)

    def swap(self, model: ModelName) -> None:
        """Put the awake model to sleep and wake another, or restart where sleeping is not possible."""
        self._spawn(self._swap(self._servers[model]))

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """Nothing can be loaded while another model has the GPU; what sleeps is decided at swaps."""

    def kv_used_tokens(self) -> int:
        """Left to the agent's own count: the engine's gauge lags and freezes while it sleeps."""
        return 0

    # ------------------------------------------------------------------- models

    def _profile(self, model: ModelName) -> EngineProfile:
        server = self._servers[self._bases[model]]
        tokens = self._kv_cache_tokens[server.model] or _KV_CACHE_TOKENS_ASSUMED
        known = assumed_profile(
            server.model,
            self._gpu,
            max_num_seqs=self._section.max_num_seqs,
            kv_cache_tokens=tokens,
            tensor_parallel=self._tensor_parallel,
        )
        profile = replace(
            known,
            weights_bytes=server.weights_bytes() or known.weights_bytes,
            cold_s=server.cold_s or known.cold_s,
            sleep_s=server.sleep_s or known.sleep_s,
            wake_s=server.wake_s or known.wake_s,
            adapters_max=self._section.max_loras if server.adapters else 0,
            resume_share=_OFFLOADED_RESUME_SHARE
            if self._section.kv_offload_bytes
            else known.resume_share,
        )
        if model == server.model:
            return profile
        return profile.adapter(model, load_s=server.adapters.load_s or ADAPTER_LOAD_S)

    async def _start_server(self, server: Server) -> None:
        assert self._listener is not None
        await server.start(self._listener)
        if not self._section.kv_cache_tokens:
            known = self._kv_cache_tokens[server.model]
            self._kv_cache_tokens[server.model] = await server.kv_cache_tokens() or known

    def _serve(self, server: Server) -> None:
        assert self._listener is not None
        self._awake = server
        self._tiers.set(server.model, ModelTier.AWAKE)
        self._listener(EngineReady(server.model, self._tiers.as_tuple()))

    async def _swap(self, server: Server) -> None:
        assert self._listener is not None
        before = self._awake
        async with self._control:
            try:
                if before is not None and before is not server:
                    self._awake = None
                    await self._set_aside(before)
                for dropped in self._tiers.to_drop(server.model):
                    await self._servers[dropped].stop()
                    self._tiers.set(dropped, ModelTier.COLD)
                await self._raise(server)
            except Exception as error:  # whatever it is, the executor waits for an answer
                reason = _reason(error)
                log.error("vllm swap failed", extra={"model": server.model, "reason": reason})
                await server.stop()
                self._tiers.set(server.model, ModelTier.COLD)
                self._listener(SwapFailed(server.model, reason))
                self._listener(EngineDown(reason))
                await self._recover(before or server)
                return
            self._serve(server)

    async def _set_aside(self, server: Server) -> None:
        """Free the GPU of a model."""
        if self._section.sleep_mode and server.running:
            await server.sleep()
            self._tiers.set(server.model, ModelTier.ASLEEP)
        else:
            await server.stop()
            self._tiers.set(server.model, ModelTier.COLD)

    async def _raise(self, server: Server) -> None:
        """Bring a model to where it serves, from wherever it is."""
        # A process that was given up may yet live, as one that hangs does.
        given_up = self._tiers[server.model] is ModelTier.COLD
        if not given_up and await server.health() is not Health.ILL:
            if server is not self._awake:
                await server.wake()
            return
        await server.stop()
        await self._start_server(server)

    # ------------------------------------------------------------------- crashes

    async def _keep_watch(self) -> None:
        misses = dict.fromkeys(self._servers, 0)
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._control.locked():
                continue
            async with self._control:
                for server in self._servers.values():
                    try:
                        await self._look_at(server, misses)
                    except Exception:  # unwatched, the next crash would be for good
                        log.exception("vllm watch failed", extra={"model": server.model})

    async def _look_at(self, server: Server, misses: dict[ModelName, int]) -> None:
        """Check one process; counts its misses in a row."""
        cold = self._tiers[server.model] is ModelTier.COLD
        weight = 0 if cold else _WEIGHTS[await server.health()]
        misses[server.model] = misses[server.model] + weight if weight else 0
        if weight and (not server.running or misses[server.model] >= _MISSES_LOST):
            misses[server.model] = 0
            await self._lost(server)

    async def _lost(self, server: Server) -> None:
        """A process is gone: what ran on it is lost, and the awake one comes back."""
        assert self._listener is not None
        log.error("vllm died", extra={"model": server.model})
        self._tiers.set(server.model, ModelTier.COLD)
        server.adapters.lose_all()
        if server is not self._awake:
            await server.stop()
            return
        self._awake = None
        self._listener(EngineDown(f"{server.model}: the vLLM process died"))
        await self._recover(server)

    async def _recover(self, server: Server) -> None:
        """Bring a model back, with growing pauses, for as long as it takes."""
        pauses = Backoff(_RESTART_PAUSE_S_MAX, first_s=self._section.restart_backoff_s)
        while not self._stopping:
            try:
                await self._raise(server)
            except Exception as error:  # whatever it is, nobody else brings the engine back
                log.error("vllm restart failed", extra={"reason": _reason(error)})
                await server.stop()
                await asyncio.sleep(pauses.pause_s())
            else:
                self._serve(server)
                return

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ServerError) else unsaid(error)
