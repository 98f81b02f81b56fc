"""How long the processes of one machine may take to start and to stop, by their configuration."""

from __future__ import annotations

import pytest

from qlm import fleet
from qlm_core.config import Config


def fleet_of(*agents: dict[str, object], gateway_drain_s: float = 10.0) -> Config:
    named = [{"name": f"a{index}"} | agent for index, agent in enumerate(agents)]
    return Config.from_mapping({"gateway": {"drain_s": gateway_drain_s}, "agents": named})


def agent(
    kind: str, *, models: int = 1, drain_s: float = 30.0, **vllm: object
) -> dict[str, object]:
    return {
        "models": ["mistral-7b", "vicuna-13b"][:models],
        "drain_s": drain_s,
        "engine": {"kind": kind, "vllm": vllm},
    }


@pytest.mark.parametrize(
    ("agents", "starts_s"),
    [
        ([agent("sim", models=2, start_timeout_s=50.0)], 0.0),
        ([agent("vllm", models=2, start_timeout_s=50.0)], 100.0),
        # Without sleep mode an agent starts with its first model only.
        ([agent("vllm", models=2, start_timeout_s=50.0, sleep_mode=False)], 50.0),
        # Agents start at the same time.
        ([agent("vllm", start_timeout_s=70.0), agent("vllm", start_timeout_s=50.0)], 70.0),
    ],
)
def test_every_model_that_an_agent_starts_has_its_time(
    agents: list[dict[str, object]], starts_s: float
) -> None:
    assert fleet.ready_timeout_s(fleet_of(*agents)) == fleet.START_S + starts_s


@pytest.mark.parametrize(
    ("agents", "gateway_drain_s", "stops_s"),
    [
        ([agent("sim", drain_s=90.0)], 10.0, 90.0),
        ([agent("sim", drain_s=90.0)], 120.0, 120.0),
        ([agent("vllm", drain_s=90.0, stop_timeout_s=20.0)], 100.0, 110.0),
        ([agent("vllm", drain_s=0.0, stop_timeout_s=20.0), agent("sim", drain_s=90.0)], 0.0, 90.0),
    ],
)
def test_nothing_is_killed_that_may_still_drain(
    agents: list[dict[str, object]], gateway_drain_s: float, stops_s: float
) -> None:
    config = fleet_of(*agents, gateway_drain_s=gateway_drain_s)
    assert fleet.stop_grace_s(config) == fleet.STOP_S + stops_s
