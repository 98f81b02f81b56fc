"""What all tests have in common.

Tests that need a real vLLM run only when asked for: `pytest -m vllm` or `make test-vllm`. No property has a deadline: how long
an example takes says more of what else a machine does than of the code.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# As in `qlm.__main__`, and before anything loads gRPC: tests have clients of it and start processes.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

settings.register_profile("qlm", deadline=None)
settings.load_profile("qlm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vllm" in config.option.markexpr:
        return
    asked_for = [item for item in items if item.get_closest_marker("vllm") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in asked_for])
    items[:] = asked_for
