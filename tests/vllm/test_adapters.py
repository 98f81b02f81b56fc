"""LoRA adapters on a real vLLM: each request is answered by its own, in one batch with the others."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from benchmarks.vllm_servers import MODELS, ROOT, missing
from qlm_core.config import Config
from qlm_core.executor import JobDone, JobLost, SwapFailed
from tests.agents.harness import Harness, free_ports, running

BASE, ADAPTERS = "tiny-llama", ("tiny-llama-a", "tiny-llama-b")


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the demonstration says of vLLM."""
    if reason := missing():
        pytest.skip(reason)
    monkeypatch.chdir(ROOT)
    demo = yaml.safe_load((ROOT / "deploy" / "vllm-cpu" / "config.yaml").read_text())
    found = demo["agents"][0]["engine"]["vllm"]
    monkeypatch.setattr("tests.agents.harness.WAIT_S", 120.0)
    return {key: found[key] for key in ("command", "args", "env", "max_num_seqs")}


async def test_a_base_and_its_adapters_answer_each_in_its_own_way(section: dict[str, Any]):
    """Interleaved in one batch, and with one place fewer than adapters, as each does alone."""
    adapters = (*ADAPTERS, "absent")
    names = (BASE, *adapters)
    models: dict[str, Any] = {BASE: {"path": str(MODELS / BASE), "max_model_len": 2048}}
    for name in adapters:
        models[name] = {"base": BASE, "adapter": str(MODELS / name)}
    section |= {"port_base": free_ports(1), "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": 8}
    engine = {"kind": "vllm", "vllm": section}
    agent = {"name": "agent", "gpu": "cpu", "models": names, "engine": engine}
    config = Config.from_mapping({"models": models, "agents": [agent]})
    async with running(Harness, config) as harness:
        served = names[:3]

        async def texts(first: int, count: int) -> list[list[str]]:
            for index in range(first, first + count):
                for model in served:
                    harness.engine.submit(harness.job(f"{model}/{index}", 24, model=model))
            return [
                [await text_of(harness, f"{model}/{index}") for model in served]
                for index in range(first, first + count)
            ]

        [alone] = await texts(0, 1)
        assert len(dict.fromkeys(alone)) == 3
        assert await texts(1, 4) == [alone] * 4
        # One that is not there fails alone, and makes room for nobody.
        harness.engine.submit(harness.job("lost", 5, model="absent"))
        harness.engine.submit(harness.job("kept", 24, model=served[1]))
        [failed] = await harness.heard.until(SwapFailed)
        assert isinstance(failed, SwapFailed)
        assert failed.model == "absent"
        assert "does not exist" in failed.reason or "No adapter found" in failed.reason
        assert isinstance(await harness.heard.end_of("lost"), JobLost)
        assert await text_of(harness, "kept") == alone[1]
        assert await texts(5, 1) == [alone]
        # An adapter's prompt is found again in the cache under the adapter alone.
        found = []
        for index, model in enumerate((served[1], served[1], BASE)):
            job = harness.job(f"long/{index}", 2, model=model, prompt="word " * 400)
            harness.engine.submit(job)
            end = await harness.heard.end_of(job.id)
            assert isinstance(end, JobDone)
            found.append(end.cached_tokens)
        assert found[0] == found[2] == 0
        assert found[1]


async def text_of(harness: Harness, id: str) -> str:
    """All that a job has answered, once it is done."""
    assert isinstance(await harness.heard.end_of(id), JobDone)
    return harness.heard.text(id)
