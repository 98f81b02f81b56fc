"""What a fleet on Ray is to be: which agents Ray places, what each asks the cluster for, and what has to change.

Everything here is a function of the configuration and of what runs; Ray itself is `qlm.ray_fleet`'s affair. An agent gets a
configuration of its own, with what an agent reads and nothing else: so it is placed anew when that changes, and not when
another agent or the gateway does, and no key of clients and no other agent's secret goes to its node. `${NAME}` still
stands in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from qlm import config_file
from qlm_core.config import AgentConfig, Config
from qlm_core.config_doors import is_loopback, tenants
from qlm_core.errors import ConfigError
from qlm_core.fleet_template import ports_of

ACCELERATOR = "ray.io/accelerator-type"
# How Ray calls the GPUs that configurations name, by the names that their driver gives.
ACCELERATORS = {
    "a10": "in(A10,A10G)",
    "a40": "A40",
    "a100": "A100",
    "b200": "B200",
    "h100": "H100",
    "h200": "H200",
    "l4": "L4",
    "l40s": "L40S",
    "rtx4090": "GeForce-RTX-4090",
    "rtxpro6000": "RTX-PRO-6000",
    "t4": "T4",
    "v100": "V100",
}
# What an agent reads of a configuration beside its own section.
_SECTIONS = ("slo_classes", "default_slo_class", "auth", "tls", "insecure", "log")
# An agent takes little of a CPU; a server that it starts, one and more.
_AGENT_CPUS = 0.1
_SERVER_CPUS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What an agent takes of the node that it is placed on, and the labels that the node has to have."""

    cpus: float = _AGENT_CPUS
    gpus: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The same as options of an actor."""
        asked: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.resources:
            asked["resources"] = dict(self.resources)
        if self.labels:
            asked["label_selector"] = dict(self.labels)
        return asked

    def __str__(self) -> str:
        amounts = {"CPU": self.cpus, "GPU": float(self.gpus), **self.resources}
        parts = [f"{name} {amount:g}" for name, amount in amounts.items() if amount]
        return ", ".join(parts + [f"{label} {value}" for label, value in self.labels.items()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """An agent that Ray is to place: what it asks for, and its configuration as YAML text, `${NAME}` unexpanded."""

    name: str
    gpu: str
    ask: Ask
    text: str

    @property
    def fingerprint(self) -> str:
        """Another one if anything is different."""
        return sha256(f"{self.ask}\n{self.text}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be done with agents, by name: those of `remove` and `replace` drain, those of `replace` and `add` are placed."""

    keep: tuple[str, ...]
    replace: tuple[str, ...]
    add: tuple[str, ...]
    remove: tuple[str, ...]


def changes(wanted: Mapping[str, str], found: Mapping[str, str | None]) -> Changes:
    """What makes what was found what is wanted.

    Args:
        wanted: fingerprints by name.
        found: likewise; None of an agent that runs nowhere, waits for a place or is about to end.
    """
    return Changes(
        keep=tuple(name for name in wanted if found.get(name) == wanted[name]),
        replace=tuple(name for name in wanted if name in found and found[name] != wanted[name]),
        add=tuple(name for name in wanted if name not in found),
        remove=tuple(name for name in found if name not in wanted),
    )


def placements(config: Config) -> list[Placement]:
    """The agents that Ray places: those that no host is said to run.

    Raises:
        ConfigError: there are none, it is not known what one asks for, or two would take the same port.
    """
    agents = [agent for agent in config.agents if not agent.host]
    if not agents:
        raise ConfigError(
            "agents: each of them has a `host`, where `qlm agent --host` runs it, or there are none. Leave `host` "
            "out of those that Ray is to place."
        )
    _check_ports(config)
    return [
        Placement(
            name=agent.name, gpu=agent.gpu, ask=ask_of(config, agent), text=text_of(config, agent)
        )
        for agent in agents
    ]


def ask_of(config: Config, agent: AgentConfig) -> Ask:
    """What an agent asks for: what its engine needs, and what `ray.gpus` says, or else Ray's name of the GPU.

    Raises ConfigError where neither is known.
    """
    starts = agent.engine.kind == "vllm"
    gpus = agent.tensor_parallel if starts and agent.gpu != "cpu" else 0
    cpus = _SERVER_CPUS if starts else _AGENT_CPUS
    said = config.ray.gpus.get(agent.gpu)
    if said is not None:
        own = dict(said.resources)
        cpus = own.pop("CPU", cpus)
        return Ask(cpus=cpus, gpus=gpus, resources=own, labels=said.label_selector)
    if not gpus:
        # A simulated GPU, or one that somebody else uses, may be anywhere.
        return Ask(cpus=cpus)
    accelerator = ACCELERATORS.get(agent.gpu)
    if accelerator is None:
        known = ", ".join(ACCELERATORS)
        raise ConfigError(
            f"agents.{agent.name}.gpu: how Ray calls {agent.gpu!r} is not known; known are {known}. Say what its nodes "
            f"have, for example `ray: {{gpus: {{{agent.gpu}: {{label_selector: {{{ACCELERATOR}: NAME}}}}}}}}`."
        )
    return Ask(cpus=cpus, gpus=gpus, labels={ACCELERATOR: accelerator})


def text_of(config: Config, agent: AgentConfig) -> str:
    """The configuration of one agent. Raises ConfigError where it would be refused on its node."""
    full = config.to_mapping(redact=False)
    (own,) = (plain for plain in full["agents"] if plain["name"] == agent.name)
    data = {section: full[section] for section in _SECTIONS}
    data["models"] = {model: full["models"][model] for model in agent.models}
    # Ray hands out GPUs, and says which by CUDA_VISIBLE_DEVICES.
    data["agents"] = [own | {"devices": []}]
    # What has to agree with the agent's own numbers.
    data["solver"] = {"agent_lease_s": config.solver.agent_lease_s}
    data["gateway"] = {"limits": full["gateway"]["limits"]}
    if agent.metrics_listen and not is_loopback(agent.metrics_listen):
        keys = full["gateway"]["api_keys"]
        operators = [name for name, tenant in tenants(config).items() if tenant.operator]
        data["gateway"]["api_keys"] = {name: keys[name] for name in operators}
    text = config_file.dumped(data)
    config_file.parse(text, environ=None)
    return text


def check_reach(config: Config, addresses: Collection[str]) -> None:
    """Raise ConfigError if agents on nodes of these addresses would dial one that leads to their own machine.

    On one machine, whose nodes all have one address, loopback leads to the solver as well.
    """
    if len(dict.fromkeys(addresses)) < 2:
        return
    dialled = {
        f"agents[{index}].solver": agent.solver
        for index, agent in enumerate(config.agents)
        if not agent.host
    }
    gateway = "advertise" if config.gateway.advertise else "agents_listen"
    dialled[f"gateway.{gateway}"] = config.gateway.advertise or config.gateway.agents_listen
    for key, address in dialled.items():
        if is_loopback(address):
            raise ConfigError(
                f"{key}: {address} leads nowhere from the other machines of this Ray cluster. Set `host` to an address "
                "of the solver's and gateway's machine that they reach, or this key."
            )


def _check_ports(config: Config) -> None:
    taken: dict[int, int] = {}
    for index, agent in enumerate(config.agents):
        for port in () if agent.host else ports_of(config, index):
            other = taken.setdefault(port, index)
            if other != index:
                raise ConfigError(
                    f"agents[{index}].engine.vllm.port_base: port {port} is also agents[{other}]'s, and Ray may place "
                    "both on one machine. Give each its own, or make them `instances` of one entry."
                )
