"""The engines, as one table. Every row passes the same contract suite (tests/agents/test_engine_contract.py)."""

from __future__ import annotations

from collections.abc import Callable

from agents.engines.base import Engine
from qlm_core.config import AgentConfig, Config, EngineKind


def _sim(config: Config, agent: AgentConfig) -> Engine:
    from agents.engines.sim import SimEngine

    return SimEngine(config, agent)


def _openai(config: Config, agent: AgentConfig) -> Engine:
    from agents.engines.openai import OpenAIEngine

    return OpenAIEngine(config, agent)


def _vllm(config: Config, agent: AgentConfig) -> Engine:
    from agents.engines.vllm import VllmEngine

    return VllmEngine(config, agent)


KINDS: dict[EngineKind, Callable[[Config, AgentConfig], Engine]] = {
    "sim": _sim,
    "openai": _openai,
    "vllm": _vllm,
}


def make_engine(config: Config, agent: AgentConfig) -> Engine:
    """The engine of an agent as configured, not started. Raises QlmError for an unusable configuration."""
    return KINDS[agent.engine.kind](config, agent)
