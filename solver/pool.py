"""Backend processes, and the ladder from the backend that was asked for down to plain insertion.

Each backend runs in a process of its own, started when first needed, given one order at a time, and
killed when it is late. Whatever happens there (no library, no licence, a model too large, a crash,
a kill) comes back as a `PlanResult` whose `step_downs` say what happened. Every plan is checked and
scored here before anyone sees it; an answer worse than the repaired plan in force is not an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from qlm_core.config import SolverConfig
from qlm_core.planning import (
    Plan,
    PlanResult,
    Problem,
    StepDown,
    Termination,
    check,
    evaluate,
    greedy,
    repair,
)
from solver.backends import available, row_of
from solver.backends.order import (
    FRAME_BYTES_MAX,
    Bounded,
    Done,
    GurobiLicence,
    Improved,
    Order,
    Ready,
    Report,
    pack,
    problem_to_wire,
    read_report,
    result_of,
)

START_S_MAX = 60.0
"""A process that has not said that it is ready after so long is given up."""

LOAD_S_MAX = 30.0
"""How long to wait for compiled kernels that are on disk, by those who would rather wait."""

GRACE_S = 0.5
"""A backend may overrun its budget by so much, and by a quarter, before it is killed."""

OnImprovement = Callable[[Plan, float], None]


def search_s(budget_s: float) -> float:
    """How much of a budget to search before proving: most of a short one, little of a long one."""
    return max(min(0.15, 0.8 * budget_s), min(0.4 * budget_s, 0.3 + 0.1 * budget_s))


class BackendProcess:
    """One backend's process: started when needed, restarted after a kill."""

    def __init__(self, name: str):
        self.name = name
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self.kernels = "unknown"
        self.busy = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The process, if it runs."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self) -> None:
        """Start the process unless it runs."""
        if self.pid is not None:
            return
        await self.stop()
        self._ready.clear()
        self._settled.clear()
        self.kernels = "unknown"
        self._reports = asyncio.Queue()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Nothing is taken for a package of this that only lies where the solver was started.
            "-P",
            "-m",
            "solver.backends.worker",
            self.name,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Turn frames into reports until the process ends."""
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await process.stdout.readexactly(4), "big")
                if size > FRAME_BYTES_MAX:
                    break
                report = read_report(await process.stdout.readexactly(size))
                if isinstance(report, Ready):
                    self._ready.set()
                    self.kernels = report.kernels
                    if report.kernels != "unknown":
                        self._settled.set()
                else:
                    self._reports.put_nowait(report)
        self._reports.put_nowait(None)
        self._ready.set()
        self._settled.set()

    async def wait_ready(self, *, compiled: bool) -> bool:
        """Wait until the process takes orders; False if it never does.

        With `compiled`, wait for compiled kernels too if they are on disk. Nobody waits for
        compiling.
        """
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._ready.wait()
        except TimeoutError:
            return False
        if compiled:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOAD_S_MAX):
                    await self._settled.wait()
        return self.pid is not None

    async def send(self, order: Order) -> None:
        """Hand over an order."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(pack(order))
        await self._process.stdin.drain()

    async def next_report(self, timeout_s: float) -> Report | None:
        """The next report; None when the process has ended. Raises TimeoutError when it is late."""
        async with asyncio.timeout(timeout_s):
            return await self._reports.get()

    async def stop(self) -> None:
        """End the process, at once."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if self._reader is not None:
            await self._reader
            self._reader = None


class Pool:
    """All backend processes of a solver, and the way down from one to the next."""

    def __init__(self, config: SolverConfig | None = None):
        config = config or SolverConfig()
        self._preferred = config.backend
        self._licence = GurobiLicence(
            access_id=config.gurobi.access_id.reveal(),
            secret=config.gurobi.secret.reveal(),
            license=config.gurobi.license.reveal(),
        )
        self._processes: dict[str, BackendProcess] = {}
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        """Start the configured backend's process, so that it compiles before it is needed."""
        await self.process_of(self._preferred).start()

    @property
    def compiling(self) -> bool:
        """Whether a process had to do without compiled kernels so far, for want of any on disk."""
        return any(process.kernels == "compiling" for process in self._processes.values())

    async def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            await process.stop()

    def process_of(self, backend: str) -> BackendProcess:
        """The process of a backend (not necessarily running)."""
        row_of(backend)
        if backend not in self._processes:
            self._processes[backend] = BackendProcess(backend)
        return self._processes[backend]

    async def solve(
        self,
        problem: Problem,
        *,
        backend: str = "auto",
        formulation: str = "paths",
        budget_s: float = 0.2,
        background_budget_s: float = 0.0,
        warm: Plan | None = None,
        seed: int = 0,
        work: int | None = None,
        duals: Sequence[float] = (),
        on_improvement: OnImprovement | None = None,
        wait_compiled: bool = False,
    ) -> PlanResult:
        """The best plan that the backend, or whoever answers for it, finds within the budget.

        `on_improvement` hears of every better plan as soon as it exists. With a background budget,
        a backend that proves goes on for that long after its search. `wait_compiled` waits for
        compiled kernels first if they are on disk. Never raises for a backend's failure.
        """
        attempt = _Attempt(problem, warm, on_improvement)
        order = Order(
            number=0,
            backend=backend,
            formulation=formulation,
            budget_s=max(budget_s, background_budget_s),
            search_s=budget_s if background_budget_s > budget_s else search_s(budget_s),
            work=work,
            seed=seed,
            warm=warm,
            duals=tuple(duals),
            licence=self._licence,
            problem=problem_to_wire(problem),
        )
        begin_s = time.perf_counter()
        for name in (backend, *row_of(backend).falls_back_to):
            if name not in available():
                attempt.step_down(name, Termination.UNAVAILABLE, "its library is not installed")
                continue
            result = await self._ask(name, order, attempt, wait_compiled=wait_compiled)
            if result.plan is not None:
                return attempt.finish(result, name)
            attempt.step_down(name, result.termination, result.detail)
            left_s = order.budget_s - (time.perf_counter() - begin_s - attempt.setup_s)
            if attempt.plan is not None and left_s < 0.05:
                return attempt.finish(result, name)
            # Whoever comes next goes on from the best plan so far, in the time that is left.
            order = msgspec.structs.replace(
                order,
                budget_s=max(0.05, left_s),
                search_s=search_s(max(0.05, left_s)),
                warm=attempt.plan or order.warm,
            )
        return await attempt.last_resort()

    async def _ask(
        self, name: str, order: Order, attempt: _Attempt, *, wait_compiled: bool
    ) -> PlanResult:
        """One backend's answer; a process that dies or overruns answers ERROR."""
        process = self.process_of(name)
        begin_s = time.perf_counter()
        async with process.busy:
            try:
                await process.start()
            except OSError as error:
                return attempt.failed(name, f"its process could not be started: {error.strerror}")
            if not await process.wait_ready(compiled=wait_compiled):
                await process.stop()
                return attempt.failed(name, "its process did not start")
            attempt.setup_s += time.perf_counter() - begin_s
            attempt.begin_s = time.perf_counter()
            number = next(self._numbers)
            # Building the model of a large problem is not the backend's fault: allow for it.
            patience_s = 1.25 * order.budget_s + GRACE_S + len(attempt.problem.group_model) / 500
            if process.kernels in ("unknown", "compiling"):
                # It still loads its libraries and kernels beside the order.
                patience_s += LOAD_S_MAX
            try:
                await process.send(msgspec.structs.replace(order, number=number, backend=name))
                return await self._follow(process, number, patience_s, attempt)
            except TimeoutError:
                await process.stop()
                return attempt.failed(name, f"killed after {patience_s:.1f} s")
            except (ConnectionError, BrokenPipeError):
                await process.stop()
                return attempt.failed(name, "its process is gone")
            except asyncio.CancelledError:
                await process.stop()
                raise

    async def _follow(
        self, process: BackendProcess, number: int, patience_s: float, attempt: _Attempt
    ) -> PlanResult:
        deadline_s = time.perf_counter() + patience_s
        while True:
            report = await process.next_report(max(0.0, deadline_s - time.perf_counter()))
            if report is None:
                await process.stop()
                return attempt.failed(process.name, "its process ended in the middle of a solve")
            if isinstance(report, Improved) and report.number == number:
                attempt.improve(report.plan, report.at_s)
            elif isinstance(report, Bounded) and report.number == number:
                attempt.bound(report.bound)
            elif isinstance(report, Done) and report.number == number:
                return attempt.take(result_of(report))


