"""Which models of an instance are awake, asleep in host memory, or cold, within the host memory there is."""

from __future__ import annotations

from collections.abc import Iterable

from qlm_core.model import ModelName, ModelTier
from qlm_core.profile import EngineProfile


class Tiers:
    """The warm tiers of one instance (paper §5). At most one model is awake.

    A model that is awake or asleep takes its weights' size of host memory: what wakes must be able to sleep again. Adapters are
    where their base is, and are not named here but where all models are told.
    """

    def __init__(self, profiles: Iterable[EngineProfile], host_memory_bytes: int) -> None:
        profiles = tuple(profiles)
        self._bases = {ModelName(profile.model): ModelName(profile.base) for profile in profiles}
        self._bytes = {
            ModelName(profile.model): profile.host_memory_bytes
            for profile in profiles
            if not profile.adapter_of
        }
        self._limit = host_memory_bytes
        self._tiers = dict.fromkeys(self._bytes, ModelTier.COLD)

    def __getitem__(self, model: ModelName) -> ModelTier:
        return self._tiers[model]

    @property
    def awake(self) -> ModelName | None:
        """The model that serves."""
        return next((m for m, tier in self._tiers.items() if tier is ModelTier.AWAKE), None)

    def as_tuple(self) -> tuple[tuple[ModelName, ModelTier], ...]:
        """All models and their tiers, in the order of the configuration."""
        return tuple((model, self._tiers[base]) for model, base in self._bases.items())

    def set(self, model: ModelName, tier: ModelTier) -> None:
        """A model has reached a tier."""
        self._tiers[model] = tier

    def fits(self, model: ModelName) -> bool:
        """Whether a cold model would fit into host memory beside those that are there."""
        return self._used() + self._bytes[model] <= self._limit

    def to_drop(self, model: ModelName, keep: Iterable[ModelName] = ()) -> list[ModelName]:
        """Sleeping models to make cold so that `model` fits; those in `keep` last of all go, latest first."""
        wanted = list(keep)
        asleep = [
            other
            for other, tier in self._tiers.items()
            if tier is ModelTier.ASLEEP and other != model
        ]
        asleep.sort(key=lambda other: -wanted.index(other) if other in wanted else -len(wanted) - 1)
        dropped: list[ModelName] = []
        own = self._bytes[model] if self._tiers[model] is ModelTier.COLD else 0
        excess = self._used() + own - self._limit
        for other in asleep:
            if excess <= 0:
                break
            dropped.append(other)
            excess -= self._bytes[other]
        return dropped

    def _used(self) -> int:
        return sum(
            size for model, size in self._bytes.items() if self._tiers[model] is not ModelTier.COLD
        )
