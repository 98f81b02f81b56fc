"""The rules of a configuration's doors: keys that are keys, certificates that are whole, and no door open by mistake.

A door is an address that a part listens on. Beyond loopback each must ask who comes in, unless `insecure: true` says that
this is meant; that is checked where every configuration is, so an open door is found by `qlm config check` and by
whoever would have opened it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from qlm_core.config_rules import parse_address
from qlm_core.errors import ConfigError
from qlm_core.secret import Secret

if TYPE_CHECKING:
    from qlm_core.config import Config
    from qlm_core.config_access import TenantConfig

# Where a path of `tls` has it, the file name of the part that reads it.
PART = "{part}"
# The class of requests with explicit targets, which a tenant's `classes` may name as well.
EXPLICIT = "explicit"

# Hosts that stand for every address of a machine, without brackets.
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._~%-]+(:[0-9]{1,5})?|[a-z]+://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)


class Door(NamedTuple):
    """An address that a part listens on.

    Attributes:
        key: where the configuration has it.
        shut: whether who comes in has to show something.
        remedy: what would shut it.
    """

    key: str
    address: str
    shut: bool
    remedy: str


def check_doors(config: Config) -> None:
    """Raise ConfigError for the first rule that is broken."""
    for path, key in _keys(config):
        _check_key(path, key)
    _check_tenants(config)
    if config.auth.secret:
        _check_key("auth.secret", config.auth.secret)
    _check_tls(config)
    _check_apart(config)
    _check_advertised(config)
    _check_origins(config)
    if not config.insecure:
        for door in open_doors(config):
            raise ConfigError(
                f"{door.key}: {door.address} can be reached from other machines, and nobody has to "
                f"show who they are. {door.remedy}, or listen on 127.0.0.1; `insecure: true` leaves "
                "it open."
            )


def doors(config: Config) -> Iterator[Door]:
    """Every address that the parts of a configuration listen on."""
    parts = bool(config.auth.secret) or bool(config.tls.ca)
    keys = bool(config.gateway.api_keys)
    operated = any(tenant.operator for tenant in tenants(config).values())
    prove, show = "Set auth.secret or tls", "Set gateway.api_keys"
    operate = "Set gateway.api_keys with an `operator: true`"
    yield Door("solver.listen", config.solver.listen, parts, prove)
    yield Door("solver.metrics_listen", config.solver.metrics_listen, operated, operate)
    yield Door("gateway.http_listen", config.gateway.http_listen, keys, show)
    yield Door("gateway.grpc_listen", config.gateway.grpc_listen, keys, show)
    yield Door("gateway.agents_listen", config.gateway.agents_listen, parts, prove)
    for index, agent in enumerate(config.agents):
        key = f"agents[{index}].metrics_listen"
        yield Door(key, agent.metrics_listen, operated, operate)


def open_doors(config: Config) -> Iterator[Door]:
    """Those of them that other machines reach and that ask nothing."""
    for door in doors(config):
        if door.address and not door.shut and not is_loopback(door.address):
            yield door


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a host:port; of a name other than localhost nobody knows."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tenants(config: Config) -> dict[str, TenantConfig]:
    """The tenants that have names; plain keys have none."""
    keys = config.gateway.api_keys
    return keys if isinstance(keys, dict) else {}


def _keys(config: Config) -> Iterator[tuple[str, Secret]]:
    keys = config.gateway.api_keys
    if isinstance(keys, dict):
        for name, tenant in keys.items():
            yield f"gateway.api_keys.{name}.key", tenant.key
    else:
        for index, key in enumerate(keys):
            yield f"gateway.api_keys[{index}]", key
    for index, agent in enumerate(config.agents):
        if agent.engine.openai.api_key:
            yield f"agents[{index}].engine.openai.api_key", agent.engine.openai.api_key


def _check_key(path: str, key: Secret) -> None:
    text = key.reveal()
    # A variable that is set to nothing would otherwise be a key that everybody knows.
    if not text.strip():
        raise ConfigError(f"{path}: empty. Give a key, or remove it to let everybody in.")
    if text != text.strip() or not (text.isascii() and text.isprintable()):
        raise ConfigError(
            f"{path}: has characters that no header carries, or blanks around it. Use printable ASCII."
        )


def _check_tenants(config: Config) -> None:
    first: dict[str, str] = {}
    for path, key in _keys(config):
        if path.startswith("gateway."):
            other = first.setdefault(key.reveal(), path)
            if other != path:
                raise ConfigError(f"{path}: the same as {other}. Give each tenant its own key.")
    for name, tenant in tenants(config).items():
        where = f"gateway.api_keys.{name}"
        if not _TENANT.fullmatch(name):
            raise ConfigError(
                f"{where}: no name for a tenant. Use at most 64 letters, digits, dots, dashes and "
                "underscores."
            )
        for model in tenant.models:
            if model not in config.models:
                known = ", ".join(config.models)
                raise ConfigError(f"{where}.models: {model!r} is not in `models` ({known}).")
        for slo_class in tenant.classes:
            if slo_class not in config.slo_classes and slo_class != EXPLICIT:
                known = ", ".join((*config.slo_classes, EXPLICIT))
                raise ConfigError(
                    f"{where}.classes: {slo_class!r} is no class. Use some of {known}."
                )


def _check_tls(config: Config) -> None:
    tls = config.tls
    given = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
    for name, path in given.items():
        if not path and any((*given.values(), tls.revoked)):
            raise ConfigError(f"tls.{name}: missing. Give ca, cert and key, or none of them.")
    section = config.gateway.tls
    for name, path, other in (
        ("cert", section.cert, section.key),
        ("key", section.key, section.cert),
    ):
        if other and not path:
            raise ConfigError(f"gateway.tls.{name}: missing. Give cert and key, or none of them.")


def _check_apart(config: Config) -> None:
    # Parts on different hosts may have the same address; the listeners of one part may not.
    taken: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for door in doors(config):
        if not door.address:
            continue
        host, port = parse_address(door.address, door.key)
        host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        others = taken.setdefault((door.key.rpartition(".")[0], port), [])
        for other, key in others:
            if port and (host == other or any(one in WILDCARDS for one in (host, other))):
                raise ConfigError(
                    f"{door.key}: {door.address} is also {key}, whose callers are others. Use "
                    "another port."
                )
        others.append((host, door.key))


def _check_advertised(config: Config) -> None:
    # Before agents had a listener of their own, this named the clients'.
    told, clients = config.gateway.advertise, config.gateway.grpc_listen
    port = parse_address(told, "gateway.advertise")[1] if told else 0
    agents = parse_address(config.gateway.agents_listen, "gateway.agents_listen")[1]
    if port and port == parse_address(clients, "gateway.grpc_listen")[1] != agents:
        raise ConfigError(
            f"gateway.advertise: {told} leads to grpc_listen, where clients are served. Give the "
            "address at which agents reach agents_listen."
        )


def _check_origins(config: Config) -> None:
    for index, origin in enumerate(config.gateway.cors_origins):
        # As browsers serialize it; extensions and desktop clients have schemes of their own.
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"gateway.cors_origins[{index}]: {origin!r} is no origin. Write scheme and host, and "
                'the port if there is one, such as https://chat.example.com, or "*" for all.'
            )
