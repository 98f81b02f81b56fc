"""LoRA adapters in the simulator: served by the instance of their base, without a swap."""

from __future__ import annotations

from typing import Any

import pytest

from qlm_core.errors import ConfigError
from qlm_core.sim.scenario import instances
from tests.simulator.beds import SIMULATION, scenario, simulate

ADAPTERS = {"sql": "mistral-7b", "chat": "mistral-7b", "law": "mistral-7b"}


def bed(**part: Any) -> dict[str, Any]:
    """One A10 with a base and three adapters, all of them asked for at once."""
    models = ["mistral-7b", *ADAPTERS]
    return {
        "name": "adapters",
        "adapters": ADAPTERS,
        "fleet": [{"gpu": "a10", "models": models, "count": 1} | part],
        "workload": {
            "kind": "streams",
            "requests": 60,
            "streams": [
                {
                    "slo_class": "interactive",
                    "models": dict.fromkeys(models, 1.0),
                    "rate_rps": 4.0,
                }
            ],
        },
        "simulation": SIMULATION,
    }


def test_adapters_of_one_base_are_served_without_a_swap() -> None:
    record, _ = simulate(bed(), "qlm")
    assert record.swaps == 0
    assert sum(record.finished) == 60


def test_as_models_of_their_own_they_need_swaps() -> None:
    data = bed()
    data["adapters"] = {}
    names = {"sql": "mistral-7b-ft1", "chat": "mistral-7b-ft2", "law": "mistral-7b-ft3"}
    data["fleet"][0]["models"] = ["mistral-7b", *names.values()]
    models = data["workload"]["streams"][0]["models"]
    for name, full in names.items():
        models[full] = models.pop(name)
    record, _ = simulate(data, "qlm")
    assert record.swaps > 0


def test_with_a_place_for_one_adapter_they_take_turns() -> None:
    free, _ = simulate(bed(), "qlm")
    limited, _ = simulate(bed(max_loras=1), "qlm")
    assert limited.swaps == 0
    assert sum(limited.finished) == 60
    assert limited.last_end_s > free.last_end_s


def test_an_instance_has_the_profile_and_the_tier_of_the_base() -> None:
    [spec] = instances(scenario(bed()).fleet, adapters=ADAPTERS)
    assert spec.awake == "mistral-7b"
    base, *adapters = spec.profiles
    assert {one.base for one in adapters} == {"mistral-7b"}
    assert {one.kv_cache_tokens for one in adapters} == {base.kv_cache_tokens}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": {"sql": "vicuna-13b"}}, r"fleet\[0\].models: 'sql' is an adapter of 'vicuna"),
        ({"adapters": {"sql": "chat", "chat": "mistral-7b"}}, "adapters.sql: 'chat' is an adapter"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario(bed() | changes)


def test_no_instance_begins_with_an_adapter_awake() -> None:
    with pytest.raises(ConfigError, match=r"fleet\[0\].awake: 'sql' is an adapter"):
        scenario(bed(awake="sql"))
