"""What each kind of fault does to the parts, and what its end undoes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qlm_core.sim.faults.agent_part import AgentPart
from qlm_core.sim.faults.gateway_part import GatewayPart
from qlm_core.sim.faults.process import Process
from qlm_core.sim.faults.schedule import Fault, FaultKind, Lie
from qlm_core.sim.faults.solver_part import SolverPart

if TYPE_CHECKING:
    from qlm_core.sim.faults.run import World

_Part = SolverPart | GatewayPart | AgentPart
_Act = Callable[[Fault], None]


class Injection:
    """Lets the faults of a schedule happen."""

    def __init__(self, world: World):
        self._world = world
        self._network = world.network
        self._parts: dict[str, _Part] = {"solver": world.solver}
        self._parts |= {name: door.gateway for name, door in world.doors.items()}
        self._parts |= dict(world.agents)
        # By how many faults each process is kept down, and how many keep it asleep.
        self._down: dict[str, int] = {}
        self._asleep: dict[str, int] = {}
        kind = FaultKind
        self._acts: dict[FaultKind, tuple[_Act, _Act]] = {
            kind.CRASH: (self._crash, self._restart),
            kind.VANISH: (self._vanish, self._restart),
            kind.PAUSE: (self._pause, self._wake),
            kind.DRAIN: (self._drain, self._restart),
            kind.CUT: (self._stall, self._cut),
            kind.PARTITION: (self._block_both, self._unblock_both),
            kind.HALF_OPEN: (self._block, self._unblock),
            kind.SLOW_LINK: (self._slow, self._hasten),
            kind.STALE_ORDER: (self._repeat_stale, _nothing),
            kind.ENGINE_CRASH: (self._crash_engine, self._restart_engine),
        }
        self._engine_flags = {
            kind.ENGINE_STUCK: "stuck",
            kind.ENGINE_FULL: "full",
            kind.ENGINE_ERRORS: "failing",
            kind.SWAP_FAILS: "unwilling",
        }
        self._store_flags = {kind.DISK_FULL: "full", kind.TORN_COMMIT: "torn"}

    def plan(self) -> None:
        """Enter all faults into the agenda."""
        for fault in self._world.schedule.faults:
            self._world.agenda.at(fault.at_s, self._begin, fault)
            self._world.agenda.at(fault.over_s, self._end, fault)

    def _begin(self, fault: Fault) -> None:
        world = self._world
        world.trace.line("fault", fault.kind.value, fault.target, fault.other, fault.lie.value)
        checkers = world.checkers
        checkers.troubled_until_s = max(checkers.troubled_until_s, fault.over_s)
        if fault.kind in self._acts:
            self._acts[fault.kind][0](fault)
        else:
            self._set(fault, begins=True)

    def _end(self, fault: Fault) -> None:
        self._world.trace.line("over", fault.kind.value, fault.target, fault.other)
        if fault.kind in self._acts:
            self._acts[fault.kind][1](fault)
        else:
            self._set(fault, begins=False)

    def _set(self, fault: Fault, *, begins: bool) -> None:
        """Faults that are a setting of an engine, a disk or a clock."""
        kind, step = fault.kind, 1 if begins else -1
        if kind in self._engine_flags:
            engine = self._agent(fault).engine
            name = self._engine_flags[kind]
            setattr(engine, name, getattr(engine, name) + step)
        elif kind in self._store_flags:
            store = self._gateway(fault).store
            name = self._store_flags[kind]
            setattr(store, name, getattr(store, name) + step)
        elif kind is FaultKind.ENGINE_SLOW:
            self._agent(fault).engine.slow = fault.amount if begins else 1.0
        elif kind is FaultKind.ENGINE_LIES:
            self._agent(fault).engine.lie = fault.lie if begins else Lie.NONE
        elif kind is FaultKind.SLOW_DISK:
            self._gateway(fault).store.slow = fault.amount if begins else 1.0
        elif begins:
            assert kind is FaultKind.CLOCK_JUMP
            self._gateway(fault).process.clock_jumps_s += fault.amount

    # ------------------------------------------------------------------ processes

    def _part(self, fault: Fault) -> _Part:
        return self._parts[fault.target]

    def _process(self, fault: Fault) -> Process:
        return self._part(fault).process

    def _agent(self, fault: Fault) -> AgentPart:
        part = self._part(fault)
        assert isinstance(part, AgentPart)
        return part

    def _gateway(self, fault: Fault) -> GatewayPart:
        part = self._part(fault)
        assert isinstance(part, GatewayPart)
        return part

    def _crash(self, fault: Fault) -> None:
        self._go_down(fault, said=True)

    def _vanish(self, fault: Fault) -> None:
        self._go_down(fault, said=False)

    def _go_down(self, fault: Fault, *, said: bool) -> None:
        self._down[fault.target] = self._down.get(fault.target, 0) + 1
        if self._process(fault).up:
            self._part(fault).stop(said=said)

    def _restart(self, fault: Fault) -> None:
        self._down[fault.target] -= 1
        if self._down[fault.target]:
            return
        part = self._part(fault)
        if part.process.up:
            # It drains and is not through: whoever supervises it waits no longer.
            part.stop(said=True)
        part.start()

    def _drain(self, fault: Fault) -> None:
        self._down[fault.target] = self._down.get(fault.target, 0) + 1
        self._agent(fault).leave()

    def _pause(self, fault: Fault) -> None:
        self._asleep[fault.target] = self._asleep.get(fault.target, 0) + 1
        self._process(fault).pause()

    def _wake(self, fault: Fault) -> None:
        self._asleep[fault.target] -= 1
        process = self._process(fault)
        if not self._asleep[fault.target] and process.asleep:
            process.wake()

    # ------------------------------------------------------------------ links

    def _stall(self, fault: Fault) -> None:
        self._network.block((fault.target, fault.other))

    def _cut(self, fault: Fault) -> None:
        self._network.cut(fault.target, fault.other)
        self._network.unblock((fault.target, fault.other))

    def _block(self, fault: Fault) -> None:
        self._network.block((fault.target, fault.other))

    def _unblock(self, fault: Fault) -> None:
        self._network.unblock((fault.target, fault.other))

    def _block_both(self, fault: Fault) -> None:
        self._network.block((fault.target, fault.other))
        self._network.block((fault.other, fault.target))

    def _unblock_both(self, fault: Fault) -> None:
        self._network.unblock((fault.target, fault.other))
        self._network.unblock((fault.other, fault.target))

    def _slow(self, fault: Fault) -> None:
        self._network.slow((fault.target, fault.other), fault.amount)

    def _hasten(self, fault: Fault) -> None:
        self._network.slow((fault.target, fault.other), 1.0)

    def _repeat_stale(self, fault: Fault) -> None:
        self._agent(fault).repeat_stale_order()

    # ------------------------------------------------------------------ engines

    def _crash_engine(self, fault: Fault) -> None:
        self._agent(fault).engine.crash()

    def _restart_engine(self, fault: Fault) -> None:
        self._agent(fault).engine.restart()


def _nothing(_: Fault) -> None:
    """There is nothing to undo."""
