"""What is well with a fleet and what is not: the configuration, this machine, and every part that can be reached from here.

Each finding says what was looked at, what was found and, where that is not well, what to do. Nothing is changed, and nothing is
asked that a client could not ask; of solver and agents it is the gateway that tells, besides what their ports speak.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from protos.speaking import SPOKEN, speaks
from qlm import calls, discovery, tls_files, trust
from qlm.client import AsyncClient
from qlm_core.config import AgentConfig, Config
from qlm_core.config_doors import is_loopback, open_doors
from qlm_core.config_reach import findings, unserved
from qlm_core.errors import QlmError

TIMEOUT_S = 5.0
DISK_FREE_BYTES_MIN = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Of one part: whether it is well, what was found, and what to do if it is not."""

    part: str
    well: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Where the gateway is asked, and how who asks proves who they are."""

    url: str
    grpc: str
    api_key: str
    ca: str


async def examine(config: Config, gateway: Gateway, said: Sequence[str]) -> AsyncIterator[Finding]:
    """Look at everything, the nearest first.

    Args:
        said: the sections that the configuration's file has.
    """
    for finding in _configured(config, said):
        yield finding
    for finding in _machine(config):
        yield finding
    async for finding in _http(gateway):
        yield finding
    view, finding = await _view(gateway)
    yield finding
    async for finding in _ports(config):
        yield finding
    if view is not None:
        for finding in _agents(config, view):
            yield finding


# ------------------------------------------------------------------ the file and the machine


def _configured(config: Config, said: Sequence[str]) -> Iterator[Finding]:
    agents = "1 agent" if len(config.agents) == 1 else f"{len(config.agents)} agents"
    yield Finding(part="configuration", well=True, found=f"{len(config.models)} models, {agents}")
    for problem in findings(config, said):
        what, _, remedy = problem.partition(". ")
        yield Finding(part="configuration", well=False, found=what, remedy=remedy)
    for model in unserved(config):
        yield Finding(
            part="configuration",
            well=False,
            found=f"no agent serves {model}, so that requests for it would wait",
            remedy="Add it to `models` of an agent, or remove it.",
        )
    for door in open_doors(config):
        yield Finding(
            part="configuration",
            well=False,
            found=f"{door.key} {door.address} asks nobody who they are",
            remedy=f"{door.remedy}, and remove `insecure: true`.",
        )
    try:
        missing = tls_files.missing(config)
    except QlmError as error:
        yield Finding(part="certificates", well=False, found=str(error))
        return
    for path in missing:
        yield Finding(
            part="certificates",
            well=False,
            found=f"{path} is not on this machine",
            remedy="Needed where its part runs; `qlm certs new` makes them.",
        )


def _machine(config: Config) -> Iterator[Finding]:
    if is_loopback(config.gateway.http_listen) and config.gateway.store.kind == "sqlite":
        yield _store(Path(config.gateway.store.path))
    here = socket.gethostname().partition(".")[0]
    agents = [
        agent
        for agent in config.agents
        if agent.engine.kind == "vllm" and agent.host in ("", here, socket.gethostname())
    ]
    if agents:
        yield from _engines(agents)


def _store(path: Path) -> Finding:
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{path}: {free / 1e9:.1f} GB of disk are free"
    well = free >= DISK_FREE_BYTES_MIN
    remedy = "" if well else "Make room, or set gateway.store.path."
    return Finding(part="store", well=well, found=found, remedy=remedy)


def _engines(agents: Sequence[AgentConfig]) -> Iterator[Finding]:
    for command in dict.fromkeys(agent.engine.vllm.command[0] for agent in agents):
        there = shutil.which(command) is not None
        yield Finding(
            part="engine",
            well=there,
            found=f"{command}: {'is on the PATH' if there else 'there is no such program here'}",
            remedy="" if there else "Install vLLM, or set engine.vllm.command.",
        )
    wanted = {device for agent in agents for device in agent.devices}
    known = {gpu.index for gpu in discovery.gpus()}
    if wanted:
        lost = sorted(wanted - known)
        yield Finding(
            part="engine",
            well=not lost,
            found=f"agents of this machine use GPUs {_listed(wanted)}; nvidia-smi shows {_listed(known)}",
            remedy="Correct `devices`, `instances` or `tensor_parallel`." if lost else "",
        )


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


# ------------------------------------------------------------------ the gateway


async def _http(gateway: Gateway) -> AsyncIterator[Finding]:
    part, url = "gateway, HTTP", gateway.url
    try:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=trust.https(gateway.ca))
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            status, health = await _got(session, f"{url}/health")
            ready, why = await _got(session, f"{url}/readyz")
    except aiohttp.ClientResponseError:
        yield _wrong(part, calls.speaks_grpc(url))
        return
    except aiohttp.ClientSSLError:
        yield _wrong(part, calls.untrusted(url))
        return
    except (aiohttp.ClientError, TimeoutError, OSError):
        yield _wrong(part, calls.no_gateway(url))
        return
    except QlmError as error:
        yield _wrong(part, error)
        return
    if status != 200 or "solver" not in health:
        yield Finding(
            part=part,
            well=False,
            found=f"{url}: what answers there is no gateway",
            remedy="Stop what uses the port, or move the fleet by port_base.",
        )
        return
    yield Finding(part=part, well=True, found=f"{url} answers")
    reason = _reason(why)
    yield Finding(
        part="gateway",
        well=ready == 200,
        found="requests are served" if ready == 200 else f"no request is served now: {reason}",
        remedy="" if ready == 200 else _REMEDIES.get(reason, "See its log."),
    )


_REMEDIES = {
    "no solver is connected": "Start `qlm solver`, and see that gateway.solver leads to it.",
    "no agent serves any model": "Start agents: `qlm agent --host NAME` or `--name NAME`.",
    "no engine of any agent is up": "See the logs of agents and of their engines (run/*.log).",
}


async def _got(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    async with session.get(url) as answer:
        try:
            data = msgspec.json.decode(await answer.read())
        except msgspec.DecodeError:
            data = None
        return answer.status, data if isinstance(data, dict) else {}


def _reason(said: dict[str, Any]) -> str:
    for key in ("reason", "status"):
        if isinstance(said.get(key), str):
            return str(said[key])
    error = said.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else "it does not say why"


async def _view(gateway: Gateway) -> tuple[dict[str, Any] | None, Finding]:
    part = "gateway, gRPC"
    try:
        async with AsyncClient(
            gateway.grpc, api_key=gateway.api_key, ca=gateway.ca, timeout_s=TIMEOUT_S
        ) as client:
            view = await client.queues()
    except QlmError as error:
        return None, _wrong(part, error)
    return view, Finding(part=part, well=True, found=f"{gateway.grpc} answers")


def _wrong(part: str, error: QlmError) -> Finding:
    what, _, remedy = str(error).partition(". ")
    return Finding(part=part, well=False, found=what.removesuffix("."), remedy=remedy)


# ------------------------------------------------------------------ solver and agents


async def _ports(config: Config) -> AsyncIterator[Finding]:
    """What the ports speak behind which agents and gateways look for their peers."""
    told = config.gateway.advertise or config.gateway.agents_listen
    dialled = {
        "solver": (config.gateway.solver, "gateway.solver", "Start `qlm solver` there"),
        "gateway, for agents": (told, "gateway.advertise", "Start `qlm gateway` there"),
    }
    for part, (address, key, start) in dialled.items():
        spoken = await speaks(address)
        found = f"{address} {SPOKEN[spoken]}"
        remedy = "" if spoken in ("grpc", "tls") else f"{start}, or correct {key}."
        yield Finding(part=part, well=not remedy, found=found, remedy=remedy)


def _agents(config: Config, view: dict[str, Any]) -> Iterator[Finding]:
    there = {agent["id"]: agent for agent in view.get("agents", ())}
    ready: dict[str, None] = {}
    for section in config.agents:
        agent = there.get(section.name)
        part = f"agent {section.name}"
        if agent is None or not agent["connected"]:
            start = f"--host {section.host}" if section.host else f"--name {section.name}"
            yield Finding(
                part=part,
                well=False,
                found="has not joined" if agent is None else "is away",
                remedy=f"Start it by `qlm agent {start}`, or see its log: it says whom it cannot reach.",
            )
        elif not agent["ready"]:
            yield Finding(
                part=part,
                well=False,
                found="its engine is down" if not agent["swapping_to"] else "swaps models",
                remedy=_engine_remedy(section),
            )
        else:
            ready |= dict.fromkeys(section.models)
            yield Finding(
                part=part, well=True, found=f"ready, {agent['awake_model'] or 'no model'} is awake"
            )
    for name in there.keys() - {section.name for section in config.agents}:
        yield Finding(
            part=f"agent {name}", well=True, found="has joined, and is not in this configuration"
        )


def _engine_remedy(section: AgentConfig) -> str:
    if section.engine.kind == "openai":
        return f"See that {section.engine.openai.base_url} answers; the agent's log says what it heard."
    return f"See the agent's log, and those of its servers, run/{section.name}-*.log."
