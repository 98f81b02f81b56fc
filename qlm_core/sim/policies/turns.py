"""Rivals among which the models of an instance take turns.

A turn begins when the model is awake and lasts a while; in it the request due first goes first. When it is over and another
model has requests, what runs is cut: the executor evicts it, and its KV cache stays in host memory as far as that goes. Then
the model whose first request is due first has its turn. An instance with nothing to do for its model ends the turn at once.

Where instances share models, one that changes takes a model that has its turn nowhere else, if one waits. A model that has one
elsewhere comes into question for an instance that is idle, or when its first request is late and due before the instance's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.model import AgentId, ModelName, ModelTier, RequestId, RequestMeta
from qlm_core.profile import EngineProfile
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.dispatcher import Host
from qlm_core.sim.policies.shared import Edf

CUT_S = 0.2
"""How long an executor waits for outputs to end before it cuts them for another model's turn."""

EXECUTOR_CHANGES = {"drain_s_max": CUT_S, "evictions_max": 1_000}
"""Who is cut at the end of each turn is evicted as often as turns end."""

_SWAPS_PER_TURN = 1.5
"""An adapting turn is at least so many times as long as the swap before it: two fifths of the time go into swaps at most."""

_WAITED_SHARE = 0.6
"""The share of a target that an adapting turn lets pass until a model comes round again; the rest is for its own requests."""

_TURN_S_MAX = 60.0


@dataclass(slots=True)
class _Turn:
    """Whose turn it is at an instance.

    Attributes:
        base: the model, or the base of the adapters that have their turn with it.
        begun_s: when it was awake; None while it is being swapped in.
        length_s: of this turn; None until somebody else waits.
    """

    base: ModelName
    begun_s: float | None
    length_s: float | None = None


