"""The models of one engine: which of them it serves as it is, what a swap takes, and which are passed over for now.

What is awake is a base, and with it every LoRA adapter built on it: requests of all of them share one batch, in which
an engine runs a limited number of different adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from math import inf

from qlm_core.executor.batch import Batch, InFlight
from qlm_core.executor.events import EngineReady, Warm
from qlm_core.model import ModelName, ModelTier, QueuedGroup
from qlm_core.profile import EngineProfile


class Models:
    """What an engine can serve, and how far each model is from being served.

    Attributes:
        awake: the base that is awake; None while the engine is down.
        swapping_to: the base that the last swap was for.
        tiers: as the engine said last.
        passed_over: models whose groups wait, and until when.
        wanted: the base to have awake when nothing waits; None for whatever is.
    """

    def __init__(self, profiles: Iterable[EngineProfile]) -> None:
        self._profiles = {ModelName(profile.model): profile for profile in profiles}
        self.awake: ModelName | None = None
        self.swapping_to: ModelName | None = None
        self.tiers: tuple[tuple[ModelName, ModelTier], ...] = ()
        self.passed_over: dict[ModelName, float] = {}
        self.wanted: ModelName | None = None
        self._warm: tuple[ModelName, ...] = ()

    def base(self, model: ModelName) -> ModelName:
        """What has to be awake for a model to be served."""
        profile = self._profiles.get(model)
        return model if profile is None else ModelName(profile.base)

    def is_adapter(self, model: ModelName) -> bool:
        """Whether a model is built on another."""
        return self.base(model) != model

    def serves(self, model: ModelName) -> bool:
        """Whether requests of a model run as things are, without a swap."""
        return self.awake is not None and self.base(model) == self.awake

    def starts(self, model: ModelName) -> bool:
        """Whether they should be put onto the engine now."""
        return self.serves(model) and model not in self.passed_over

    @property
    def turns_to(self) -> ModelName | None:
        """The base to wake now that nothing waits; None where it is awake, is not here, or cannot be made to serve."""
        wanted = self.wanted
        if wanted not in self._profiles or self.serves(wanted) or wanted in self.passed_over:
            return None
        return wanted

    def swap_s(self, model: ModelName) -> float:
        """Seconds from an empty batch until a model is served."""
        profile = self._profiles[model]
        if self.serves(model):
            return profile.load_s
        asleep = dict(self.tiers).get(model) is ModelTier.ASLEEP
        return profile.sleep_s + (profile.wake_s if asleep else profile.cold_s) + profile.load_s

    def back_s(self, model: ModelName) -> float:
        """Seconds from a model that is awake to what is awake now."""
        if self.awake is None or self.serves(model):
            return 0.0
        return self._profiles[model].sleep_s + self._profiles[self.awake].wake_s

    def apart(self, base: ModelName | None) -> list[ModelName]:
        """Models that are not served while a base is awake."""
        return [model for model in self._profiles if self.base(model) != base]

    def ready(self, event: EngineReady) -> EngineProfile:
        """The engine has a base awake; its profile."""
        self.awake, self.tiers = event.awake, event.tiers
        for model in self._on(event.awake):
            self.passed_over.pop(model, None)
        return self._profiles[event.awake]

    def failed(self, model: ModelName, until_s: float) -> None:
        """A model could not be made to serve: it is passed over, and whatever is built on it."""
        self.passed_over.update(dict.fromkeys(self._on(model), until_s))

    def pass_over_unknown(self, order: Iterable[QueuedGroup]) -> None:
        """What this engine lacks is passed over for good."""
        for group in order:
            if group.model not in self._profiles:
                self.passed_over[group.model] = inf

    def try_again(self, now_s: float) -> None:
        """Pass nothing over for longer than it was said."""
        for model in [one for one, until_s in self.passed_over.items() if until_s <= now_s]:
            del self.passed_over[model]

    def hints(self, order: Iterable[QueuedGroup]) -> list[Warm]:
        """What to tell the engine of the bases that come next, in order; nothing if it knows."""
        bases: dict[ModelName, None] = {}
        for group in order:
            if group.model in self._profiles and not self.serves(group.model):
                bases[self.base(group.model)] = None
        if tuple(bases) == self._warm:
            return []
        self._warm = tuple(bases)
        return [Warm(self._warm)]

    def places(self, batch: Batch) -> Places:
        """The places for models in a batch as it is now."""
        if self.awake is None:
            return Places({}, 0)
        limit = self._profiles[self.awake].adapters_max
        if not limit:
            # Most engines have no adapters, and nothing to count.
            return Places({}, 0)
        loaded = chain(batch.pulling.values(), batch.held.values(), batch.running.values())
        return Places({self.awake: None} | {item.model: None for item in loaded}, limit + 1)

    def _on(self, model: ModelName) -> list[ModelName]:
        """A model and what is built on it."""
        return [one for one in self._profiles if model in (one, self.base(one))]


class Places:
    """Who may be in a batch. A place is an adapter's for as long as it has requests there; the base has its own."""

    __slots__ = ("_limit", "_taken")

    def __init__(self, taken: dict[ModelName, None], limit: int) -> None:
        self._taken = taken
        self._limit = limit

    def take(self, model: ModelName) -> bool:
        """Take the place of a model; say whether there is one. Without a limit there always is."""
        if model not in self._taken and 0 < self._limit <= len(self._taken):
            return False
        self._taken[model] = None
        return True


def cheapest_to_leave(
    batch: Batch, models: Models, evictable: Iterable[InFlight]
) -> list[InFlight]:
    """All requests of the adapter that costs least to compute again, if one can give its place up; else none.

    A place is free only once the last of them has left, so each of them must be evictable.
    """
    able = {item.ref.id: None for item in evictable}
    stays = {item.model: None for item in batch.pulling.values()}
    leaves: dict[ModelName, list[InFlight]] = {}
    for item in chain(batch.held.values(), batch.running.values()):
        if models.is_adapter(item.model) and item.ref.id in able:
            leaves.setdefault(item.model, []).append(item)
        else:
            stays[item.model] = None
    whole = [items for model, items in leaves.items() if model not in stays]
    return min(whole, key=lambda items: sum(item.resident_tokens for item in items), default=[])
