"""Planning problems as JSON: the format of the shared benchmark instances, and our own extension of
it.

The format states one objective per file (alpha, beta, kappa, eps), groups as `model`, `n`, `w`,
`d`, queues as `loaded` (-1 = nothing), `busy`, `queue_type`, and per queue type `p_by_type` (null =
does not fit) and `swap_by_type` (last row = nothing loaded). Optional keys of ours: `tail_by_type`,
`ramp`, `home`, `move_cost`, `pinned`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qlm_core.planning.problem import InvalidProblem, Problem
from qlm_core.planning.score import Plan

_REQUIRED = ("model", "n", "w", "d", "loaded", "busy", "queue_type", "p_by_type", "swap_by_type")


def from_instance(document: Mapping[str, Any]) -> Problem:
    """The problem in a JSON document: a whole instance file or its bare "problem" object.

    Raises:
        InvalidProblem: a key is missing or holds something unusable; the message names it.
    """
    body = document.get("problem", document) if isinstance(document, Mapping) else None
    if not isinstance(body, Mapping):
        raise InvalidProblem("problem: must be a JSON object")
    missing = [key for key in _REQUIRED if key not in body]
    if missing:
        raise InvalidProblem(f"{missing[0]}: missing from the problem")
    durations = _by_type(body, "p_by_type", len(_sequence(body, "model")))
    tails = np.zeros(0)
    if body.get("tail_by_type") is not None:
        tails = _by_type(body, "tail_by_type", len(body["model"]))
    try:
        swap = np.asarray(body["swap_by_type"], np.float64)
    except (TypeError, ValueError):
        raise InvalidProblem(
            "swap_by_type: must hold one [models + 1, models] table a type"
        ) from None
    return Problem(
        group_model=_integers(body, "model"),
        group_requests=_integers(body, "n"),
        group_weight=_floats(body, "w"),
        due_s=_floats(body, "d"),
        duration_s=durations,
        queue_class=_integers(body, "queue_type"),
        loaded_model=_integers(body, "loaded"),
        busy_s=_floats(body, "busy"),
        swap_s=swap,
        alpha=_number(body, "alpha", 0.0),
        beta=_number(body, "beta", 1.0),
        kappa=_number(body, "kappa", 1.0),
        eps=_number(body, "eps", 1e-3),
        tail_s=tails,
        ramp_s=_floats(body, "ramp") if "ramp" in body else np.zeros(0),
        home=_integers(body, "home") if "home" in body else np.zeros(0, np.int64),
        move_cost=_floats(body, "move_cost") if "move_cost" in body else np.zeros(0),
        pinned=np.asarray(_sequence(body, "pinned"), np.bool_)
        if "pinned" in body
        else np.zeros(0, np.bool_),
        name=str(body.get("name", "")),
    )


def to_instance(problem: Problem) -> dict[str, Any]:
    """The bare "problem" object of a file; `from_instance` reads it back exactly."""
    return {
        "name": problem.name,
        "alpha": problem.alpha,
        "beta": problem.beta,
        "kappa": problem.kappa,
        "eps": problem.eps,
        "model": problem.group_model.tolist(),
        "n": problem.group_requests.tolist(),
        "w": problem.group_weight.tolist(),
        "d": problem.due_s.tolist(),
        "loaded": problem.loaded_model.tolist(),
        "busy": problem.busy_s.tolist(),
        "queue_type": problem.queue_class.tolist(),
        "p_by_type": [
            [None if math.isinf(value) else value for value in row]
            for row in problem.duration_s.T.tolist()
        ],
        "swap_by_type": problem.swap_s.tolist(),
        "tail_by_type": problem.tail_s.T.tolist(),
        "ramp": problem.ramp_s.tolist(),
        "home": problem.home.tolist(),
        "move_cost": problem.move_cost.tolist(),
        "pinned": problem.pinned.tolist(),
    }


def plan_from_json(document: Any) -> Plan:
    """A plan from JSON: a bare list per queue, an object with "plan", or an instance with
    best.plan.

    Raises:
        InvalidProblem: none of these, or something other than group numbers in it.
    """
    found = document
    if isinstance(document, Mapping):
        found = document.get("plan")
        if found is None and isinstance(document.get("best"), Mapping):
            found = document["best"].get("plan")
    if not isinstance(found, list) or not all(isinstance(queue, list) for queue in found):
        raise InvalidProblem("plan: must be a list of group numbers for every queue")
    for queue in found:
        for group in queue:
            if not isinstance(group, int) or isinstance(group, bool):
                raise InvalidProblem(f"plan: {group!r} is not a group number")
    return tuple(tuple(queue) for queue in found)


def _sequence(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body[key]
    if not isinstance(value, list):
        raise InvalidProblem(f"{key}: must be a list")
    return value


def _floats(body: Mapping[str, Any], key: str) -> Any:
    try:
        return np.asarray(_sequence(body, key), np.float64)
    except (TypeError, ValueError):
        raise InvalidProblem(f"{key}: must be a list of numbers") from None


def _integers(body: Mapping[str, Any], key: str) -> Any:
    values = _sequence(body, key)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InvalidProblem(f"{key}: must be a list of whole numbers")
    return np.asarray(values, np.int64)


def _number(body: Mapping[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidProblem(f"{key}: must be a number")
    return float(value)


def _by_type(body: Mapping[str, Any], key: str, groups: int) -> Any:
    rows = _sequence(body, key)
    try:
        table = np.array(
            [[math.inf if value is None else float(value) for value in row] for row in rows],
            np.float64,
        )
    except (TypeError, ValueError):
        raise InvalidProblem(
            f"{key}: must hold one number (or null) a group for every type"
        ) from None
    if table.size == 0:
        table = table.reshape(len(rows), 0)
    if table.ndim != 2 or table.shape[1] != groups:
        raise InvalidProblem(f"{key}: every type needs {groups} entries, one a group")
    return np.ascontiguousarray(table.T)
