"""What crosses the pipe between the pool and a backend process: orders in, reports out, as frames.

A frame is four bytes of length and a msgpack document. Arrays travel as (type, shape, bytes).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import msgspec
import numpy as np

from qlm_core.planning import Limits, Plan, PlanResult, Problem, StepDown, Termination

FRAME_BYTES_MAX = 256 * 1024 * 1024


class GurobiLicence(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of a Gurobi web licence; empty = whatever Gurobi finds by itself."""

    access_id: str = ""
    secret: str = ""
    license: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One solve.

    budget_s: how long in all. search_s: how long to search before proving, where a backend does
    both.
    """

    number: int
    backend: str
    formulation: str = "paths"
    budget_s: float
    search_s: float
    work: int | None = None
    seed: int = 0
    warm: tuple[tuple[int, ...], ...] | None = None
    duals: tuple[float, ...] = ()
    licence: GurobiLicence = GurobiLicence()
    problem: dict[str, Any] = {}

    @property
    def limits(self) -> Limits:
        """The limits of the whole solve."""
        return Limits(wall_s=self.budget_s, work=self.work)


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The process can take orders; said again whenever more is known about its kernels.

    Compiling means that there are no compiled ones on disk yet, interpreted that there never will.
    """

    kernels: Literal["unknown", "compiling", "compiled", "interpreted"]


class Improved(msgspec.Struct, frozen=True, kw_only=True, tag="improved"):
    """A better plan."""

    number: int
    plan: tuple[tuple[int, ...], ...]
    objective: float
    at_s: float


class Bounded(msgspec.Struct, frozen=True, kw_only=True, tag="bounded"):
    """A proven bound."""

    number: int
    bound: float


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The end of a solve (a `PlanResult` by its fields)."""

    number: int
    plan: tuple[tuple[int, ...], ...] | None
    objective: float | None
    lower_bound: float | None
    termination: str
    backend: str
    wall_s: float
    setup_s: float
    work: int
    history: tuple[tuple[float, float], ...]
    duals: tuple[float, ...]
    queue_values: tuple[float, ...]
    capacity_values: tuple[float, ...]
    needed: tuple[int | None, ...]
    detail: str
    step_downs: tuple[tuple[str, str, str], ...]


Report = Ready | Improved | Bounded | Done

_ORDER = msgspec.msgpack.Decoder(Order)
_REPORT = msgspec.msgpack.Decoder(Report)


def pack(message: Order | Report) -> bytes:
    """A message as a frame."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def read_order(body: bytes) -> Order:
    """The order in a frame's body."""
    return _ORDER.decode(body)


def read_report(body: bytes) -> Report:
    """The report in a frame's body."""
    report: Report = _REPORT.decode(body)
    return report


def problem_to_wire(problem: Problem) -> dict[str, Any]:
    """A problem as plain values."""
    wire: dict[str, Any] = {}
    for item in fields(problem):
        value = getattr(problem, item.name)
        if isinstance(value, np.ndarray):
            value = (value.dtype.str, list(value.shape), value.tobytes())
        wire[item.name] = value
    return wire


def problem_from_wire(wire: dict[str, Any]) -> Problem:
    """The problem again."""
    values: dict[str, Any] = {}
    for name, value in wire.items():
        if isinstance(value, list | tuple):
            kind, shape, data = value
            # A writable copy: compiled kernels would treat read-only arrays as another type.
            values[name] = np.frombuffer(bytearray(data), kind).reshape(shape)
        else:
            values[name] = value
    return Problem(**values)


def done_of(number: int, result: PlanResult) -> Done:
    """A result as a message."""
    return Done(
        number=number,
        plan=result.plan,
        objective=result.objective if result.plan is not None else None,
        lower_bound=result.lower_bound,
        termination=result.termination.value,
        backend=result.backend,
        wall_s=result.wall_s,
        setup_s=result.setup_s,
        work=result.work,
        history=result.history,
        duals=result.duals,
        queue_values=result.queue_values,
        capacity_values=result.capacity_values,
        needed=result.needed,
        detail=result.detail,
        step_downs=tuple(
            (step.backend, step.termination.value, step.reason) for step in result.step_downs
        ),
    )


def result_of(done: Done) -> PlanResult:
    """The result in a message."""
    plan: Plan | None = done.plan
    return PlanResult(
        plan=plan,
        objective=done.objective if done.objective is not None else float("inf"),
        lower_bound=done.lower_bound,
        termination=Termination(done.termination),
        backend=done.backend,
        wall_s=done.wall_s,
        setup_s=done.setup_s,
        work=done.work,
        history=done.history,
        duals=done.duals,
        queue_values=done.queue_values,
        capacity_values=done.capacity_values,
        needed=done.needed,
        detail=done.detail,
        step_downs=tuple(
            StepDown(backend=name, termination=Termination(how), reason=why)
            for name, how, why in done.step_downs
        ),
    )
