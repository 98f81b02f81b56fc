"""`qlm status --capacity` as people read it."""

from typing import Any

from rich.console import Console, RenderableType

from qlm.commands import status


def printed(picture: RenderableType) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def shown(plan: dict[str, Any] | None) -> str:
    return printed(status._capacity(plan))


def test_capacity_is_a_table_by_gpu() -> None:
    one = {"gpu": "A100", "instances": 3, "saves_cost": 1234.5, "saves_late_weight": 41.26}
    text = shown({"bound_age_s": 12.3, "capacity": [one]})
    row = next(line for line in text.splitlines() if "A100" in line)
    assert row.split() == ["A100", "3", "41.3", "1,234.5"]
    assert "12 s ago" in text


def test_what_is_needed_is_a_table_by_gpu() -> None:
    one = {"gpu": "A100", "instances": 3, "needed": 5, "busy": 2.64}
    row = next(line for line in printed(status._needed([one])).splitlines() if "A100" in line)
    assert row.split() == ["A100", "3", "2.6", "5"]


def test_without_a_bound_it_says_when_there_will_be_one() -> None:
    for plan in (None, {"bound_age_s": None, "capacity": []}):
        assert "bound_period_s" in shown(plan)
