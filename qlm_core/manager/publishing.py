"""Who lacks something of its queue or window, and when it is sent.

A new Manager knows nothing yet, and what it would send would wipe the windows that agents still work from. So nothing is
sent before it is settled: once a gateway has announced all that it holds, or after `SETTLE_S`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qlm_core.grouping import RequestGroup
from qlm_core.manager.events import Effect, TellAgent
from qlm_core.manager.fleet import Agent
from qlm_core.manager.windows import Expected, Groups, append_to_window, match_window
from qlm_core.model import AgentId, RequestMeta

SETTLE_S = 1.0


class Publisher:
    """Sends agents what they lack.

    Args:
        window_requests: references that an agent holds.
        expected: the expected output of a request, in tokens.

    Attributes:
        settles_at_s: when it is settled whatever has been announced; None once it is.
    """

    __slots__ = ("_expected", "_lacking", "_window_requests", "settles_at_s")

    def __init__(self, *, window_requests: int, expected: Expected, now_s: float):
        self._window_requests = window_requests
        self._expected = expected
        self._lacking: dict[AgentId, None] = {}
        self.settles_at_s: float | None = now_s + SETTLE_S

    @property
    def settled(self) -> bool:
        """Whether enough is known to send anything."""
        return self.settles_at_s is None

    def announced(self, now_s: float) -> None:
        """A gateway has announced all that it holds."""
        if not self.settled:
            self.settles_at_s = now_s

    def settle(self, agents: Iterable[AgentId], now_s: float) -> None:
        """Everybody is sent what they lack from now on, if it is time."""
        if self.settles_at_s is not None and now_s >= self.settles_at_s:
            self.settles_at_s = None
            self._lacking.update(dict.fromkeys(agents))

    def lacks(self, agent: AgentId) -> None:
        """The queue or the window of an agent has changed."""
        self._lacking[agent] = None

    def forget(self, agent: AgentId) -> None:
        """An agent is gone."""
        self._lacking.pop(agent, None)

    def reach(
        self, agent: Agent, group: RequestGroup, request: RequestMeta, epoch: int
    ) -> list[Effect]:
        """Send a new member of a group at once, where nothing else is to be sent before."""
        if not self.settled or not agent.connected or agent.id in self._lacking:
            return []
        update = append_to_window(
            agent,
            group,
            request,
            size=self._window_requests,
            epoch=epoch + agent.epoch_ahead,
            expected=self._expected,
        )
        return [] if update is None else [TellAgent(agent.id, update)]

    def flush(self, agents: Mapping[AgentId, Agent], groups: Groups, epoch: int) -> list[Effect]:
        """Send all who are here what they lack."""
        if not self.settled or not self._lacking:
            return []
        effects: list[Effect] = []
        for id in self._lacking:
            agent = agents.get(id)
            if agent is None or not agent.connected:
                continue
            update = match_window(
                agent,
                groups,
                size=self._window_requests,
                epoch=epoch + agent.epoch_ahead,
                expected=self._expected,
            )
            if update is not None:
                effects.append(TellAgent(id, update))
        self._lacking.clear()
        return effects
