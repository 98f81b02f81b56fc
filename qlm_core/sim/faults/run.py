"""One run: the parts of a fleet, the faults that befall them, and whether everything comes right in the end."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from traceback import extract_tb

from qlm_core.model import Slo, SloClass
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.faults import audit
from qlm_core.sim.faults.agent_part import AgentPart
from qlm_core.sim.faults.batch_checks import BatchChecks
from qlm_core.sim.faults.batch_clients import BatchClient
from qlm_core.sim.faults.checkers import Checkers, Violation
from qlm_core.sim.faults.clients import Client
from qlm_core.sim.faults.engine_part import EnginePart
from qlm_core.sim.faults.gateway_doors import Doors
from qlm_core.sim.faults.gateway_part import GatewayPart
from qlm_core.sim.faults.injection import Injection
from qlm_core.sim.faults.network import Network
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Schedule
from qlm_core.sim.faults.solver_part import SolverPart
from qlm_core.sim.faults.store import Store
from qlm_core.sim.faults.trace import Trace, Write

CLASSES = (
    SloClass(name="interactive", slo=Slo(ttft_s=2.0), weight=4.0),
    SloClass(name="batch-1", slo=Slo(ttft_s=20.0), weight=2.0),
    SloClass(name="batch-2", slo=Slo(ttft_s=600.0)),
)

END_S_MAX = 60.0
"""So long after the last fault and the last request everything has ended, beside the time that one engine takes for all."""
_SETTLE_S = 8.0
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a run failed.

    Attributes:
        checker: who saw it; "exception" where the code that was run raised one.
        at_s: when.
    """

    checker: str
    words: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run went; no failure if all was well."""

    failure: Failure | None
    steps: int
    requests: int


class World:
    """All parts of one run."""

    def __init__(self, schedule: Schedule, *, trace: Write | None = None):
        self.schedule = schedule
        self.agenda = Agenda()
        self.checkers = Checkers(self.agenda)
        self.trace = Trace(self.agenda, trace)
        self.network = Network(self.agenda, self._rng("network"))
        self.solver = SolverPart(self._process("solver"), CLASSES, seed=schedule.seed)
        self.doors = {name: self._gateway(name) for name in schedule.bed.gateways}
        self.agents = {name: self._agent(name) for name in schedule.bed.agents}
        home = self._process("clients")
        home.start()
        self.batch_checks = BatchChecks(self.checkers)
        self.batch_clients = [
            BatchClient(
                ask, home, self.network, self._rng(f"batch/{ask.number}"), self.batch_checks
            )
            for ask in schedule.batches
        ]
        self.clients = [
            Client(ask, home, self.network, self._rng(f"client/{ask.number}"), self.checkers)
            for ask in schedule.asks
        ]

    def _rng(self, purpose: str) -> Random:
        return Random(f"{self.schedule.seed}/{purpose}")

    def _process(self, name: str) -> Process:
        process = Process(name, self.agenda, self.trace)
        self.network.add(process)
        return process

    def _gateway(self, name: str) -> Doors:
        process, rng = self._process(name), self._rng(name)
        gateway = GatewayPart(process, Store(process, rng), CLASSES, self.checkers, rng)
        return Doors(gateway, self.network)

    def _agent(self, name: str) -> AgentPart:
        process, rng = self._process(name), self._rng(name)
        asks = {ask.number: ask for ask in (*self.schedule.asks, *self.schedule.lines)}
        bed, checkers = self.schedule.bed, self.checkers
        engine = EnginePart(bed, process, asks, self.agenda, rng, checkers)
        return AgentPart(process, self.network, engine, CLASSES, rng, checkers)

    # ------------------------------------------------------------------ the run

    def run(self) -> Outcome:
        """Let everything happen; end at the first thing that is wrong."""
        failure: Failure | None = None
        try:
            self._run()
        except Violation as violation:
            failure = Failure(
                checker=violation.checker, words=violation.words, at_s=self.agenda.now_s
            )
        except Exception as error:  # what the machines raise is what this looks for
            frame = extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            words = f"{type(error).__name__}: {error} ({where})"
            failure = Failure(checker="exception", words=words, at_s=self.agenda.now_s)
        if failure is not None:
            self.trace.line("failure", f"{failure.checker}: {failure.words}")
        return Outcome(
            failure=failure, steps=self.agenda.done, requests=len(self.checkers.requests)
        )

    def _run(self) -> None:
        self.solver.start()
        for door in self.doors.values():
            door.gateway.start()
        for agent in self.agents.values():
            agent.start()
        Injection(self).plan()
        self.agenda.after(_LOOK_S, self._look)
        calm_s = self.schedule.calm_s
        end_s = calm_s + self.schedule.work_s + END_S_MAX
        ended_s: float | None = None
        while True:
            self.agenda.step()
            now_s = self.agenda.now_s
            if now_s < calm_s:
                continue
            if ended_s is None:
                if self._all_ended():
                    ended_s = now_s
                elif now_s > end_s:
                    self._complain(now_s - calm_s)
            elif now_s >= ended_s + _SETTLE_S:
                break
        audit.at_the_end(self.solver, self.doors.values(), self.agents.values(), self.checkers)
        for name, door in self.doors.items():
            self.batch_checks.at_the_end(name, door.gateway.store)

    def _all_ended(self) -> bool:
        gateways = [door.gateway for door in self.doors.values()]
        return (
            all(client.done for client in self.clients)
            and all(client.done for client in self.batch_clients)
            and all(one.process.up and not one.live and not one.batches.open for one in gateways)
        )

    def _complain(self, calm_for_s: float) -> None:
        """Say who still waits."""
        gateways = [door.gateway for door in self.doors.values()]
        waiting = [str(id) for one in gateways for id in (*one.live, *one.batches.open)]
        clients = [f"client {client.ask.number}" for client in self.clients if not client.done]
        clients += [f"batch {one.ask.number}" for one in self.batch_clients if not one.done]
        who = ", ".join((waiting or clients)[:4])
        number = len(waiting or clients)
        raise Violation(
            "nobody waits for ever", f"{calm_for_s:.0f} s after all faults {number} wait: {who}"
        )

    def _look(self) -> None:
        audit.look(self.solver, self.doors.values(), self.agents.values())
        self.agenda.after(_LOOK_S, self._look)


def run(schedule: Schedule, *, trace: Write | None = None) -> Outcome:
    """Run a schedule once."""
    return World(schedule, trace=trace).run()
