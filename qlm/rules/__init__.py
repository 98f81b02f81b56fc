"""The rules of thumb of planner, estimator and executor, and of batches, beyond the paper, and what each is worth.

docs/rules.md lists them. Rules that meet failures (trust, fullness, leases) are no matter of attainment and not among them.
"""

from __future__ import annotations

from qlm.rules.batching import BATCHES
from qlm.rules.estimating import ESTIMATOR
from qlm.rules.executing import EXECUTOR
from qlm.rules.planning import GROUPING, PLANNER
from qlm.rules.registry import Rule
from qlm_core.errors import ConfigError

RULES = (*GROUPING, *PLANNER, *ESTIMATOR, *EXECUTOR, *BATCHES)
_BY_NAME = {rule.name: rule for rule in RULES}


def rule_named(name: str) -> Rule:
    """A rule. Raises ConfigError if there is none of that name."""
    if name not in _BY_NAME:
        raise ConfigError(f"rule: {name!r} is unknown. docs/rules.md lists them.")
    return _BY_NAME[name]


def is_rule(name: str) -> bool:
    """Whether there is a rule of that name."""
    return name in _BY_NAME
