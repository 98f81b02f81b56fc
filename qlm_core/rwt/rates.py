"""Running averages of what engines and clients do: prompt lengths, an engine's real speed, how often requests arrive."""

from __future__ import annotations

from math import exp, expm1, sqrt


class RecentMean:
    """Mean of what was seen of late: of all at first, each weighing the same.

    Args:
        prior: before anything is seen.
        history: sightings after which one has faded to 1/e.
    """

    __slots__ = ("_history", "seen", "value")

    def __init__(self, *, prior: float, history: int):
        self.value = prior
        self._history = history
        self.seen = 0

    def observe(self, value: float) -> None:
        """Learn from one sighting."""
        self.seen += 1
        self.value += (value - self.value) / min(self._history, self.seen)


class SpeedFactor:
    """How fast an engine really is, as a multiple of its profile's prediction.

    One interval holds few iterations, some of which read prompts, so that by itself it says little: the mean is over some
    hundred intervals, and the profile's word counts as much as the first few of them.
    """

    __slots__ = ("_seen", "value")

    _PRIOR = 10
    _HISTORY = 200
    _INTERVAL_SPREAD = 0.15
    _LEAST_SPREAD = 0.02
    _LOWEST, _HIGHEST = 0.1, 10.0

    def __init__(self) -> None:
        self.value = 1.0
        self._seen = self._PRIOR

    def observe(self, *, realised_per_s: float, predicted_per_s: float) -> None:
        """Learn from one interval in which a batch ran."""
        if realised_per_s <= 0 or predicted_per_s <= 0:
            return
        ratio = min(self._HIGHEST, max(self._LOWEST, realised_per_s / predicted_per_s))
        self._seen = min(self._HISTORY, self._seen + 1)
        self.value += (ratio - self.value) / self._seen

    @property
    def spread(self) -> float:
        """Standard deviation of what is left to learn."""
        return sqrt(self._LEAST_SPREAD**2 + self._INTERVAL_SPREAD**2 / self._seen)


class ArrivalRate:
    """How often requests of one kind arrive, of late and over a longer time, and for how long they have."""

    __slots__ = ("_count", "_first_s", "_last_s", "_long_count")

    _MEMORY_S = 30.0
    _LONG_MEMORY_S = 1800.0
    _YOUNGEST_S = 1.0
    _GRACE_S = 10.0

    def __init__(self, now_s: float) -> None:
        self._first_s = self._last_s = now_s
        self._count = 0.0
        self._long_count = 0.0

    def observe(self, now_s: float) -> None:
        """One has arrived; not always later than the last, since gateways announce anew what waits."""
        last_s = max(self._last_s, now_s)
        self._count *= exp((self._last_s - last_s) / self._MEMORY_S)
        self._count += exp((now_s - last_s) / self._MEMORY_S)
        self._long_count *= exp((self._last_s - last_s) / self._LONG_MEMORY_S)
        self._long_count += exp((now_s - last_s) / self._LONG_MEMORY_S)
        self._first_s, self._last_s = min(self._first_s, now_s), last_s

    def per_s(self, now_s: float) -> float:
        """Requests per second of late."""
        return self._mean(self._count, self._MEMORY_S, now_s)

    def long_per_s(self, now_s: float) -> float:
        """Requests per second over half an hour or so: what may be expected of as long a time."""
        return self._mean(self._long_count, self._LONG_MEMORY_S, now_s)

    def seen(self, now_s: float) -> float:
        """How many arrivals that is known from."""
        return self._long_count * exp((self._last_s - now_s) / self._LONG_MEMORY_S)

    def _mean(self, count: float, memory_s: float, now_s: float) -> float:
        count *= exp((self._last_s - now_s) / memory_s)
        seen_for_s = max(self._YOUNGEST_S, now_s - self._first_s)
        return -count / (memory_s * expm1(-seen_for_s / memory_s))

    def age_s(self, now_s: float) -> float:
        """For how long they may be expected to go on: since the first one, and a little, for a stream that is new."""
        return self._GRACE_S + now_s - self._first_s
