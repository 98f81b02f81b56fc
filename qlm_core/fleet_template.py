"""The short form of a configuration: addresses from one place, agents from what they have in common, several from one entry.

`filled` turns what a user wrote into the full form, in which nothing is left to derive; `described` is the way back. Both
work on plain data before types are checked: what does not fit is passed on as it is, and refused by its type.

An address that is left out, or `auto`, follows from `host` and `port_base`. Who dials the solver then goes where it listens.
Metrics are served to this machine alone unless their address says otherwise, since beyond it they need an operator's key.
Of several instances on one machine each gets GPUs and ports of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qlm_core.errors import ConfigError

if TYPE_CHECKING:
    from qlm_core.config import Config

AUTO = "auto"
HOST = "127.0.0.1"
PORT_BASE = 7400
INSTANCES_MAX = 1_024

# Hosts that stand for every address of a machine.
WILDCARDS = ("0.0.0.0", "::", "[::]")  # noqa: S104

# How far behind `port_base` each part listens.
_LISTENERS = (
    ("gateway", "http_listen", 0),
    ("solver", "listen", 1),
    ("gateway", "grpc_listen", 2),
    ("gateway", "agents_listen", 3),
)
_SOLVER_METRICS = 91
_AGENT_METRICS = 92
_PORT_MOST = 65_535
_VLLM_PORTS = 8_100

# The agents of a configuration that names none.
AGENTS: tuple[dict[str, Any], ...] = (
    {
        "name": "a100-0",
        "gpu": "a100",
        "models": ["mistral-7b", "vicuna-13b"],
        "metrics_listen": AUTO,
    },
    {
        "name": "a100-1",
        "gpu": "a100",
        "models": ["mistral-7b", "vicuna-13b"],
        "metrics_listen": AUTO,
    },
    {"name": "a10-0", "gpu": "a10", "models": ["mistral-7b"], "metrics_listen": AUTO},
)

Data = dict[str, Any]


def filled(data: Any) -> Any:
    """A configuration in full, from what a user wrote."""
    if not isinstance(data, dict):
        return data
    host, base = data.get("host", HOST), data.get("port_base", PORT_BASE)
    if not (isinstance(host, str) and type(base) is int and 0 < base <= _PORT_MOST):
        return data
    # What all agents have is refused where it stands, before any of them is.
    full: Data = {"agent_defaults": {}} | data
    for section, key, offset in _LISTENERS:
        _fill(full, section, key, f"{_bracketed(host)}:{base + offset}")
    _fill(full, "solver", "metrics_listen", f"{HOST}:{base + _SOLVER_METRICS}")
    dialled = _dialled(full, host, base)
    _fill(full, "gateway", "solver", dialled)
    defaults = full["agent_defaults"]
    if isinstance(defaults, dict):
        agents = full.get("agents", list(AGENTS))
        _fill(full, "agent_defaults", "solver", dialled)
        if isinstance(agents, list):
            full["agents"] = _full_agents(full, agents, full["agent_defaults"], base)
    return full


def described(config: Config, *, redact: bool = True) -> Data:
    """The short form of a configuration: what follows from something else is `auto` or left out."""
    plain = config.to_mapping(redact=redact)
    host, base = _bracketed(config.host), config.port_base
    derived = [(section, key, f"{host}:{base + offset}") for section, key, offset in _LISTENERS]
    dialled = _dialled(plain, config.host, base)
    derived += [
        ("solver", "metrics_listen", f"{HOST}:{base + _SOLVER_METRICS}"),
        ("gateway", "solver", dialled),
        ("agent_defaults", "solver", dialled),
    ]
    for section, key, address in derived:
        if plain[section][key] == address:
            plain[section][key] = AUTO
    defaults = dict(plain["agent_defaults"])
    if config.agent_defaults.solver == dialled:
        defaults["solver"] = dialled
    plain["agents"] = [
        _short_agent(agent, defaults, f"{HOST}:{base + _AGENT_METRICS + index}")
        for index, agent in enumerate(plain["agents"])
    ]
    return plain


def check(config: Config) -> None:
    """Raise ConfigError for the first thing that cannot be filled in."""
    text = config.host
    if not text or text != text.strip() or (":" in text and text.count(":") < 2):
        raise ConfigError(f"host: {text!r} is no host. Give a name or an address without a port.")
    last = config.port_base + _AGENT_METRICS + len(config.agents)
    if not config.port_base > 0 or last > _PORT_MOST:
        raise ConfigError(
            f"port_base: {config.port_base} leaves no room for ports up to {last}. Give one from 1 "
            f"to {_PORT_MOST - _AGENT_METRICS - len(config.agents)}."
        )
    for index, agent in enumerate(config.agents):
        where = f"agents[{index}]"
        if not 1 <= agent.tensor_parallel <= INSTANCES_MAX:
            raise ConfigError(f"{where}.tensor_parallel: must be from 1 to {INSTANCES_MAX}.")
        if not 1 <= agent.instances <= INSTANCES_MAX:
            raise ConfigError(f"{where}.instances: must be from 1 to {INSTANCES_MAX}.")
        wanted = agent.instances * agent.tensor_parallel
        if agent.devices and len(agent.devices) != wanted:
            raise ConfigError(
                f"{where}.devices: {len(agent.devices)} GPUs, where instances and tensor_parallel need "
                f"{wanted}. Give so many, or leave them out where the agent has a host."
            )
        if agent.engine.kind != "vllm" and (agent.devices or agent.tensor_parallel > 1):
            raise ConfigError(
                f"{where}: devices and tensor_parallel are for engines that the agent starts. Leave "
                "them out, or set engine.kind: vllm."
            )
    _check_ports(config)


def ports_of(config: Config, agent: int) -> range:
    """The ports at which the servers of a vllm agent listen, by its place among the agents; empty for another."""
    one = config.agents[agent]
    if one.engine.kind != "vllm":
        return range(0)
    servers = len(dict.fromkeys(config.base_of(model) for model in one.models))
    return range(one.engine.vllm.port_base, one.engine.vllm.port_base + servers)


def _check_ports(config: Config) -> None:
    taken: dict[tuple[str, int], int] = {}
    for index, agent in enumerate(config.agents):
        for port in ports_of(config, index) if agent.host else ():
            other = taken.setdefault((agent.host, port), index)
            if other != index:
                raise ConfigError(
                    f"agents[{index}].engine.vllm.port_base: port {port} of host {agent.host} is also "
                    f"agents[{other}]'s. Leave port_base out, or give each its own."
                )


# ------------------------------------------------------------------ addresses


def _fill(data: Data, section: str, key: str, value: str) -> None:
    said = data.get(section, {})
    if isinstance(said, dict) and said.get(key, AUTO) == AUTO:
        data[section] = said | {key: value}


def _dialled(data: Data, host: str, base: int) -> str:
    """Where the solver is reached, by where it listens."""
    section = data.get("solver")
    listen = section.get("listen") if isinstance(section, dict) else None
    at, _, port = listen.rpartition(":") if isinstance(listen, str) else ("", "", "")
    if at in WILDCARDS:
        at = HOST if host in WILDCARDS else _bracketed(host)
    if at and port not in ("", "0"):
        return f"{at}:{port}"
    return f"{_bracketed(host)}:{base + 1}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


# ------------------------------------------------------------------ agents


class _Machine:
    """What the agents of one machine have taken of it."""

    def __init__(self) -> None:
        self.devices: dict[int, None] = {}
        self.ports: dict[int, None] = {}

    def free_devices(self, count: int) -> list[int]:
        found: list[int] = []
        device = 0
        while len(found) < count:
            if device not in self.devices:
                found.append(device)
                self.devices[device] = None
            device += 1
        return found

    def free_ports(self, first: int, count: int) -> int:
        """The first of so many ports in a row, from `first` on."""
        while any(port in self.ports for port in range(first, first + count)):
            first += 1
        self.ports |= dict.fromkeys(range(first, first + count))
        return first


def _full_agents(data: Data, agents: list[Any], defaults: Data, base: int) -> list[Any]:
    full: list[Any] = []
    places: list[tuple[Data, str, bool]] = []
    for agent in agents:
        if not isinstance(agent, dict):
            full.append(agent)
            continue
        merged = _merged(defaults, agent)
        instances = list(_instances(merged))
        host = merged.get("host", "")
        for number, one in enumerate(instances):
            full.append(one)
            if isinstance(host, str) and (host or len(instances) > 1):
                own_port = number == 0 and "port_base" in _section(agent, "engine", "vllm")
                places.append((one, host, own_port))
    for index, one in enumerate(full):
        if isinstance(one, dict) and one.get("metrics_listen") == AUTO:
            one["metrics_listen"] = f"{HOST}:{base + _AGENT_METRICS + index}"
    _place(data, places)
    return full


def _instances(agent: Data) -> Iterator[Data]:
    """The agents that an entry stands for."""
    count, name = agent.get("instances", 1), agent.get("name")
    width = agent.get("tensor_parallel", 1)
    devices = agent.get("devices", [])
    fits = type(count) is int and 1 < count <= INSTANCES_MAX and isinstance(name, str)
    if (
        not (fits and type(width) is int and 0 < width <= INSTANCES_MAX)
        or not isinstance(devices, list)
        or (devices and len(devices) != count * width)
    ):
        yield agent
    else:
        for number in range(count):
            own = devices[number * width : (number + 1) * width]
            listen = _shifted(agent.get("metrics_listen", ""), number)
            yield agent | {
                "name": f"{name}-{number}",
                "instances": 1,
                "devices": own,
                "metrics_listen": listen,
            }


def _shifted(listen: object, number: int) -> object:
    """The address of the next instance but so many: each has a port of its own."""
    host, _, port = listen.rpartition(":") if isinstance(listen, str) else ("", "", "")
    # Port 0 is any free one for each.
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and int(port)):
        return listen
    return f"{host}:{int(port) + number}"


def _place(data: Data, places: list[tuple[Data, str, bool]]) -> None:
    """Give GPUs and ports to the vllm agents of each machine that have none of their own."""
    machines: dict[str, _Machine] = {}
    pending: list[tuple[Data, _Machine, bool]] = []
    for agent, host, own_port in places:
        if _section(agent, "engine").get("kind") != "vllm":
            continue
        machine = machines.setdefault(host, _Machine())
        machine.devices |= dict.fromkeys(
            device for device in _list(agent.get("devices")) if type(device) is int
        )
        if own_port:
            first = _first_port(agent)
            machine.ports |= dict.fromkeys(range(first, first + _servers(data, agent)))
        pending.append((agent, machine, own_port))
    for agent, machine, own_port in pending:
        width = agent.get("tensor_parallel", 1)
        if not agent.get("devices") and agent.get("gpu") != "cpu" and type(width) is int:
            agent["devices"] = machine.free_devices(min(width, INSTANCES_MAX))
        if not own_port:
            first = machine.free_ports(_first_port(agent), _servers(data, agent))
            vllm = _section(agent, "engine", "vllm") | {"port_base": first}
            agent["engine"] = agent["engine"] | {"vllm": vllm}


def _first_port(agent: Data) -> int:
    port = _section(agent, "engine", "vllm").get("port_base", _VLLM_PORTS)
    return port if type(port) is int and 0 < port <= _PORT_MOST else _VLLM_PORTS


def _servers(data: Data, agent: Data) -> int:
    """How many servers the agent runs: one for each model that is not an adapter."""
    models = data.get("models")
    known = models if isinstance(models, dict) else {}
    names = [name for name in _list(agent.get("models")) if isinstance(name, str)]
    return sum(
        not (isinstance(known.get(name), dict) and known[name].get("base")) for name in names
    )


def _short_agent(agent: Data, defaults: Data, metrics: str) -> Data:
    """An agent by what it has beside the defaults; its GPUs and ports are always said."""
    short = {key: agent[key] for key in ("name", "gpu", "models")}
    short |= _difference(agent, defaults)
    if agent["metrics_listen"] == metrics:
        short["metrics_listen"] = AUTO
    if agent["devices"]:
        short["devices"] = agent["devices"]
    if agent["engine"]["kind"] == "vllm":
        port = {"vllm": {"port_base": agent["engine"]["vllm"]["port_base"]}}
        short["engine"] = _merged(port, short.get("engine", {}))
    return short


def _difference(value: Data, other: Data) -> Data:
    """What a mapping has otherwise than another one."""
    said: Data = {}
    for key, item in value.items():
        if key not in other:
            said[key] = item
        elif isinstance(item, dict) and isinstance(other[key], dict):
            if inner := _difference(item, other[key]):
                said[key] = inner
        elif item != other[key]:
            said[key] = item
    return said


def _merged(under: Data, over: Data) -> Data:
    """One mapping on top of another, all the way down."""
    result = dict(under)
    for key, item in over.items():
        below = result.get(key)
        if isinstance(item, dict) and isinstance(below, dict):
            result[key] = _merged(below, item)
        else:
            result[key] = item
    return result


def _section(data: Data, *path: str) -> Data:
    for step in path:
        inner = data.get(step)
        data = inner if isinstance(inner, dict) else {}
    return data


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
