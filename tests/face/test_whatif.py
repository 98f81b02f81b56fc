"""`qlm whatif` without a file: the solver is asked through a gateway, and its answer is shown."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from rich.console import Console

from qlm.__main__ import main
from qlm.what_ifs import tables
from tests.gateway.peers import fleet


def side(late: float, wait_s: float, instances: int) -> dict[str, Any]:
    classes = {"waiting": 40, "expected_late": late, "wait_mean_s": wait_s, "wait_longest_s": 9.0}
    return {
        "instances": {"a100": instances, "a10": 4},
        "late_weight": 4 * late,
        "swaps": 3,
        "swap_s": 12.0,
        "unplaced": 0,
        "classes": {"interactive": classes},
    }


async def test_the_solver_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    async with fleet() as it:
        words = ["whatif", "--add=a100=2", "--remove=a10=1", "--address", it.addresses.grpc]
        assert await asyncio.to_thread(main, [*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"changes": {"a100": 2, "a10": -1}}
        wrong = ["whatif", "--add=nope=1", "--address", it.addresses.grpc]
        assert await asyncio.to_thread(main, wrong) == 2
    assert "no such GPU. Use a100." in capsys.readouterr().err


def test_both_sides_are_beside_each_other() -> None:
    console = Console(width=140)
    with console.capture() as capture:
        answer = {"before": side(20.5, 7.25, 1), "after": side(0.0, 1.5, 2)}
        console.print(*tables(answer))
    lines = capture.get().splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert rows["a100"] == ["1", "2"]
    assert rows["a10"] == ["4", "4"]
    assert rows["late"] == ["weight", "82.0", "0.0"]
    assert rows["interactive"][:5] == ["40", "20.5", "0.0", "7.2", "1.5"]


def test_without_anything_that_waits_it_says_so_beside_the_fleet() -> None:
    nothing = side(0.0, 0.0, 1) | {"classes": {}, "unplaced": 0}
    assert "Nothing waits" in str(tables({"before": nothing, "after": nothing})[1])
    stuck = nothing | {"unplaced": 3}
    assert len(tables({"before": stuck, "after": stuck})) == 1
