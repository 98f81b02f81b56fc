"""What a machine has that a fleet could be made of: GPUs, models in the cache of the Hugging Face hub, model servers that run.

Nothing is loaded or started; what cannot be found out is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

SMI_TIMEOUT_S = 15.0
SERVER_TIMEOUT_S = 1.0
# Where model servers listen unless told otherwise: vLLM, llama.cpp, SGLang, Ollama, LM Studio.
SERVER_PORTS = (8000, 8001, 8080, 30_000, 11_434, 1_234)
MIB = 1 << 20
ANSWER_BYTES_MAX = 1 << 20

# Kinds of GPU that have profiles, by what is in the name that the driver gives.
_KINDS = (
    ("rtx pro 6000", "rtxpro6000"),
    ("rtx 4090", "rtx4090"),
    ("h100", "h100"),
    ("a100", "a100"),
    ("a40", "a40"),
    ("a10", "a10"),
)
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_GENERATES = ("ForCausalLM", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU of this machine. `kind` is the name of its profiles, or its own in short."""

    index: int
    name: str
    memory_bytes: int

    @property
    def kind(self) -> str:
        """What a configuration calls such a GPU."""
        lower = self.name.lower()
        known = next((kind for part, kind in _KINDS if part in lower), None)
        plain = re.sub(r"nvidia|geforce|[^a-z0-9]+", "", lower)
        return known or plain or "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on disk. `path` is what an engine loads; 0 bytes or tokens are not known."""

    path: str
    weights_bytes: int = 0
    max_model_len: int = 0

    @property
    def name(self) -> str:
        """What clients may call it."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.path.rstrip("/").rpartition("/")[2].lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An OpenAI-compatible server that answers, and the models that it lists."""

    url: str
    models: tuple[str, ...]


def gpus() -> list[Gpu]:
    """The GPUs that the driver of NVIDIA tells of."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(  # noqa: S603 - found on the PATH, with fixed arguments
            asked, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return gpus_of(said)


def gpus_of(said: str) -> list[Gpu]:
    """The GPUs in lines of `index, name, MiB`; other lines are left out."""
    found = []
    for line in said.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[0].isdecimal() and parts[2].isdecimal():
            memory = int(parts[2]) * MIB
            found.append(Gpu(index=int(parts[0]), name=parts[1], memory_bytes=memory))
    return found


def cache_of(environ: Mapping[str, str]) -> Path:
    """Where the hub's models are kept."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(home) / "hub"


def cached_models(cache: Path) -> list[Model]:
    """The models in the hub's cache that generate text and have their weights."""
    found = []
    for folder in sorted(cache.glob("models--*")):
        snapshots = sorted((folder / "snapshots").glob("*"), key=os.path.getmtime)
        if not snapshots:
            continue
        model = model_of(snapshots[-1], "/".join(folder.name.split("--")[1:]))
        if model is not None and model.weights_bytes:
            found.append(model)
    return found


def model_of(folder: Path, path: str) -> Model | None:
    """The model in a folder that an engine loads by `path`; None if there is none that generates text."""
    try:
        said: Any = json.loads((folder / "config.json").read_bytes())
        kinds = said.get("architectures") or []
        if not any(str(kind).endswith(_GENERATES) for kind in kinds):
            return None
        inner = said.get("text_config")
        length = said.get("max_position_embeddings") or (
            inner.get("max_position_embeddings") if isinstance(inner, dict) else 0
        )
        weights = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _WEIGHTS)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    known = length if isinstance(length, int) and length > 0 else 0
    return Model(path=path, weights_bytes=weights, max_model_len=known)


async def servers(ports: Sequence[int] = SERVER_PORTS) -> list[Server]:
    """The model servers of this machine that answer at these ports."""
    timeout = aiohttp.ClientTimeout(total=SERVER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        found = await asyncio.gather(
            *(_server(session, f"http://127.0.0.1:{port}") for port in ports)
        )
    return [server for server in found if server is not None]


async def _server(session: aiohttp.ClientSession, url: str) -> Server | None:
    try:
        async with session.get(f"{url}/v1/models") as answer:
            data = json.loads(await answer.content.read(ANSWER_BYTES_MAX))
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
        return None
    listed = data.get("data") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        return None
    # A gateway of QLM is no engine for another one.
    if any(isinstance(one, dict) and one.get("owned_by") == "qlm" for one in listed):
        return None
    names = tuple(str(one["id"]) for one in listed if isinstance(one, dict) and "id" in one)
    return Server(url=url, models=names) if names else None
