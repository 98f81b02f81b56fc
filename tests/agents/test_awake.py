"""The agent's clock of the time that it really ran, by which it waits for gateways that are away."""

from __future__ import annotations

from typing import Any, cast

from agents.driver import Driver
from qlm_core.presence import PULSE_S


async def test_time_asleep_is_no_time_awake() -> None:
    now_s = 0.0
    nobody = cast(Any, None)
    driver = Driver(nobody, nobody, clock=lambda: now_s, report=lambda state: None)
    now_s += PULSE_S
    assert driver.awake_s() == PULSE_S
    now_s += 40.0
    assert driver.awake_s() == 2 * PULSE_S, "of a sleep only a pulse counts"
    now_s += PULSE_S
    assert driver.awake_s() == 3 * PULSE_S
