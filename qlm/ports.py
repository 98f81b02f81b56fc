"""Listening addresses: whether they are free, and free ones for a fleet of its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from qlm_core.config import Config
from qlm_core.config_rules import parse_address
from qlm_core.errors import ConfigError


def listeners(config: Config) -> dict[str, str]:
    """Every address that a whole fleet on one machine listens on, by its key in the configuration."""
    addresses = {
        "solver.listen": config.solver.listen,
        "solver.metrics_listen": config.solver.metrics_listen,
        "gateway.http_listen": config.gateway.http_listen,
        "gateway.grpc_listen": config.gateway.grpc_listen,
        "gateway.agents_listen": config.gateway.agents_listen,
    }
    addresses |= listeners_of_agents(config, [agent.name for agent in config.agents])
    return {key: address for key, address in addresses.items() if address}


def listeners_of_agents(config: Config, names: Sequence[str]) -> dict[str, str]:
    """Every address that these agents listen on, likewise."""
    listens = {f"agents.{name}.metrics_listen": config.agent(name).metrics_listen for name in names}
    return {key: address for key, address in listens.items() if address}


def require_free(addresses: Mapping[str, str]) -> None:
    """Raise ConfigError for the first address that cannot be listened on.

    gRPC would share a port with another process in silence, so this is asked beforehand.
    """
    taken: dict[str, str] = {}
    for key, address in addresses.items():
        host, port = parse_address(address, key)
        if port and address in taken:
            raise ConfigError(f"{key}: {address} is also {taken[address]}. Use another port.")
        taken[address] = key
        family = socket.AF_INET6 if ":" in host.strip("[]") else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), port))
            except OSError as error:
                raise ConfigError(
                    f"{key}: cannot listen on {address}: {error.strerror}. "
                    "Stop what uses it, or set another address; `port_base` moves all of them."
                ) from None


def free_addresses(count: int) -> list[str]:
    """So many loopback addresses that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    finally:
        for probe in probes:
            probe.close()
