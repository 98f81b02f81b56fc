"""The planner backends: one row a backend, nothing imported until it is asked for.

A backend is a function `solve(problem, order, report) -> PlanResult` that runs in a process of its
own (see `worker`), because HiGHS and OR-Tools cannot be loaded together, and because native code
that crashes or hangs must not take the service along.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from qlm_core.errors import QlmError


class Row(NamedTuple):
    """Where a backend is, and the library it needs ("" = none)."""

    library: str
    target: str
    falls_back_to: tuple[str, ...]


BACKENDS: dict[str, Row] = {
    "auto": Row("", "solver.backends.auto:solve", ("search", "greedy")),
    "gurobi": Row("gurobipy", "solver.backends.gurobi:solve", ("highs", "search", "greedy")),
    "highs": Row("highspy", "solver.backends.highs:solve", ("search", "greedy")),
    "pulp": Row("pulp", "solver.backends.pulp:solve", ("search", "greedy")),
    "cpsat": Row("ortools", "solver.backends.cpsat:solve", ("search", "greedy")),
    "search": Row("", "solver.backends.local:solve_by_search", ("greedy",)),
    "greedy": Row("", "solver.backends.local:solve_greedily", ()),
}


class UnknownBackend(QlmError):
    """No such backend; the message lists those there are."""


def row_of(name: str) -> Row:
    """The row of a backend.

    Raises:
        UnknownBackend: there is none of that name.
    """
    try:
        return BACKENDS[name]
    except KeyError:
        known = ", ".join(BACKENDS)
        raise UnknownBackend(f"backend: {name!r} is not one of {known}") from None


def is_available(name: str) -> bool:
    """Whether the library of a backend is installed; imports nothing and takes no licence."""
    library = row_of(name).library
    return not library or importlib.util.find_spec(library) is not None


def libraries_of(name: str) -> tuple[str, ...]:
    """The installed libraries that a backend may use."""
    if name == "auto":
        return (*libraries_of("gurobi"), *libraries_of("highs"))
    library = row_of(name).library
    return (library,) if library and is_available(name) else ()


def available() -> tuple[str, ...]:
    """The backends whose libraries are installed."""
    return tuple(name for name in BACKENDS if is_available(name))


def load(name: str) -> Callable[..., Any]:
    """Import one backend."""
    module, attribute = row_of(name).target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function
