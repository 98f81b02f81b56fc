"""The table of a batch's states as docs/batches.md shows it."""

from pathlib import Path

from qlm_core.batches import TRANSITIONS

DOCUMENT = Path(__file__).parents[2] / "docs" / "batches.md"


def test_the_documentation_shows_every_step_in_order() -> None:
    rows = [
        f"| {before.value} | {step.value} | {after.value} |"
        for (before, step), after in TRANSITIONS.items()
    ]
    assert "\n".join(["| state | step | next state |", "| --- | --- | --- |", *rows, ""]) in (
        DOCUMENT.read_text()
    )
