"""Servers that the tests share: each is forked once from one process that has imported vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import vllm_servers
from benchmarks.vllm_servers import Server, Zygote
from tests.vllm.beds import LLAMA, QWEN


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm" in item.path.as_posix():
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    reason = vllm_servers.missing()
    if reason:
        pytest.skip(reason)
    with vllm_servers.zygote() as opened:
        yield opened


@pytest.fixture(scope="session")
def four_slots(zygote: Zygote) -> Server:
    """A server that runs four requests at a time."""
    return zygote.start(LLAMA, "--max-num-seqs=4", "--scheduling-policy=priority")


@pytest.fixture(scope="session")
def other_model(zygote: Zygote) -> Server:
    return zygote.start(QWEN, "--max-num-seqs=4", "--scheduling-policy=priority")