class _Attempt:
    """One solve on its way down the ladder: the best plan so far, by our own judgement."""

    def __init__(self, problem: Problem, warm: Plan | None, on_improvement: OnImprovement | None):
        self.problem = problem
        self.warm = warm
        self.on_improvement = on_improvement
        self.plan: Plan | None = None
        self.objective = float("inf")
        self.lower_bound: float | None = None
        self.history: list[tuple[float, float]] = []
        self.steps: list[StepDown] = []
        self.setup_s = 0.0
        self.begin_s = time.perf_counter()

    def improve(self, plan: Plan, at_s: float) -> bool:
        """Keep a plan if it is one, and better; False if it is no plan."""
        if check(self.problem, plan) is not None:
            return False
        objective = evaluate(self.problem, plan).objective
        if self.plan is None or objective < self.objective - 1e-9 * abs(self.objective):
            self.plan, self.objective = plan, objective
            self.history.append((at_s, objective))
            if self.on_improvement is not None:
                self.on_improvement(plan, objective)
        return True

    def bound(self, bound: float) -> None:
        """Keep a bound that came before the end."""
        self.lower_bound = bound if self.lower_bound is None else max(bound, self.lower_bound)

    def step_down(self, backend: str, termination: Termination, reason: str) -> None:
        """Note that a backend could not answer."""
        self.steps.append(StepDown(backend=backend, termination=termination, reason=reason))

    def failed(self, backend: str, reason: str) -> PlanResult:
        """A backend's answer in its stead."""
        return PlanResult(
            plan=None,
            objective=float("inf"),
            lower_bound=None,
            termination=Termination.ERROR,
            backend=backend,
            detail=reason,
        )

    def take(self, result: PlanResult) -> PlanResult:
        """Check and score a backend's final answer."""
        self.setup_s += result.setup_s
        self.steps += result.step_downs
        if result.lower_bound is not None:
            self.bound(result.lower_bound)
        if result.plan is not None and not self.improve(result.plan, result.wall_s):
            return self.failed(result.backend, "its answer is not a plan")
        return result

    def finish(self, result: PlanResult, backend: str) -> PlanResult:
        """The answer: the best plan seen, whoever found it."""
        assert self.plan is not None
        wall_s = result.wall_s if result.plan is not None else time.perf_counter() - self.begin_s
        if self.warm is not None:
            self.improve(repair(self.problem, self.warm), wall_s)
        bound = self.lower_bound
        if bound is not None:
            bound = min(bound, self.objective)
        proven = bound is not None and self.objective - bound <= 1e-7 * max(
            1.0, abs(self.objective)
        )
        termination = result.termination
        if proven:
            termination = Termination.OPTIMAL
        elif termination is Termination.OPTIMAL:
            termination = Termination.LIMIT
        return replace(
            result,
            plan=self.plan,
            objective=self.objective,
            lower_bound=bound,
            termination=termination,
            backend=backend,
            wall_s=wall_s,
            setup_s=self.setup_s,
            history=tuple(self.history),
            step_downs=tuple(self.steps),
        )

    async def last_resort(self) -> PlanResult:
        """When no process answers: insertion, in this one."""
        begin_s = time.perf_counter()
        if self.warm is None:
            plan = await asyncio.to_thread(greedy, self.problem)
        else:
            plan = await asyncio.to_thread(repair, self.problem, self.warm)
        wall_s = time.perf_counter() - begin_s
        self.improve(plan, wall_s)
        answer = self.failed("greedy", "no backend process answered")
        return replace(self.finish(answer, "greedy"), termination=Termination.LIMIT, wall_s=wall_s)
