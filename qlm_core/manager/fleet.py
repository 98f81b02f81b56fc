"""The Manager's view of the fleet: of each agent its instance, its virtual queue and its window; of all, who serves what.

The virtual queue is the plan's order of groups. The window is what has been sent of it: references that the agent may
pull without asking. A request leaves the window when a gateway says that it was pulled or ended, or when the
plan takes it away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from qlm_core.grouping import RequestGroup
from qlm_core.messages import AgentHello, Fleet
from qlm_core.model import (
    GroupId,
    InstanceState,
    ModelName,
    ModelTier,
    QueuedGroup,
    RequestId,
)
from qlm_core.profile import EngineProfile

QueueKind = tuple[tuple[EngineProfile, ModelTier], ...]
"""What queues have in common that plan alike: profiles, and whether each model sleeps or is cold."""


class Window:
    """References that an agent may pull: request → group, with a count per group.

    Attributes:
        revoked: references that the agent holds but may not pull any more, until it is told so.
    """

    __slots__ = ("_counts", "_groups", "revoked")

    def __init__(self) -> None:
        self._groups: dict[RequestId, GroupId] = {}
        self._counts: dict[GroupId, int] = {}
        self.revoked: list[RequestId] = []

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[RequestId]:
        return iter(self._groups)

    def group_of(self, id: RequestId) -> GroupId | None:
        """The group under which a request was sent, None if it was not."""
        return self._groups.get(id)

    def sent_of(self, group: GroupId) -> int:
        """How many references of a group the agent has."""
        return self._counts.get(group, 0)

    def add(self, id: RequestId, group: GroupId) -> None:
        """A reference was sent."""
        self.discard(id)
        self._groups[id] = group
        self._counts[group] = self._counts.get(group, 0) + 1

    def revoke(self, id: RequestId) -> bool:
        """The agent is to forget a reference; say whether it has it."""
        if id not in self._groups:
            return False
        self.discard(id)
        self.revoked.append(id)
        return True

    def discard(self, id: RequestId) -> None:
        """The agent has forgotten a reference, or has pulled it."""
        group = self._groups.pop(id, None)
        if group is None:
            return
        left = self._counts[group] - 1
        if left:
            self._counts[group] = left
        else:
            del self._counts[group]

    def clear(self) -> None:
        """The agent has no window any more."""
        self._groups.clear()
        self._counts.clear()
        self.revoked.clear()


class Agent:
    """One serving instance as the Manager knows it.

    Attributes:
        profiles: what it can serve; equal ones are the same object for all agents.
        state: its last report.
        connected: whether its session is open.
        epoch_ahead: how far the epochs sent to it are ahead of the plan's: it may know later ones of an earlier solver.
        queue: its virtual queue, group ids in order.
        window: references sent and not yet pulled or taken back, with their group.
        held: requests that it has pulled.
        held_back: groups of its queue of which it has no references for now.
        kind: what it has in common with agents that plan alike; the same object for all of them.
        sent_order: the order of groups it was last sent; None if nothing was sent in this session.
        sent_wakes: what it was last told of `wakes`.
        swap_started_s: when the swap under way was first reported.
        wakes: the base that it is to wake as soon as nothing is left to do for the one that is awake; None for none.
    """

    __slots__ = (
        "connected",
        "epoch_ahead",
        "gpu",
        "held",
        "held_back",
        "id",
        "kind",
        "profiles",
        "queue",
        "reported_s",
        "sent_order",
        "sent_wakes",
        "state",
        "swap_started_s",
        "wakes",
        "window",
    )

    def __init__(self, hello: AgentHello, *, now_s: float):
        self.id = hello.agent
        self.epoch_ahead = 0
        self.queue: list[GroupId] = []
        self.window = Window()
        self.held: dict[RequestId, None] = {}
        self.held_back: dict[GroupId, None] = {}
        self.sent_order: tuple[QueuedGroup, ...] | None = None
        self.sent_wakes: ModelName | None = None
        self.wakes: ModelName | None = None
        self.swap_started_s = now_s
        self.rejoin(hello, now_s=now_s)

    def rejoin(self, hello: AgentHello, *, now_s: float) -> None:
        """The agent opened a new session; it has no window until it is sent one."""
        self.gpu = hello.gpu
        self.profiles: dict[ModelName, EngineProfile] = {
            ModelName(profile.model): _shared(profile) for profile in hello.profiles
        }
        self.connected = True
        self.window.clear()
        self.sent_order = self.sent_wakes = self.wakes = None
        self.state = InstanceState(ready=False, awake_model=None)
        self.report(hello.state, now_s=now_s)

    def report(self, state: InstanceState, *, now_s: float) -> bool:
        """Take a report; say whether it changes what can be planned."""
        before = self.state
        if state.swapping_to is not None and state.swapping_to != before.swapping_to:
            self.swap_started_s = now_s
        self.state = state
        self.reported_s = now_s
        if self.wakes in (state.awake_model, state.swapping_to):
            self.wakes = None
        if state.tiers != before.tiers or not before.tiers:
            self.kind = _kind(tuple(self.profiles.values()), state.tiers)
        return (
            before.ready != state.ready
            or before.awake_model != state.awake_model
            or before.draining != state.draining
        )

    @property
    def usable(self) -> bool:
        """Whether groups may be placed here."""
        return not self.state.draining

    @property
    def uncomputed(self) -> int:
        """Requests held whose first token was not out at the last report."""
        begun = sum(1 for one in self.state.running if one.produced_tokens)
        return max(0, len(self.held) - begun)

    @property
    def model(self) -> ModelName | None:
        """The model that is awake, or becoming so, or to be woken next. It is no adapter."""
        return self.wakes or self.state.swapping_to or self.state.awake_model

    def base(self, model: ModelName) -> ModelName:
        """What has to be awake here for a model to be served."""
        profile = self.profiles.get(model)
        return model if profile is None else ModelName(profile.base)

    def serves(self, model: ModelName) -> bool:
        """Whether a model is served as things are, or will be once the swap under way has ended."""
        return self.model is not None and self.model == self.base(model)

    def beside(self, model: ModelName) -> list[ModelName]:
        """The models that are served together with one, itself included."""
        base = self.base(model)
        return [one for one, profile in self.profiles.items() if profile.base == base]

    def tier(self, model: ModelName) -> ModelTier:
        """How far `model` is from serving here."""
        for name, tier in self.state.tiers:
            if name == model:
                return tier
        return ModelTier.COLD


class Roster:
    """Who can be planned on: what follows from the fleet alone, and holds until an agent joins, leaves or drains.

    Attributes:
        agents: the usable ones, in stable order.
        engines: for each model that they serve, the profiles of its instances, and who has each, in that order.
    """

    __slots__ = ("agents", "engines")

    def __init__(self, agents: Iterable[Agent]):
        self.agents = [agent for agent in agents if agent.usable]
        # Equal profiles are one object, which spares hashing them.
        found: dict[ModelName, dict[int, tuple[EngineProfile, list[Agent]]]] = {}
        for agent in self.agents:
            for model, profile in agent.profiles.items():
                _, alike = found.setdefault(model, {}).setdefault(id(profile), (profile, []))
                alike.append(agent)
        self.engines = {model: tuple(alike.values()) for model, alike in found.items()}

    def can_take(self, group: RequestGroup) -> bool:
        """Whether somebody serves what waits of a group."""
        return group.waiting > 0 and group.key.model in self.engines


def offered(agents: Collection[Agent]) -> Fleet:
    """What gateways are told of the fleet: the models there are agents for, and whether any engine is up."""
    models = sorted({model: None for agent in agents for model in agent.profiles})
    return Fleet(tuple(models), up=any(agent.state.ready for agent in agents))


@lru_cache(maxsize=1024)
def _shared(profile: EngineProfile) -> EngineProfile:
    # Every agent brings its own copy; what is learned and computed by profile is to be shared by all that are alike.
    return profile


@lru_cache(maxsize=1024)
def _kind(
    profiles: tuple[EngineProfile, ...], tiers: tuple[tuple[ModelName, ModelTier], ...]
) -> QueueKind:
    # Whether a model is awake or asleep is told by `Agent.model`, not by the kind.
    of = dict(tiers)
    return tuple(
        (
            profile,
            ModelTier.COLD
            if of.get(ModelName(profile.model), ModelTier.COLD) is ModelTier.COLD
            else ModelTier.ASLEEP,
        )
        for profile in profiles
    )
