"""An engine that is a running OpenAI-compatible server, which somebody else starts, stops and configures.

The server is watched from the beginning to the end, whether it runs already, comes later or goes away meanwhile: it is
up, or there is a trouble, and each change is told once. What waiting cannot mend is an error at the start.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec

from agents.engines.base import Listener
from agents.engines.connection import Connection, patience_of
from agents.engines.faults import unsaid
from agents.engines.lenient_json import NO_JSON
from agents.engines.requests import Abilities
from agents.streams import Backoff
from qlm_core.config import AgentConfig, Config
from qlm_core.errors import QlmError
from qlm_core.executor import EngineDown, EngineReady
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile

_PROBE_S = 1.0
# Probes in a row that fail before a server counts as down.
_PROBES_LOST = 3
_MODELS_PATH = "/v1/models"
_MODELS_NAMED_MAX = 5
_LEARN_S = 10.0
# Whose models are served by OpenAI itself, which refuses fields that it does not know.
_OPENAI_OWNERS = ("openai", "openai-internal", "system")


class _Model(msgspec.Struct):
    id: str
    owned_by: Any = ""
    max_model_len: Any = 0


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """Why a server is of no use.

    Attributes:
        key: what to look at in the configuration.
        text: the problem and the remedy.
        passing: whether it may go away by itself.
    """

    key: str
    text: str
    passing: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def assumed_profile(
    model: str,
    gpu: str,
    *,
    max_num_seqs: int,
    kv_cache_tokens: int,
    tensor_parallel: int | None = None,
) -> EngineProfile:
    """The catalogue's profile if there is one, else a plain 20 ms an iteration, with the given capacity."""
    try:
        known = find_profile(model, gpu, tensor_parallel=tensor_parallel)
    except QlmError:
        known = EngineProfile(
            model=model,
            gpu=gpu,
            iteration=IterationTime(
                base_ms=20.0, per_token_ms=0.05, per_sequence_ms=0.1, per_context_token_ms=0.0
            ),
            kv_cache_tokens=kv_cache_tokens,
            max_num_batched_tokens=max(2048, max_num_seqs),
            source="assumed; corrected online",
        )
    return replace(
        known,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(known.max_num_batched_tokens, max_num_seqs),
        kv_cache_tokens=max(kv_cache_tokens, known.block_tokens),
    )


