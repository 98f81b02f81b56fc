"""`qlm status --capacity` as people read it."""

from rich.console import Console

from qlm.commands import status


def shown(plan: object) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(status._capacity(plan))
    return capture.get()


def test_capacity_is_a_table_by_gpu() -> None:
    one = {"gpu": "A100", "instances": 3, "saves_cost": 1234.5, "saves_late_weight": 41.26}
    text = shown({"bound_age_s": 12.3, "capacity": [one]})
    row = next(line for line in text.splitlines() if "A100" in line)
    assert row.split() == ["A100", "3", "41.3", "1,234.5"]
    assert "12 s ago" in text


def test_without_a_bound_it_says_when_there_will_be_one() -> None:
    for plan in (None, {"bound_age_s": None, "capacity": []}):
        assert "bound_period_s" in shown(plan)