class Turns(Edf):
    """Models take turns, of a fixed length or of one that adapts.

    The length that adapts is worked out when another model's requests wait first: the longest with which the model
    comes round again in three fifths of the tightest target that waits there. Targets that would need turns of
    less than one and a half swaps are passed over for the next one; so turns grow with what a swap costs, and shrink with the
    tightest target that turns can keep.

    Args:
        turn_s: the length; None adapts it.
    """

    displaces = True

    def __init__(self, context: Context, *, turn_s: float | None = None):
        super().__init__(context)
        self._turn_s = turn_s
        self._turns: dict[AgentId, _Turn] = {}

    # ------------------------------------------------------------------ what a dispatcher asks

    @property
    def wakeup_s(self) -> float | None:
        """The end of the first turn that somebody waits for."""
        ends_s = [
            self._end_s(host, turn.begun_s)
            for host in self.hosts.values()
            if (turn := self._turn(host)).begun_s is not None and self._others(host)
        ]
        return min(ends_s, default=None)

    def woken(self) -> None:
        """End the turns that are over."""
        for host in self.hosts.values():
            self.room(host)

    def reported(self, host: Host) -> None:
        """The turn begins when its model is awake."""
        turn = self._turn(host)
        if turn.begun_s is None and host.state.awake_model == turn.base:
            turn.begun_s = self.now_s
            self.room(host)

    def waits(self, request: RequestMeta) -> None:
        """Queue it for the next turn of its model, or bind it where that has its turn."""
        self._push(request)
        hosts = self.serving(request.model)
        for host in sorted(hosts, key=lambda host: len(host.line)):
            self.room(host)
        queue = self._queues[request.model]
        if queue and queue[0][1] == request.id:
            self._displace(request, [host for host in hosts if self._has_turn(host, request.model)])

    def room(self, host: Host) -> None:
        """Change turns if that is due, and bind the next requests of the model whose turn it is."""
        self._look(host)
        super().room(host)

    def next_queue(self, host: Host) -> list[tuple[float, RequestId, int, RequestMeta]] | None:
        """The queue of the model whose turn it is; of its adapters that with the first request."""
        queues = [
            queue
            for model, queue in self._queues.items()
            if queue and model in host.profiles and self._has_turn(host, model)
        ]
        return min(queues, key=lambda queue: queue[0][:2], default=None)

    # ------------------------------------------------------------------ turns

    def _turn(self, host: Host) -> _Turn:
        turn = self._turns.get(host.agent)
        if turn is None:
            base = host.state.awake_model or next(iter(host.profiles))
            turn = self._turns[host.agent] = _Turn(base, self.now_s)
        return turn

    def _has_turn(self, host: Host, model: ModelName) -> bool:
        return host.profiles[model].base == self._turn(host).base

    def _look(self, host: Host) -> None:
        """End the turn if it is over and somebody waits for the next one."""
        turn = self._turn(host)
        if turn.begun_s is None:
            return
        own = self.next_queue(host)
        idle = not (own or host.line or host.held)
        others = self._others(host)
        if not others or not (idle or self.now_s >= self._end_s(host, turn.begun_s)):
            return
        # What is bound and not pulled waits again, so that it is compared with the others.
        for id in list(host.line):
            self._push(self.unbind(id))
        chosen = self._next(host, others, idle=idle)
        if chosen is None:
            self._turns[host.agent] = _Turn(turn.base, self.now_s)
        else:
            self._turns[host.agent] = _Turn(chosen, None)

    def _others(self, host: Host) -> dict[ModelName, RequestMeta]:
        """The first request of each base that could have the next turn."""
        first: dict[ModelName, RequestMeta] = {}
        for model, queue in self._queues.items():
            profile = host.profiles.get(model)
            if not queue or profile is None or self._has_turn(host, model):
                continue
            base, request = ModelName(profile.base), queue[0][-1]
            if base not in first or request.due_s < first[base].due_s:
                first[base] = request
        return first

    def _next(
        self, host: Host, others: dict[ModelName, RequestMeta], *, idle: bool
    ) -> ModelName | None:
        """The base that has the next turn; None goes on with the same."""
        elsewhere = {turn.base: None for agent, turn in self._turns.items() if agent != host.agent}
        able = [base for base in others if base not in elsewhere]
        if not able and idle:
            able = list(others)
        elif not able:
            own = self.next_queue(host)
            until_s = min(self.now_s, own[0][-1].due_s) if own else self.now_s
            able = [base for base, request in others.items() if request.due_s < until_s]
        return min(able, key=lambda base: others[base].due_s, default=None)

    # ------------------------------------------------------------------ how long

    def _end_s(self, host: Host, begun_s: float) -> float:
        if self._turn_s is not None:
            return begun_s + self._turn_s
        turn = self._turn(host)
        if turn.length_s is None:
            turn.length_s = self._adapted_s(host)
        return begun_s + turn.length_s

    def _adapted_s(self, host: Host) -> float:
        """The longest turn that keeps the tightest target that turns can keep."""
        others = self._others(host)
        swap_s = max(_swap_s(host, host.profiles[base]) for base in others)
        least_s = _SWAPS_PER_TURN * swap_s
        targets_s = sorted(
            {
                entry[-1].slo.start_s: None
                for model, queue in self._queues.items()
                if model in host.profiles
                for entry in queue
            }
        )
        for target_s in targets_s:
            # Whoever comes as its model's turn ends waits for the turns of the others, and for the swaps to and fro.
            turn_s = (_WAITED_SHARE * target_s - (len(others) + 1) * swap_s) / len(others)
            if turn_s >= least_s:
                return min(turn_s, _TURN_S_MAX)
        return least_s


def _swap_s(host: Host, profile: EngineProfile) -> float:
    """Seconds from cutting what runs until another model is awake."""
    asleep = dict(host.state.tiers).get(ModelName(profile.base)) is ModelTier.ASLEEP
    return CUT_S + profile.sleep_s + (profile.wake_s if asleep else profile.cold_s)
