"""Which parts of a configuration cannot reach each other, and what nobody would serve or simulate.

A configuration says where parts listen and whom they dial. Hosts may each have a file that says little of the others, so
these are findings for people (`qlm config check`, `qlm doctor`), and no rules that would keep a part from starting.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from qlm_core.config_doors import WILDCARDS, is_loopback
from qlm_core.config_rules import parse_address
from qlm_core.errors import ConfigError
from qlm_core.fleet_template import ports_of
from qlm_core.profile_catalog import find_profile

if TYPE_CHECKING:
    from qlm_core.config import Config


def findings(config: Config, said: Collection[str]) -> Iterator[str]:
    """What is wrong, each as `path: problem. remedy`.

    Args:
        said: the sections that the file has; of others only the defaults are known.
    """
    listens = config.solver.listen
    known = "solver" in said or "host" in said or "port_base" in said
    dials = [("gateway.solver", config.gateway.solver)]
    dials += [(f"agents[{i}].solver", agent.solver) for i, agent in enumerate(config.agents)]
    for path, address in dials:
        if why := _lost(address, listens, known=known):
            yield (
                f"{path}: {address} does not lead to the solver, which listens on {listens} (solver.listen){why}. "
                "Leave it out, or make the two agree."
            )
    yield from _told(config)
    yield from dict.fromkeys(_without_profile(config))


def unserved(config: Config) -> list[str]:
    """The models that no agent has."""
    served = dict.fromkeys(model for agent in config.agents for model in agent.models)
    return [model for model in config.models if model not in served]


def _without_profile(config: Config) -> Iterator[str]:
    """What simulated agents are to be and no profile tells."""
    first: dict[tuple[str, str], str] = {}
    for agent in config.agents:
        for model in agent.models if agent.engine.kind == "sim" else ():
            first.setdefault((config.base_of(model), agent.gpu), agent.name)
    for (model, gpu), name in first.items():
        try:
            find_profile(model, gpu)
        except ConfigError as error:
            yield f"agents.{name}: {error}"


def shared_ports(config: Config, agents: Collection[int]) -> Iterator[str]:
    """The ports that several of these vllm agents would take if they ran on one machine, as `path: problem. remedy`."""
    taken: dict[int, int] = {}
    for index in agents:
        for port in ports_of(config, index):
            other = taken.setdefault(port, index)
            if other != index:
                yield (
                    f"agents[{index}].engine.vllm.port_base: port {port} is also agents[{other}]'s on this "
                    "machine. Give both agents the same `host`, or each its own port_base."
                )
                break


def _lost(dialled: str, listens: str, *, known: bool) -> str:
    """Why who dials one address does not come to a listener at another one; "" where it may."""
    to, to_port = _parsed(dialled)
    at, at_port = _parsed(listens)
    if is_loopback(dialled):
        if not is_loopback(listens) and at not in WILDCARDS:
            return ", not on this machine's own"
    elif is_loopback(listens):
        return " alone, where only its own machine reaches it" if known else ""
    elif not (_is_ip(to) and (at in WILDCARDS or _is_ip(at))):
        # What a name leads to, and through what, is not known here.
        return ""
    elif at not in WILDCARDS and to != at:
        return ", another host"
    if to_port != at_port and to_port and at_port:
        return ", another port"
    return ""


def _told(config: Config) -> Iterator[str]:
    """Whether agents are told an address of the gateway that leads to it."""
    section = config.gateway
    path = "gateway.advertise" if section.advertise else "gateway.agents_listen"
    address = section.advertise or section.agents_listen
    host, port = _parsed(address)
    if host in WILDCARDS:
        yield (
            f"{path}: agents are told to dial {address}, which is no machine's address. Set "
            "gateway.advertise to where they reach the gateway."
        )
    elif is_loopback(address) and not is_loopback(section.solver):
        far = [agent.name for agent in config.agents if not is_loopback(agent.solver)]
        if far:
            yield (
                f"{path}: agents are told to dial {address}, and {far[0]} dials the solver as from another "
                "machine. Set gateway.agents_listen or gateway.advertise to where agents reach the gateway."
            )
    listens_host, listens_port = _parsed(section.agents_listen)
    if (
        section.advertise
        and host == listens_host
        and port != listens_port
        and port
        and listens_port
    ):
        yield (
            f"gateway.advertise: {address} is this machine's, where gateway.agents_listen has port "
            f"{listens_port}. Make the ports agree."
        )


def _parsed(address: str) -> tuple[str, int]:
    host, port = parse_address(address, "")
    host = host.strip("[]")
    return ("127.0.0.1" if host == "localhost" else host), port


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
