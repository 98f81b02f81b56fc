"""The planning problem as arrays: what waits, what could serve it, and what each outcome costs.

A `Problem` is a snapshot. N request groups wait; G virtual queues, each of one of C queue classes
(same GPU and profile), serve them in order. Planning minimises

    sum_i W_i (alpha P[i is late] + beta tardiness_i + eps end_i) + kappa * swap seconds
        + sum of move_cost_i over the groups that leave their home queue

where W_i = requests x weight. A group ends when it stops occupying its queue; it is *measured* at
end + tail_s, so that a tail of -duration makes lateness a matter of starting late (TTFT) and a tail
of zero a matter of completing late. A ramp makes the probability of being late rise linearly from 0
to 1 over [due - ramp/2, due + ramp/2]; without one, being late is a step at the due time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlm_core.errors import QlmError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOTHING_LOADED = -1
"""The model number of an empty GPU. As an index it picks the last row of `swap_s`, which is its
row.
"""

LATE_TOLERANCE_S = 1e-9
"""Times within this of the due time are not late: sums of floats must not decide."""

MAX_GROUPS = 100_000
MAX_QUEUES = 10_000


class InvalidProblem(QlmError):
    """A planning problem that cannot be used; the message names the field."""


class UnplaceableGroup(InvalidProblem):
    """A group that fits no queue (or not the queue it is pinned to).

    Attributes:
        group: its number.
        model: the number of its model.
    """

    def __init__(self, group: int, model: int, why: str):
        super().__init__(f"group {group} (model {model}) {why}")
        self.group = group
        self.model = model


def _empty_floats() -> Floats:
    return np.zeros(0)


def _empty_ints() -> Ints:
    return np.zeros(0, np.int64)


def _empty_bools() -> Bools:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One snapshot to plan. Shapes: N groups, G queues, C queue classes, M models.

    Fields left empty take their neutral value: no tail, no ramp, no home, no pins.

    Raises:
        InvalidProblem: a field has the wrong shape or holds a value it must not.
        UnplaceableGroup: a group fits on no queue, or is pinned where it does not fit.
    """

    group_model: Ints
    """[N] the model each group needs."""
    group_requests: Ints
    """[N] requests in the group."""
    group_weight: Floats
    """[N] weight of one request of the group."""
    due_s: Floats
    """[N] slack from now until the group is late; negative when it already is."""
    duration_s: Floats
    """[N, C] how long the group occupies a queue of each class; inf where it does not fit."""
    queue_class: Ints
    """[G] the class of each queue."""
    loaded_model: Ints
    """[G] the model each queue holds now, or NOTHING_LOADED."""
    busy_s: Floats
    """[G] how long each queue is still busy with what has started."""
    swap_s: Floats
    """[C, M + 1, M] time to go from one model to another; the last row is an empty GPU."""
    alpha: float = 0.0
    """Cost of one weighted late request."""
    beta: float = 1.0
    """Cost of one weighted request being late by one second."""
    kappa: float = 1.0
    """Cost of one second of model swapping."""
    eps: float = 1e-3
    """Cost of one weighted request ending one second later; breaks ties towards early completion.
    """
    tail_s: Floats = field(default_factory=_empty_floats)
    """[N, C] added to a group's end before it is compared with `due_s`."""
    ramp_s: Floats = field(default_factory=_empty_floats)
    """[N] width of the uncertainty of a group's wait, around its due time."""
    home: Ints = field(default_factory=_empty_ints)
    """[N] the queue of each group in the plan in force, or -1."""
    move_cost: Floats = field(default_factory=_empty_floats)
    """[N] cost of planning the group on a queue that is not its home."""
    pinned: Bools = field(default_factory=_empty_bools)
    """[N] groups that stay on their home, ahead of all that are not pinned, in order of number."""
    empty_s: Floats = field(default_factory=_empty_floats)
    """[C] what `busy_s` of one more queue of each class would be, empty and up; negative if it has more room than any there is.
    """
    name: str = ""

    def __post_init__(self) -> None:
        _normalise(self)
        _validate(self)

    @property
    def groups(self) -> int:
        """N, the number of request groups."""
        return len(self.group_model)

    @property
    def queues(self) -> int:
        """G, the number of virtual queues."""
        return len(self.queue_class)

    @property
    def models(self) -> int:
        """M, the number of models."""
        return int(self.swap_s.shape[2])

    @property
    def classes(self) -> int:
        """C, the number of queue classes."""
        return int(self.swap_s.shape[0])

    @property
    def group_total_weight(self) -> Floats:
        """[N] W = requests x weight."""
        return self.group_requests * self.group_weight

    def fits(self) -> Bools:
        """[N, G] where each group could be placed."""
        return np.isfinite(self.duration_s)[:, self.queue_class]


_INTEGERS = ("group_model", "group_requests", "queue_class", "loaded_model", "home")


