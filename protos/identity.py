"""Who a part is: its role and its name, and how a certificate, a file and a TLS handshake say so.

A certificate of a part has two alternative names. The URI `qlm://agent/a100-0` is what the one who is dialled reads; the
DNS name `a100-0.agent.qlm` is what the one who dials asks for, whatever the address. Hosts may move, and neither a
stolen agent's certificate nor another gateway's passes for the gateway that was meant.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote, unquote

from qlm_core.config import Config

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_URI = re.compile(r"qlm://(?P<role>[a-z]+)/(?P<name>[^/?#]+)")


class Role(StrEnum):
    """What a part is."""

    SOLVER = "solver"
    GATEWAY = "gateway"
    AGENT = "agent"


class Part(NamedTuple):
    """One process of a fleet."""

    role: Role
    name: str

    @property
    def uri(self) -> str:
        """What its certificate says that it is."""
        return f"qlm://{self.role}/{quote(self.name, safe='')}"

    @property
    def host(self) -> str:
        """The name under which it is asked for in a handshake. A name that no host can have is replaced by its digest."""
        label = self.name
        if not _LABEL.fullmatch(label):
            label = f"x{hashlib.sha256(self.name.encode()).hexdigest()[:40]}"
        return f"{label}.{self.role}.qlm"

    @property
    def file(self) -> str:
        """The beginning of the names of its files."""
        return str(self.role) if self == SOLVER else f"{self.role}-{quote(self.name, safe='')}"


SOLVER = Part(Role.SOLVER, "solver")


def part_of(uri: str) -> Part | None:
    """The part that a URI names; None for any other URI."""
    said = _URI.fullmatch(uri)
    if said is None or said["role"] not in tuple(Role):
        return None
    return Part(Role(said["role"]), unquote(said["name"]))


def parts_of(config: Config) -> list[Part]:
    """Every part of a configuration that has a certificate."""
    agents = [Part(Role.AGENT, agent.name) for agent in config.agents]
    return [SOLVER, Part(Role.GATEWAY, config.gateway.id), *agents]
