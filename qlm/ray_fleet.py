"""A fleet of agents on a Ray cluster: places them, asks how they stand, drains and removes them.

Each agent is a detached actor with a name, which Ray keeps alive without whoever started it. What is said here goes to Ray and
comes from it; what is to be done is decided in `qlm.ray_plan`, and an agent is run by `qlm.ray_agent`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlm.ray_agent import AgentActor
from qlm.ray_plan import Placement, changes
from qlm_core.config_rules import parse_address
from qlm_core.errors import ConfigError, QlmError, Unavailable

PREFIX = "qlm-agent-"
LEAST_VERSION = (2, 50)
INSTALL = "pip install 'qlm-serving[ray]'"
# Somebody who answers no question for this long has no place yet, or has lost it.
ANSWER_S = 3.0
# Of whom an agent is taken away, or placed anew, for that reason.
PATIENCE_S = 10.0
REACH_S = 5.0
POLL_S = 0.3
# Beyond what draining may take.
_STOP_S = 15.0
_GONE_S = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an agent stands.

    Attributes:
        state: waiting (it runs nowhere), starting, ready (it has not found solver and gateway), joined, failed or draining.
        address, node_id: of its node, "" while it waits.
        restarts: how often its process was started again, on this node or by placing it anew.
        why: what made it fail.
        fingerprint: `Placement.fingerprint` of what it was made from.
        stop_s_max: how long it may take to drain and end.
    """

    agent: str
    gpu: str = ""
    state: str = "waiting"
    address: str = ""
    node_id: str = ""
    restarts: int = 0
    why: str = ""
    fingerprint: str = ""
    stop_s_max: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is alive, and what it has in all."""

    node_id: str
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def countable(self) -> dict[str, float]:
        """What it has that agents ask for: no memory, and nothing that Ray makes up."""
        return {
            name: amount
            for name, amount in sorted(self.resources.items())
            if ":" not in name and "memory" not in name
        }

    def __str__(self) -> str:
        parts = [f"{name} {amount:g}" for name, amount in self.countable().items()]
        labels = self.labels.items()
        parts += [f"{name} {value}" for name, value in labels if name != "ray.io/node-id"]
        return f"{self.address} ({self.node_id[:8]}): {', '.join(parts) or 'nothing'}"


class RayFleet:
    """The agents in one namespace of a cluster; made by `connected`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        # Who could not be made has no name any more by which to ask why.
        self._made: dict[str, Any] = {}

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        return [
            Node(
                node_id=one["NodeID"],
                address=one["NodeManagerAddress"],
                resources=one["Resources"],
                labels=one["Labels"],
            )
            for one in self._ray.nodes()
            if one["Alive"]
        ]

    def free(self) -> str:
        """What no actor or task has taken, of all nodes together."""
        left = self._ray.available_resources()
        names = dict.fromkeys(name for node in self.nodes() for name in node.countable())
        return ", ".join(f"{name} {left.get(name, 0):g}" for name in names)

    def standings(self, *, patience_s: float = ANSWER_S) -> dict[str, Standing]:
        """All agents by name; who does not answer in time waits."""
        named = {name: self._actor(name) for name in self._names()}
        actors = self._made | {name: actor for name, actor in named.items() if actor is not None}
        asked = {actor.standing.remote(): name for name, actor in actors.items()}
        found = {name: Standing(agent=name) for name in sorted(actors)}
        errors = self._ray.exceptions
        for answer in self._answers(list(asked), patience_s):
            name = asked[answer]
            try:
                found[name] = _standing(self._ray.get(answer))
            except errors.ActorDiedError as error:
                why = str(error).strip().splitlines()[-1:]
                found[name] = Standing(agent=name, state="failed", why="".join(why))
            except errors.RayError:
                # It has lost its place, and is about to get another one.
                continue
        return found

    def place(self, wanted: Sequence[Placement]) -> None:
        """Have Ray place these agents, and again whenever one loses its place. Raises Unavailable where one is there already."""
        actor = self._ray.remote(AgentActor)
        for one in wanted:
            options = one.ask.options()
            named = actor.options(
                name=PREFIX + one.name, lifetime="detached", max_restarts=-1, **options
            )
            try:
                made = named.remote(one.name, one.gpu, one.text, one.fingerprint)
            except ValueError:
                raise Unavailable(
                    f"{one.name}: somebody else has placed it meanwhile. Run `qlm ray up` again, one at a time."
                ) from None
            self._made[one.name] = made

    def remove(self, standings: Collection[Standing]) -> None:
        """Let these agents drain, all at once, and remove them. Raises Unavailable where Ray does not let go of one."""
        actors = {one.agent: self._actor(one.agent) for one in standings}
        # Who has no place has nothing to drain, and would not answer.
        draining = [
            actor.stop.remote()
            for one in standings
            if one.state != "waiting" and (actor := actors[one.agent]) is not None
        ]
        longest_s = max((one.stop_s_max for one in standings), default=0.0)
        self._answers(draining, longest_s + _STOP_S)
        for actor in actors.values():
            if actor is not None:
                self._ray.kill(actor, no_restart=True)
        for name in actors:
            self._made.pop(name, None)
        self._until_gone(actors)

    def _until_gone(self, names: Collection[str]) -> None:
        deadline_s = time.monotonic() + _GONE_S
        while left := [name for name in self._names() if name in names]:
            if time.monotonic() > deadline_s:
                raise Unavailable(f"{', '.join(left)}: Ray does not end them. Try again.")
            time.sleep(POLL_S)

    def _names(self) -> list[str]:
        named = self._ray.util.list_named_actors()
        return [name.removeprefix(PREFIX) for name in named if name.startswith(PREFIX)]

    def _actor(self, name: str) -> Any:
        """None if it has gone by now."""
        try:
            return self._ray.get_actor(PREFIX + name)
        except ValueError:
            return None

    def _answers(self, asked: list[Any], timeout_s: float) -> list[Any]:
        if not asked:
            return []
        done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
        return list(done)