class OpenAIEngine:
    """A server that somebody else runs, with one model and those of its adapters that the agent names."""

    def __init__(self, config: Config, agent: AgentConfig) -> None:
        section = agent.engine.openai
        self._model = ModelName(config.base_of(agent.models[0]))
        self._served = {
            ModelName(model): config.models[model].path or model for model in agent.models
        }
        self._health_path = section.health_path
        self._timeout_s = section.connect_timeout_s
        self._retry_s_max = agent.reconnect_s_max
        self._where = f"agents.{agent.name}.engine.openai"
        self._connection = Connection(
            # Clients of OpenAI's are used to write /v1 behind it.
            section.base_url.rstrip("/").removesuffix("/v1"),
            served=self._served,
            api_key=section.api_key.reveal(),
            connect_timeout_s=section.connect_timeout_s,
            patience=patience_of(agent.engine),
            event_bytes_max=agent.message_bytes_max // 2,
        )
        self._dialect = section.dialect
        profile = assumed_profile(
            self._model,
            agent.gpu,
            max_num_seqs=section.max_num_seqs,
            kv_cache_tokens=section.kv_cache_tokens,
        )
        # The server has its adapters loaded, and runs as many at once as it likes.
        self._profiles = tuple(
            profile if model == self._model else profile.adapter(model, load_s=0.0)
            for model in self._served
        )
        self._listener: Listener | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def profiles(self) -> tuple[EngineProfile, ...]:
        """The model's profile, with the configured capacity, for it and for each adapter."""
        return self._profiles

    async def start(self, listener: Listener) -> None:
        """Look whether the server is up, and watch it from then on.

        Raises:
            QlmError: it answers, and the configuration does not fit it.
        """
        self._listener = listener
        self._connection.open(listener)
        trouble = await self._trouble()
        if trouble is not None and not trouble.passing:
            await self._connection.close()
            raise QlmError(str(trouble))
        self._tell(trouble)
        self._watch = asyncio.create_task(self._keep_watch(trouble))

    async def stop(self) -> None:
        """Hang up; the server stays as it is."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._connection.close()

    def submit(self, job: Payload, priority: int = 0) -> None:  # noqa: ARG002
        """Run a job. Its priority is kept back: not every server has a use for it, and some refuse it."""
        self._connection.submit(job)

    def evictable(self, job: Payload) -> bool:
        """As the server's answers allow."""
        return self._connection.evictable(job)

    def abort(self, id: RequestId, attempt: int) -> None:
        """Close a job's connection, which frees it at the server."""
        self._connection.abort(id, attempt)

    def swap(self, model: ModelName) -> None:
        """There is one base only, so it is awake already."""
        assert model == self._model
        self._tell(None)

    def warm(self, models: tuple[ModelName, ...]) -> None:
        """There is nothing to warm."""

    def kv_used_tokens(self) -> int:
        """Unknown; the agent's own count is used."""
        return 0

    # ------------------------------------------------------------------- up or down

    def _tell(self, trouble: _Trouble | None) -> None:
        assert self._listener is not None
        if trouble is None:
            tiers = tuple((model, ModelTier.AWAKE) for model in self._served)
            self._listener(EngineReady(self._model, tiers))
        else:
            self._listener(EngineDown(str(trouble)))

    async def _keep_watch(self, trouble: _Trouble | None) -> None:
        """Tell when the server comes up, when it goes down, and when something else keeps it down."""
        while True:
            if trouble is None:
                trouble = await self._until_down()
                self._connection.lose_all()
            else:
                trouble = await self._until_other(trouble)
            self._tell(trouble)

    async def _until_down(self) -> _Trouble:
        lost = 0
        while True:
            await asyncio.sleep(_PROBE_S)
            trouble = await self._illness()
            lost = lost + 1 if trouble else 0
            if trouble and lost >= _PROBES_LOST:
                return trouble

    async def _until_other(self, before: _Trouble) -> _Trouble | None:
        """Try again, with growing pauses, until the server is up or has another trouble."""
        pauses = Backoff(self._retry_s_max)
        while True:
            await asyncio.sleep(pauses.pause_s())
            trouble = await self._trouble()
            if trouble is None or trouble.key != before.key:
                return trouble

    async def _trouble(self) -> _Trouble | None:
        """Why the server cannot be put into service; None if it can."""
        return await self._illness() or await self._misfit()

    async def _illness(self) -> _Trouble | None:
        """What the server's health says against it."""
        answer = await self._get(self._health_path)
        if isinstance(answer, _Trouble):
            return answer
        status, _ = answer
        if status < 400:
            return None
        if status in (404, 405):
            return _Trouble(
                key=f"{self._where}.health_path",
                text=f"{self._at(self._health_path)} answers HTTP {status}. Set this to a path "
                "that answers 200 while the server is well.",
            )
        return self._absent(f"HTTP {status} at {self._health_path}")

    async def _misfit(self) -> _Trouble | None:
        """What keeps a healthy server from serving our model. A server need not tell its models."""
        answer = await self._get(_MODELS_PATH)
        if isinstance(answer, _Trouble):
            return answer
        status, body = answer
        if status >= 500:
            return self._absent(f"HTTP {status} at {_MODELS_PATH}")
        try:
            models = _models.decode(body).data if status == 200 else None
        except NO_JSON:
            models = None
        await self._learn(models or [])
        names = [model.id for model in models or []]
        lacking = [model for model, name in self._served.items() if name not in names]
        if models is None or not lacking:
            return None
        known = ", ".join(names[:_MODELS_NAMED_MAX]) + (", ..." * (len(names) > _MODELS_NAMED_MAX))
        return _Trouble(
            key=f"models.{lacking[0]}.path",
            text=f"{self._connection.base_url} does not serve {self._served[lacking[0]]!r} "
            f"(it serves: {known or 'nothing'}). Set this to the server's name for the model.",
        )

    async def _learn(self, models: list[_Model]) -> None:
        """Find out what the server can do, from whose it says that its models are."""
        served = self._served[self._model]
        model = next((model for model in models if model.id == served), _Model(""))
        owner = model.owned_by
        dialect = self._dialect
        if dialect == "auto":
            dialect = "vllm" if owner == "vllm" else "openai" if owner in _OPENAI_OWNERS else "auto"
        connection = self._connection
        able = Abilities(
            ids=dialect == "vllm",
            running_counts=dialect != "openai",
            context_tokens=model.max_model_len if isinstance(model.max_model_len, int) else 0,
        )
        if able.ids and not connection.able.shapes:
            connection.able = able
            await connection.learn_shapes(self._model, timeout_s=_LEARN_S)
        elif not able.ids:
            connection.able = able

    async def _get(self, path: str) -> tuple[int, bytes] | _Trouble:
        """Status and body, or what is wrong whatever the path."""
        try:
            status, body = await self._connection.get(path, timeout_s=self._timeout_s)
        except TimeoutError:
            return self._absent(f"nothing within {self._timeout_s:g} s")
        except (OSError, aiohttp.ClientError) as error:
            return self._absent(unsaid(error))
        if status in (401, 403):
            return _Trouble(
                key=f"{self._where}.api_key",
                text=f"{self._at(path)} answers HTTP {status}. Set this to a key that the "
                "server accepts.",
            )
        return status, body

    def _absent(self, problem: str) -> _Trouble:
        return _Trouble(
            key=f"{self._where}.base_url",
            text=f"no server answers at {self._connection.base_url} ({problem}). It is tried "
            "again until one does; start it, or correct the address.",
            passing=True,
        )

    def _at(self, path: str) -> str:
        return self._connection.base_url + path
