"""When the lines of one model will have ended, from what the fleet has to do: the arithmetic of an outlook.

Three things may be last: outputs that run, outputs that are held and have not begun, and lines that wait. Of what waits, the last
one starts when all instances that work on it have made room for so many (`rwt.finish.last_start_s`); after it comes the longest
of the outputs that run then. While the last outputs run, their batch shrinks and their pace grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from qlm_core.grouping import GroupKey
from qlm_core.manager.estimators import Estimators
from qlm_core.manager.flow import Rate
from qlm_core.model import ModelName
from qlm_core.profile import EngineProfile
from qlm_core.rwt import finish as rwt
from qlm_core.rwt.batches import weighted_quantile
from qlm_core.rwt.finish import DEVIATIONS_P90, TAKEN_MAX, Server
from qlm_core.rwt.lengths import LengthModel

_MODEL_ERROR = 0.1
"""What all the rest amounts to: swaps, batches that are not full, plans that change."""

_TAIL_ERROR = 0.3
"""How far the longest of many outputs is from what is foretold: nobody has seen one like it."""

_RATE_DRIFT = 0.4
"""How much rates of arrival change over as long as they are known from, as a standard deviation of the logarithm."""

_PARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left of a batch in one model.

    Attributes:
        waiting: lines that no agent holds. running: lines that one does.
        together: keys of the batches whose lines are released by turns with these, own one included.
        before: lines of those that are due before, with their keys.
        slowness: how many times as long as reckoned lines have taken until now.
    """

    key: GroupKey
    waiting: int
    running: int
    together: Mapping[GroupKey, None]
    before: tuple[tuple[GroupKey, int], ...] = ()
    slowness: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the fleet has to do with it.

    Attributes:
        servers: instances in whose queues lines wait.
        engines: profiles of all instances that work on lines, each with how many of them there are.
        outputs: lines that run, by tokens produced.
        beside: other requests that those instances hold.
        context_tokens: of a request that they hold, on average.
        taken: share of their time that goes to requests that come later and go first, and what their prompts take of it.
        taken_seen: arrivals that this is known from.
    """

    servers: Sequence[Server]
    engines: Sequence[tuple[EngineProfile, int]]
    outputs: Mapping[int, int]
    beside: int
    context_tokens: float
    taken: float
    taken_by_prompts: float
    taken_seen: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """When the lines of one model will have ended.

    Attributes:
        p50_s, p90_s: from now, before calibration.
        instances: that work on them. lines_per_s: that these start together at their steady pace.
        going: whether that is what they do now: nothing stands before them.
        behind_s: the shortest time until one of them begins.
        taken: share of their time that goes to requests that come meanwhile.
        tail_s: what follows the start of the last line.
        output_tokens: mean output of a line. ended: lines that this is known from.
    """

    model: ModelName
    p50_s: float
    p90_s: float
    instances: int
    lines_per_s: float
    going: bool
    behind_s: float
    taken: float
    tail_s: float
    output_tokens: float
    ended: float


class Reckoning:
    """One outlook in the making."""

    def __init__(self, estimators: Estimators, work: Work, scene: Scene, *, now_s: float):
        self._work, self._scene = work, scene
        self._known = known = estimators.batch(work.key)
        self._guesses = known.guesses()
        self._limit = known.limit_tokens
        self._mean = known.mean_tokens
        self._uncomputed = max(0, work.running - sum(scene.outputs.values()))
        rates = [
            (estimators.rate(profile, work.key, now_s=now_s), count)
            for profile, count in scene.engines
        ]
        self._count = sum([count for _, count in rates])
        self._room = sum([rate.batch * count for rate, count in rates])
        self._absorb_s = 1.0 / sum([count / max(1e-9, rate.absorb_s) for rate, count in rates])
        self._variation = sum([rate.variation * count for rate, count in rates]) / self._count
        self._lines = work.waiting + self._before(estimators, rates, now_s)
        self._servers = [one.stretched(pace=work.slowness) for one in scene.servers]
        # Outputs of others run beside these; their prompts do not.
        self._free = 1.0 - min(TAKEN_MAX, scene.taken_by_prompts)
        in_flight = self._room * (1.0 - min(TAKEN_MAX, scene.taken))
        self._in_flight = min(in_flight, float(work.waiting + work.running))
        self._lines += self._begun(rates)
        self._tail_token_s = self._token_s(self._in_flight, self._alive_in_flight)
        self._token_s_now = self._token_s(float(work.running), self._alive_now)

    def _before(
        self, estimators: Estimators, rates: Sequence[tuple[Rate, int]], now_s: float
    ) -> float:
        """Lines of other batches that go before, as so many of these."""
        own_s = sum([rate.seconds_per_request * count for rate, count in rates])
        before = 0.0
        for key, lines in self._work.before:
            other_s = sum(
                [
                    estimators.rate(profile, key, now_s=now_s).seconds_per_request * count
                    for profile, count in self._scene.engines
                ]
            )
            before += lines * other_s / own_s
        return before

    def _begun(self, rates: Sequence[tuple[Rate, int]]) -> float:
        """What is left of the lines that run, beyond what is when the last line starts, as so many lines.

        Prompts that are not computed are work to come, and outputs that began together are all as far from their end.
        """
        known, limit = self._known, self._limit
        pace_s = sum([rate.seconds_per_request * count for rate, count in rates])
        prompt = sum([rate.absorb_s * count for rate, count in rates]) / max(1e-9, pace_s)
        left = sum(
            [
                count * known.lengths.remaining(produced, limit)
                for produced, count in self._scene.outputs.items()
            ]
        )
        mean, variance = known.lengths.moments(limit)
        left += self._uncomputed * mean
        # Met at a random moment, half of an output is left, and more where lengths differ.
        usual = self._in_flight * (mean**2 + variance) / (2.0 * mean)
        return self._uncomputed * prompt + (1.0 - prompt) * (left - usual) / mean

    # ------------------------------------------------------------------ the last outputs

    def _token_s(self, outputs: float, alive: Callable[[float], float]) -> float:
        """Seconds of an iteration, on average while so many outputs come to their end."""
        if outputs < 0.5:
            return 0.0
        share = sum([alive((part + 0.5) / _PARTS) for part in range(_PARTS)]) / _PARTS
        batch = (self._scene.beside + share * outputs) / self._count
        total_s = 0.0
        for profile, count in self._scene.engines:
            own = min(max(1.0, batch), float(profile.max_num_seqs))
            context = own * (self._scene.context_tokens or self._known.prompt_tokens + self._mean)
            seconds = profile.iteration_s(
                decode_batch=own, context_tokens=min(context, float(profile.kv_cache_tokens))
            )
            total_s += seconds * count
        return total_s / self._count

    def _alive_now(self, share: float) -> float:
        """Of the outputs that run now, how many do at that part of the time until the last one ends."""
        lengths, outputs = self._known.lengths, dict(self._scene.outputs)
        if self._uncomputed:
            outputs[0] = outputs.get(0, 0) + self._uncomputed
        at_tokens = share * rwt.longest_of(lengths, self._limit, outputs, 0.5)
        return rwt.alive(lengths, self._limit, outputs, at_tokens) / max(1, sum(outputs.values()))

    def _alive_in_flight(self, share: float) -> float:
        """The same of those that run when the last line starts."""
        lengths = self._known.lengths
        at_tokens = share * rwt.longest_left(lengths, self._limit, self._in_flight, 0.5)
        left = self._mean - lengths.moments(max(1, round(at_tokens)))[0]
        return max(0.0, left / self._mean)

    # ------------------------------------------------------------------ all of it

    def outlook(self) -> Outlook:
        """When the lines will have ended, and why."""
        by_length = [
            (self._finish_s(0.5, lengths=one.lengths), one.probability) for one in self._guesses
        ]
        middle_s = weighted_quantile(by_length, 0.5)
        base_s = self._finish_s(0.5)
        lines = max(1.0, float(self._work.waiting))
        pace = 1.0 + DEVIATIONS_P90 * self._variation / sqrt(lines)
        drift = sqrt(_RATE_DRIFT**2 + 1.0 / max(1.0, self._scene.taken_seen))
        tail_s = self._tail_s(0.5, self._known.lengths)
        more_s = [
            self._finish_s(0.9) - base_s,
            weighted_quantile(by_length, 0.9) - middle_s,
            self._finish_s(0.5, pace=pace) - base_s,
            self._finish_s(0.5, taken=1.0 + DEVIATIONS_P90 * drift) - base_s,
            max(tail_s, self._running_s(0.5, self._known.lengths)) * DEVIATIONS_P90 * _TAIL_ERROR,
            middle_s * DEVIATIONS_P90 * _MODEL_ERROR,
        ]
        behind_s = max(0.0, min([one.offset_s for one in self._servers], default=0.0))
        free = [(1.0 - min(TAKEN_MAX, one.taken)) / one.pace_s for one in self._servers]
        return Outlook(
            model=self._work.key.model,
            p50_s=middle_s,
            p90_s=middle_s * rwt.spread(middle_s, [middle_s + one_s for one_s in more_s]),
            instances=len(self._servers),
            lines_per_s=sum(free),
            going=bool(free) and behind_s < 1.0 and not self._work.before,
            behind_s=behind_s,
            taken=min(TAKEN_MAX, self._scene.taken),
            tail_s=tail_s,
            output_tokens=self._mean,
            ended=self._known.lengths.ended,
        )

    def _finish_s(
        self,
        share: float,
        *,
        lengths: LengthModel | None = None,
        pace: float = 1.0,
        taken: float = 1.0,
    ) -> float:
        """When the last line has ended with that probability, if outputs, paces and requests that go first are so."""
        if lengths is None:
            lengths = self._known.lengths
        else:
            pace *= lengths.moments(self._limit)[0] / self._mean
        running_s = self._running_s(share, lengths)
        if self._lines <= 0.0 or not self._work.waiting:
            return running_s
        servers = [one.stretched(pace=pace, taken=taken) for one in self._servers]
        return max(running_s, rwt.last_start_s(self._lines, servers) + self._tail_s(share, lengths))

    def _running_s(self, share: float, lengths: LengthModel) -> float:
        """Until all that agents hold has ended."""
        token_s = self._token_s_now
        end_s = token_s * rwt.longest_of(lengths, self._limit, self._scene.outputs, share)
        if self._uncomputed:
            fresh = rwt.longest_of(lengths, self._limit, {0: self._uncomputed}, share)
            end_s = max(end_s, self._uncomputed * self._absorb_s + token_s * fresh)
        return end_s / self._free

    def _tail_s(self, share: float, lengths: LengthModel) -> float:
        """From the last start to the last end."""
        waiting = self._work.waiting
        if waiting + self._work.running > self._room:
            longest = rwt.longest_left(lengths, self._limit, self._in_flight, share)
            return self._tail_token_s * longest / self._free
        if not waiting:
            return 0.0
        fresh = rwt.longest_of(lengths, self._limit, {0: waiting}, share)
        return (waiting * self._absorb_s + self._tail_token_s * fresh) / self._free
