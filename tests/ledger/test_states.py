"""The ledger's table of phases as docs/states.md shows it."""

from pathlib import Path

from qlm_core.ledger.table import TRANSITIONS

DOCUMENT = Path(__file__).parents[2] / "docs" / "states.md"


def test_the_documentation_shows_every_step_in_order() -> None:
    rows = [
        f"| {before.value} | {step.value} | {after.value} |"
        for (before, step), after in TRANSITIONS.items()
    ]
    assert "\n".join(["| phase | step | next phase |", "| --- | --- | --- |", *rows, ""]) in (
        DOCUMENT.read_text()
    )