def _standing(told: Mapping[str, Any]) -> Standing:
    """From what an actor tells, which may be older or younger than this."""
    return Standing(**{key: told[key] for key in Standing.__slots__ if key in told})


def bring_up(fleet: RayFleet, wanted: Sequence[Placement], *, say: Say) -> None:
    """Place what is new, drain and remove what is no longer wanted, and both where an agent has changed. Raises Unavailable."""
    found = fleet.standings(patience_s=PATIENCE_S)
    prints = {
        name: one.fingerprint if one.state in ("starting", "ready", "joined") else None
        for name, one in found.items()
    }
    todo = changes({one.name: one.fingerprint for one in wanted}, prints)
    leaving = [found[name] for name in (*todo.remove, *todo.replace)]
    for words, names in (
        ("keeps", todo.keep),
        ("drains and removes", todo.remove),
        ("drains and places anew", todo.replace),
        ("places", todo.add),
    ):
        if names:
            say(f"{words}: {', '.join(names)}")
    fleet.remove(leaving)
    fleet.place([one for one in wanted if one.name in (*todo.replace, *todo.add)])


def until_joined(fleet: RayFleet, wanted: Collection[str], wait_s: float) -> dict[str, Standing]:
    """Wait until these agents have joined or failed, or the time is over; how all agents stand then."""
    deadline_s = time.monotonic() + wait_s
    while True:
        left_s = deadline_s - time.monotonic()
        found = fleet.standings(patience_s=min(ANSWER_S, max(left_s, POLL_S)))
        states = [found[name].state if name in found else "waiting" for name in wanted]
        if left_s <= 0 or all(state in ("joined", "failed") for state in states):
            return found
        time.sleep(POLL_S)


@contextlib.contextmanager
def connected(address: str, namespace: str) -> Iterator[RayFleet]:
    """The agents in a namespace of the cluster at an address: HOST:PORT, ray://HOST:PORT, or `auto` for this machine's.

    Meanwhile standard output is standard error: Ray tells there of nodes and workers, which is no part of any answer.

    Raises:
        QlmError: Ray is not installed, or too old.
        Unavailable: no cluster is there.
    """
    # Before it is loaded: nothing is reported to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise QlmError(f"Ray is not installed. Install it: {INSTALL}.") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise QlmError(
            f"Ray {ray.__version__} is older than {least}. Install a later one: {INSTALL}."
        )
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    _require_reachable(address)
    with contextlib.redirect_stdout(sys.stderr):
        _join(ray, address, namespace)
        try:
            yield RayFleet(ray)
        finally:
            ray.shutdown()


def _join(ray: Any, address: str, namespace: str) -> None:
    try:
        ray.init(
            address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[:1]
        raise Unavailable(
            f"no Ray cluster at {address}: {''.join(why)} Start one by `ray start --head`, or say by --address where it is."
        ) from None


def _require_reachable(address: str) -> None:
    """Ray itself would try for a minute and more."""
    if address == "auto":
        return
    try:
        at = parse_address(address.removeprefix("ray://"), "--address")
    except ConfigError:
        raise QlmError(
            f"--address: {address!r} is neither auto nor HOST:PORT nor ray://HOST:PORT."
        ) from None
    try:
        socket.create_connection((at[0].strip("[]"), at[1]), timeout=REACH_S).close()
    except OSError as error:
        raise Unavailable(
            f"no Ray cluster at {address}: {error.strerror or error}. Start one by `ray start --head`, or say by "
            "--address where it is."
        ) from None
