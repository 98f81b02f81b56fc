"""How long fuzzing takes: a moment and the same each time, or with QLM_FUZZ_EXAMPLES as long as one likes and new each time."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("QLM_FUZZ_EXAMPLES", "0"))

_UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile(
    "fuzz-briefly",
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=_UNHURRIED,
)
settings.register_profile(
    "fuzz-long",
    max_examples=EXAMPLES or 1,
    deadline=None,
    print_blob=True,
    suppress_health_check=_UNHURRIED,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    profile = settings.get_profile("fuzz-long" if EXAMPLES else "fuzz-briefly")
    for item in items:
        test = getattr(item, "function", None)
        if "tests/fuzz" in item.path.as_posix() and hasattr(test, "hypothesis"):
            settings(profile)(test)
