"""How long fuzzing takes: a moment and the same each time, or with QLM_FUZZ_EXAMPLES as long as one likes and new each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("QLM_FUZZ_EXAMPLES", "0"))
_BRIEF_EXAMPLES = 40
_UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

fuzzed = (
    settings(
        max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=_UNHURRIED
    )
    if EXAMPLES
    else settings(
        max_examples=_BRIEF_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=_UNHURRIED,
    )
)
"""Goes on every test that draws what it sends."""