def _normalise(problem: Problem) -> None:
    """Fill the fields left empty and give every array its type."""
    groups = len(problem.group_model)
    neutral: dict[str, NDArray[Any]] = {
        "tail_s": np.zeros((groups, np.shape(problem.swap_s)[0] if np.ndim(problem.swap_s) else 0)),
        "ramp_s": np.zeros(groups),
        "home": np.full(groups, -1, np.int64),
        "move_cost": np.zeros(groups),
        "pinned": np.zeros(groups, np.bool_),
        "empty_s": np.zeros(np.shape(problem.swap_s)[0] if np.ndim(problem.swap_s) else 0),
    }
    for item in fields(problem):
        value = getattr(problem, item.name)
        if item.name in ("alpha", "beta", "kappa", "eps", "name"):
            continue
        if item.name in neutral and np.size(value) == 0:
            value = neutral[item.name]
        kind: type = np.float64
        if item.name in _INTEGERS:
            kind = np.int64
        elif item.name == "pinned":
            kind = np.bool_
        try:
            array: NDArray[Any] = np.ascontiguousarray(value, kind)
        except (TypeError, ValueError) as error:
            raise InvalidProblem(
                f"{item.name}: not an array of {kind.__name__} ({error})"
            ) from None
        object.__setattr__(problem, item.name, array)


def _require(holds: Any, name: str, what: str) -> None:
    if not holds:
        raise InvalidProblem(f"{name}: {what}")


def _validate(problem: Problem) -> None:
    swap = problem.swap_s
    _require(
        swap.ndim == 3 and swap.shape[1] == swap.shape[2] + 1,
        "swap_s",
        f"must have shape [classes, models + 1, models], has {list(swap.shape)}",
    )
    groups, queues = problem.groups, problem.queues
    classes, _, models = swap.shape
    _require(groups <= MAX_GROUPS, "group_model", f"at most {MAX_GROUPS} groups, has {groups}")
    _require(queues <= MAX_QUEUES, "queue_class", f"at most {MAX_QUEUES} queues, has {queues}")
    shapes: dict[str, tuple[int, ...]] = {
        "group_model": (groups,),
        "group_requests": (groups,),
        "group_weight": (groups,),
        "due_s": (groups,),
        "duration_s": (groups, classes),
        "queue_class": (queues,),
        "loaded_model": (queues,),
        "busy_s": (queues,),
        "tail_s": (groups, classes),
        "ramp_s": (groups,),
        "home": (groups,),
        "move_cost": (groups,),
        "pinned": (groups,),
        "empty_s": (classes,),
    }
    for name, shape in shapes.items():
        actual = getattr(problem, name).shape
        if name in ("duration_s", "tail_s") and groups == 0:
            continue
        _require(actual == shape, name, f"must have shape {list(shape)}, has {list(actual)}")
    _validate_values(problem, models, queues, classes)
    _validate_placement(problem)


def _validate_values(problem: Problem, models: int, queues: int, classes: int) -> None:
    for name, low, high in (
        ("group_model", 0, models),
        ("queue_class", 0, classes),
        ("loaded_model", NOTHING_LOADED, models),
        ("home", -1, queues),
        ("group_requests", 0, 1 << 40),
    ):
        values = getattr(problem, name)
        if values.size:
            outside = (values < low) | (values >= high)
            if outside.any():
                at = int(np.flatnonzero(outside)[0])
                raise InvalidProblem(
                    f"{name}[{at}]: must be in {low} .. {high - 1}, is {values[at]}"
                )
    times = (
        "group_weight",
        "due_s",
        "busy_s",
        "swap_s",
        "tail_s",
        "ramp_s",
        "move_cost",
        "empty_s",
    )
    for name in times:
        values = getattr(problem, name)
        _require(bool(np.isfinite(values).all()), name, "must be finite everywhere")
        if name not in ("due_s", "tail_s", "empty_s"):
            _require(values.size == 0 or values.min() >= 0, name, "must not be negative")
    durations = problem.duration_s
    _require(
        durations.size == 0 or (not np.isnan(durations).any() and durations.min() >= 0),
        "duration_s",
        "must be >= 0 (inf where the group does not fit)",
    )
    diagonal = problem.swap_s[:, np.arange(models), np.arange(models)]
    _require(not diagonal.any(), "swap_s", "going from a model to itself must take 0 s")
    for name in ("alpha", "beta", "kappa", "eps"):
        value = getattr(problem, name)
        _require(np.isfinite(value) and value >= 0, name, f"must be finite and >= 0, is {value}")


def _validate_placement(problem: Problem) -> None:
    if problem.groups == 0:
        return
    present = np.zeros(problem.classes, np.bool_)
    present[problem.queue_class] = True
    placeable = np.isfinite(problem.duration_s[:, present]).any(axis=1)
    if not placeable.all():
        group = int(np.flatnonzero(~placeable)[0])
        raise UnplaceableGroup(
            group,
            int(problem.group_model[group]),
            "fits on no queue: its duration_s is infinite on every class that has a queue",
        )
    if problem.pinned.any():
        for group in np.flatnonzero(problem.pinned).tolist():
            home = int(problem.home[group])
            model = int(problem.group_model[group])
            if home < 0:
                raise UnplaceableGroup(group, model, "is pinned but has no home queue")
            if not np.isfinite(problem.duration_s[group, problem.queue_class[home]]):
                raise UnplaceableGroup(
                    group, model, f"is pinned to queue {home}, where it cannot run"
                )
