"""The tables of states: complete, drawn in the documentation, and cheap to follow."""

from __future__ import annotations

from pathlib import Path

from qlm_core.executor.states import (
    EXECUTOR_MOVES,
    ExecutorState,
    Trigger,
    as_markdown,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "states.md"


def test_the_documentation_shows_the_tables():
    assert as_markdown() in DOCUMENT.read_text(), (
        "docs/states.md is stale; take over what qlm_core.executor.states.as_markdown() returns"
    )


def test_what_the_outside_can_do_is_answered_in_every_state():
    for state in ExecutorState:
        for trigger in (Trigger.ENGINE_READY, Trigger.ENGINE_DOWN, Trigger.DRAIN):
            assert (state, trigger) in EXECUTOR_MOVES


def test_every_state_but_the_last_can_be_left():
    for state in ExecutorState:
        targets = {after for (before, _), after in EXECUTOR_MOVES.items() if before is state}
        assert (targets == {state}) == (state is ExecutorState.GONE)
