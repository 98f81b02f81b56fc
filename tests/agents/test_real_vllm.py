"""The engine contract on a real vLLM, on a CPU: opt-in, after `deploy/vllm-cpu/prepare.py`.

    pytest -m vllm tests/agents

The processes are started once for the whole suite, since that takes most of the time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qlm_core.executor import EngineReady
from tests.agents import test_engine_contract as contract
from tests.agents.harness import Harness, VllmHarness

ROOT = Path(__file__).parents[2]
MODELS = {name: ROOT / "run" / "models" / name for name in ("tiny-llama", "tiny-qwen")}

pytestmark = pytest.mark.vllm


class RealVllmHarness(VllmHarness):
    models = tuple(MODELS)
    paths = {name: str(path) for name, path in MODELS.items()}
    exact_text = False
    gpu = "cpu"


async def test_the_contract_holds(monkeypatch: pytest.MonkeyPatch):
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists() or not all(path.is_dir() for path in MODELS.values()):
        pytest.skip("no vLLM here; run deploy/vllm-cpu/prepare.py first")
    monkeypatch.chdir(ROOT)
    demo = yaml.safe_load((ROOT / "deploy" / "vllm-cpu" / "config.yaml").read_text())
    section = demo["agents"][0]["engine"]["vllm"]
    kept = {key: section[key] for key in ("command", "args", "env", "max_num_seqs")}
    monkeypatch.setattr("tests.agents.harness.WAIT_S", 120.0)
    async with RealVllmHarness.started(**kept) as harness:
        await run_all(harness)


async def run_all(harness: Harness) -> None:
    """Every test of the contract, on one engine; each hears only its own events."""
    await contract.test_starts_with_its_first_model_awake_and_a_profile_of_each(harness)
    first = harness.heard

    async def fresh() -> Harness:
        first.events.clear()
        return harness

    for test in (
        contract.test_many_jobs_at_once,
        contract.test_after_abort_nothing_more_comes_and_others_go_on,
        contract.test_abort_of_what_is_not_there_is_ignored,
        contract.test_an_unreadable_body_is_refused,
        contract.test_swaps_and_serves_the_other_model,
    ):
        await test(await fresh())
    for chat in (False, True):
        await contract.test_a_job_streams_all_its_tokens_then_ends_once(await fresh(), chat)
        await contract.test_a_resumed_job_continues_where_it_stopped(await fresh(), chat)
    await contract.test_a_crash_loses_jobs_and_is_told(await fresh())
    await first.until(EngineReady)
    await contract.test_many_jobs_at_once(await fresh())
    await contract.test_stop_ends_everything_and_can_be_repeated(await fresh())
