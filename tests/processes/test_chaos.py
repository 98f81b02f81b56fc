"""Some of `make chaos`: frozen processes, and processes that die at the moments that matter, under clients of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.chaos.bed import AGENTS, Bed, running
from benchmarks.chaos.faults import met, pause
from benchmarks.chaos.moments import Moment
from benchmarks.chaos.run import Row, harm, run


def assert_whole(row: Row) -> None:
    """Every request ran to one recorded end with the right text, or failed where it may; and service came back."""
    assert row.finished > 0
    assert (row.lost, row.duplicated, row.wrong, row.hung) == (0, 0, 0, 0), row.notes
    assert row.recovery_s is not None, row.notes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    async with running(tmp_path_factory.mktemp("fleet")) as bed:
        yield bed


@pytest.mark.parametrize(
    ("names", "seconds"),
    [(("solver",), 7.0), (("one",), 8.0), (AGENTS, 8.0), (("gateway",), 7.0)],
    ids=["solver", "one", "agents", "gateway"],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_all_ends_well_when_processes_freeze(
    names: tuple[str, ...], seconds: float, bed: Bed
) -> None:
    row = await harm(bed, pause("+".join(names), names, seconds))
    assert_whole(row)
    assert row.failed == 0


@pytest.mark.parametrize(
    "rules",
    [
        {
            "gateway.store.before_commit": 12,
            "agents.gateway_link.payload_came": 6,
            "solver.driver.plan_found": 2,
        },
        {
            "gateway.store.after_commit": 12,
            "agents.driver.engine_done": 6,
            "solver.sessions.window_leaving": 20,
        },
        {
            "gateway.driver.request_stored": 6,
            "agents.gateway_link.end_sent": 6,
            "solver.sessions.gateway_announcing": 0,
        },
        {
            "gateway.driver.end_recorded": 6,
            "agents.driver.output_came": 100,
            "solver.sessions.agent_joining": 0,
        },
        {
            "gateway.driver.end_stored": 6,
            "agents.gateway_link.after_pull": 5,
            "gateway.driver.restored": 0,
        },
    ],
    ids=lambda rules: next(iter(rules)),
)
async def test_all_ends_well_when_processes_die_at_the_worst_moment(
    rules: dict[str, int], tmp_path: Path
) -> None:
    """One of each part at a pass under load; those with 0 when their process starts again."""
    chosen = [
        Moment(moment=moment, action="kill", nth=nth or 1, starting=not nth)
        for moment, nth in rules.items()
    ]
    row = await run(met(*chosen, name="moments"), tmp_path / "fleet")
    assert_whole(row)
