"""Rivals that send each request to an engine's own queue as it arrives: round robin and least loaded.

The engine decides the rest: first come first served, or by class. An instance that serves several models
works through its line in order and swaps wherever the model changes.
"""

from __future__ import annotations

from qlm_core.model import ModelName, RequestMeta
from qlm_core.sim.policies.base import Context
from qlm_core.sim.policies.dispatcher import Dispatcher


class RoundRobin(Dispatcher):
    """Each model's requests go to the instances that serve it in turn."""

    def __init__(self, context: Context):
        super().__init__(context)
        self._turn: dict[ModelName, int] = {}

    def waits(self, request: RequestMeta) -> None:
        """Bind it to the next instance in turn."""
        hosts = self.serving(request.model)
        turn = self._turn.get(request.model, 0)
        self._turn[request.model] = turn + 1
        self.bind(request, hosts[turn % len(hosts)])


class LeastLoaded(Dispatcher):
    """To the instance with the fewest requests; among equals, one that has the model awake."""

    def waits(self, request: RequestMeta) -> None:
        """Bind it where the fewest requests are."""
        hosts = self.serving(request.model)
        self.bind(
            request,
            min(hosts, key=lambda host: (host.load, host.last_model != request.model)),
        )


class ByClass(LeastLoaded):
    """As least loaded, with the classes ranked for the engine: a request's priority is its target, however long it waits."""

    def due_s(self, request: RequestMeta) -> float:
        """The target alone."""
        return request.slo.start_s
