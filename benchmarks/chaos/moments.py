"""Failpoints one by one: each moment is met under load, and its process dies, freezes or fails there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from benchmarks.chaos.bed import Bed
from failpoints import VARIABLE

_PAUSE_S = 6.0

# At which pass, for moments that are met as long as there is load.
_UNDER_LOAD = {
    "gateway.store.before_commit": 12,
    "gateway.store.after_commit": 12,
    "gateway.driver.request_stored": 6,
    "gateway.driver.granted": 10,
    "gateway.driver.output_counted": 100,
    "gateway.driver.end_recorded": 6,
    "gateway.driver.end_stored": 6,
    "gateway.batches.linked": 3,
    "gateway.batches.stored": 3,
    "gateway.batches.validating": 3,
    "gateway.batches.validated": 3,
    "gateway.batches.indexed": 3,
    "gateway.batches.lines_read": 3,
    "gateway.batches.line_ended": 3,
    "gateway.batches.line_stored": 3,
    "gateway.batches.writing": 3,
    "gateway.batches.file_kept": 3,
    "gateway.batches.written": 3,
    "gateway.batches.closed": 3,
    "agents.gateway_link.after_pull": 5,
    "agents.gateway_link.payload_came": 6,
    "agents.gateway_link.end_sent": 6,
    "agents.driver.submitting": 6,
    "agents.driver.output_came": 100,
    "agents.driver.engine_done": 6,
    "solver.driver.plan_found": 2,
    "solver.sessions.window_leaving": 40,
}
# Those that a starting process meets, so that it is killed first.
_STARTING = (
    "gateway.driver.restored",
    "gateway.work.hello_came",
    "gateway.solver_link.announcing",
    "agents.gateway_link.hello_sent",
    "agents.solver_link.joined",
    "agents.solver_link.window_came",
    "solver.sessions.gateway_announcing",
    "solver.sessions.agent_joining",
)
# Those that are met by whoever is asked to stop.
_STOPPING = ("gateway.driver.draining", "agents.daemon.draining")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One failpoint and how it is met.

    Attributes:
        starting: whether its process comes by when it starts, and so has to be started anew.
        stopping: whether it comes by when it is asked to stop.
    """

    moment: str
    action: str
    nth: int = 1
    starting: bool = False
    stopping: bool = False

    @property
    def part(self) -> str:
        """The part that comes by."""
        package = self.moment.partition(".")[0]
        return "one" if package == "agents" else package

    @property
    def armed_early(self) -> bool:
        """Whether the fleet's first start arms it."""
        return not self.starting

    @property
    def rule(self) -> str:
        """What arms it."""
        return f"{self.moment}={self.action}@{self.nth}"

    async def inflict(self, bed: Bed) -> None:
        """Have it met; back when its process serves again."""
        said = f"failpoint {self.moment}: {self.action}"
        # What is armed early may be met before this is called, in a fleet that is new then.
        before = bed.restarts(self.part) if self.starting else 0
        restarts = before + self.starting + (self.action == "kill")
        if self.starting:
            with bed.environment({VARIABLE: self.rule}):
                bed.kill(self.part)
                await bed.until_said(said)
        elif self.stopping:
            bed.terminate(self.part)
        await bed.until_said(said)
        if self.action == "pause":
            await asyncio.sleep(_PAUSE_S)
            bed.wake(self.part)
        await bed.until_restarted(self.part, restarts)


def all_of_them() -> list[Moment]:
    """Each moment that scripted engines can bring about, with each action that makes sense there."""
    found = []
    for action in ("kill", "pause"):
        found += [Moment(moment=m, action=action, nth=nth) for m, nth in _UNDER_LOAD.items()]
        found += [Moment(moment=m, action=action, starting=True) for m in _STARTING]
    found += [Moment(moment=m, action="kill", stopping=True) for m in _STOPPING]
    # A database says that it failed before a commit counts; elsewhere an error would be one of our own.
    found.append(Moment(moment="gateway.store.before_commit", action="error", nth=12))
    return found
