"""Pauses in simulated output: between two tokens, not between two messages."""

from __future__ import annotations

from math import isnan

import pytest

from qlm_core.model import RequestId
from qlm_core.sim.pauses import Pauses
from qlm_core.sim.policies import policy_named
from qlm_core.sim.scenario import requests, scenario_from_mapping
from qlm_core.sim.world import World

ONE = RequestId("one")


def test_a_stretch_of_tokens_is_no_pause_and_what_lies_between_attempts_is() -> None:
    pauses = Pauses()
    pauses.came(ONE, 1, 2.0)
    pauses.came(ONE, 100, 7.0)
    # Evicted, and back on an engine eight seconds later.
    pauses.came(ONE, 1, 15.0)
    pauses.came(ONE, 10, 15.5)
    assert pauses.end(ONE) == pytest.approx(8.0)
    # Whoever comes by the same name begins anew.
    pauses.came(ONE, 1, 20.0)
    assert pauses.end(ONE) == 0.0


@pytest.mark.parametrize("rate_rps", [0.5, 2.0])
def test_outputs_that_nobody_interrupts_do_not_pause(rate_rps: float) -> None:
    data = {
        "name": "calm",
        "fleet": [{"gpu": "a100", "models": ["vicuna-13b"], "count": 1}],
        "slo_classes": {"chat": {"ttft_s": 20}},
        "workload": {
            "kind": "streams",
            "streams": [
                {
                    "slo_class": "chat",
                    "models": {"vicuna-13b": 1},
                    "rate_rps": rate_rps,
                    "until_s": 60,
                }
            ],
        },
    }
    scenario = scenario_from_mapping(data, "calm")
    world = World(scenario, policy_named("qlm"), requests(scenario, seed=1), seed=1)
    record = world.run()
    assert record.evictions == 0
    assert max(one for one in record.pause_s if not isnan(one)) < 1.0
    assert max(record.e2e_s) > 5.0
