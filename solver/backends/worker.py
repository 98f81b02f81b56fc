"""A backend process: reads orders from standard input, writes reports to standard output.

The compiled kernels are loaded in a thread beside the orders, and compiled first, in a process of
their own, if they are not on disk; until they are ready the interpreted ones serve, so that
compiling never delays a plan. Whatever libraries print goes to standard error: the reports have the
real standard output to themselves.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from typing import BinaryIO

from qlm_core.errors import QlmError
from qlm_core.planning import Plan, PlanResult, Termination
from qlm_core.planning.compiled import compiled_kernels, compiled_pricing
from solver.backends import is_available, libraries_of, load, row_of, warm_up
from solver.backends.order import (
    FRAME_BYTES_MAX,
    Bounded,
    Improved,
    Order,
    Ready,
    Report,
    done_of,
    pack,
    problem_from_wire,
    read_order,
)
from solver.backends.report import Desk, failure


class Worker:
    """One process's loop; the pool kills it when it is late."""

    def __init__(self, backend: str, orders: BinaryIO, reports: BinaryIO):
        self._backend = backend
        self._orders = orders
        self._reports = reports
        self._writing = threading.Lock()
        self._compiled = False

    def run(self) -> None:
        """Serve until the orders end."""
        threading.Thread(target=self._prepare, daemon=True).start()
        self._tell(Ready(kernels="unknown"))
        while (order := self._next()) is not None:
            self._serve(order)

    def _next(self) -> Order | None:
        head = self._orders.read(4)
        size = int.from_bytes(head, "big")
        if len(head) < 4 or size > FRAME_BYTES_MAX:
            return None
        return read_order(self._orders.read(size))

    def _tell(self, report: Report) -> None:
        with self._writing:
            try:
                self._reports.write(pack(report))
                self._reports.flush()
            except BrokenPipeError:
                # The solver is gone: nobody wants an answer, and there is nothing to put in order.
                os._exit(0)

    def _prepare(self) -> None:
        """Load the backend's libraries and the compiled kernels."""
        for library in libraries_of(self._backend):
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        if not warm_up.on_disk():
            self._tell(Ready(kernels="compiling"))
            warm_up.compile_aside()
        if warm_up.load():
            self._compiled = True
            self._tell(Ready(kernels="compiled"))
        else:
            self._tell(Ready(kernels="interpreted"))

    def _serve(self, order: Order) -> None:
        begin_s = time.perf_counter()
        problem = problem_from_wire(order.problem)
        solve = None
        if is_available(order.backend):
            solve = load(order.backend)
        setup_s = time.perf_counter() - begin_s
        begin_s = time.perf_counter()

        def improved(plan: Plan, objective: float) -> None:
            at_s = time.perf_counter() - begin_s
            self._tell(Improved(number=order.number, plan=plan, objective=objective, at_s=at_s))

        desk = Desk(
            clock=time.perf_counter,
            kernels=compiled_kernels() if self._compiled else None,
            pricing=compiled_pricing() if self._compiled else None,
            on_improvement=improved,
            on_bound=lambda bound: self._tell(Bounded(number=order.number, bound=bound)),
        )
        result: PlanResult
        if solve is None:
            library = row_of(order.backend).library
            result = failure(order.backend, Termination.UNAVAILABLE, f"{library} is not installed")
        else:
            try:
                result = solve(problem, order, desk)
            except (
                QlmError,
                ArithmeticError,
                ImportError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as e:
                # A library's surprise is this backend's failure, not the process's.
                result = failure(order.backend, Termination.ERROR, f"{type(e).__name__}: {e}")
        done = done_of(order.number, result)
        self._tell(_with_setup(done, setup_s))


def _with_setup(done: Report, setup_s: float) -> Report:
    import msgspec

    return msgspec.structs.replace(done, setup_s=done.setup_s + setup_s)  # type: ignore[union-attr]


def main() -> None:
    """Entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(sys.argv[1], sys.stdin.buffer, _own_output()).run()


def _own_output() -> BinaryIO:
    """Standard output for reports alone: what libraries print there, such as banners, goes nowhere."""
    reports = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return reports


if __name__ == "__main__":
    main()
