"""What a configuration may say of LoRA adapters and of vLLM: bases, who serves them, what is inherited, and limits."""

from __future__ import annotations

from typing import Any

import pytest

from qlm.fleet import START_S, ready_timeout_s
from qlm_core.config import Config
from qlm_core.errors import ConfigError

SQL = {"base": "llama", "adapter": "adapters/sql"}


def config(
    models: dict[str, Any] | None = None,
    served: tuple[str, ...] = ("llama", "sql"),
    kind: str = "vllm",
    gpu: str = "a100",
    **vllm: Any,
) -> Config:
    engine = {"kind": kind, "vllm": vllm, "openai": {"base_url": "http://h:1"}}
    known = {"llama": {"max_model_len": 4096}, "sql": SQL, "qwen": {}} | (models or {})
    agent = {"name": "a", "gpu": gpu, "models": served, "engine": engine}
    return Config.from_mapping({"models": known, "agents": [agent]})


def test_an_adapter_has_its_bases_length_unless_it_says_less():
    made = config({"chat": SQL | {"max_model_len": 1000}})
    assert made.models["sql"].max_model_len == 4096
    assert made.models["chat"].max_model_len == 1000
    assert made.base_of("sql") == "llama"
    assert made.base_of("llama") == "llama"
    assert Config.from_mapping(made.to_mapping()) == made


def test_a_server_for_each_base_has_its_time_to_start():
    made = config(served=("llama", "sql", "qwen"), start_timeout_s=50.0)
    assert ready_timeout_s(made) == START_S + 100.0


@pytest.mark.parametrize("kind", ["sim", "openai"])
def test_only_vllm_has_to_know_where_an_adapter_lies(kind: str):
    assert config({"sql": {"base": "llama"}}, kind=kind).models["sql"].adapter == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"models": {"sql": {"base": "lama"}}},
            r"models.sql.base: 'lama' is not in `models` \(llama, sql, qwen\)",
        ),
        ({"models": {"sql": {"adapter": "x"}}}, "models.sql.base: missing. Name the model"),
        (
            {"models": {"more": {"base": "sql", "adapter": "x"}}},
            r"models.more.base: 'sql' is an adapter itself. .* both are of \('llama'\)",
        ),
        ({"models": {"sql": {"base": ["llama"]}}}, r"models.sql.base: .*list"),
        ({"models": {"sql": {"base": {"a": 1}}}}, r"models.sql.base: .*mapping"),
        ({"models": {"sql": {"base": "sql"}}}, "models.sql.base: 'sql' is an adapter itself"),
        (
            {"models": {"sql": SQL | {"max_model_len": 5000}}},
            r"models.sql.max_model_len: 5000 is more than its base has \(4096\)",
        ),
        (
            {"served": ("sql",)},
            r"agents\[0\].models: 'sql' is an adapter of 'llama', which is not among them. Add it",
        ),
        (
            {"models": {"sql": {"base": "llama"}}},
            "models.sql.adapter: empty, and agent 'a' has to load it",
        ),
        (
            {"served": ("llama", "sql", "qwen"), "kind": "openai"},
            r"agents\[0\].models: an openai engine serves one model and its adapters, not 2",
        ),
        ({"max_loras": 0}, "engine.vllm.max_loras: must be above 0"),
        ({"max_loras": 8, "max_cpu_loras": 4}, "vllm.max_cpu_loras: 4 is less than max_loras"),
        ({"gpu": "cpu", "kv_offload_bytes": 1}, "vllm.kv_offload_bytes: vLLM moves KV blocks"),
        ({"max_lora_rank": 9}, "vllm.max_lora_rank: 9 is none of vLLM's. Use 1, 8, 16, 32"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config(**changes)
