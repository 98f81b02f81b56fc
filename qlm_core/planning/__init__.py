"""Planning: from a snapshot of groups and queues to an order for every queue.

`Problem` in, `Plan` out, `evaluate` the one judge. `repair` and `greedy` answer within
milliseconds; `search` improves; `bound` proves. Nothing here knows a solver library, a clock or a
process.
"""

from qlm_core.planning.explain import Alternative, Explanation, capacity_values, explain
from qlm_core.planning.insertion import greedy, repair
from qlm_core.planning.instances import from_instance, plan_from_json, to_instance
from qlm_core.planning.levelling import level
from qlm_core.planning.problem import (
    NOTHING_LOADED,
    InvalidProblem,
    Problem,
    UnplaceableGroup,
)
from qlm_core.planning.result import Limits, PlanResult, StepDown, Termination
from qlm_core.planning.score import Plan, Score, as_plan, check, evaluate

__all__ = [
    "NOTHING_LOADED",
    "Alternative",
    "Explanation",
    "InvalidProblem",
    "Limits",
    "Plan",
    "PlanResult",
    "Problem",
    "Score",
    "StepDown",
    "Termination",
    "UnplaceableGroup",
    "as_plan",
    "capacity_values",
    "check",
    "evaluate",
    "explain",
    "from_instance",
    "greedy",
    "level",
    "plan_from_json",
    "repair",
    "to_instance",
]
