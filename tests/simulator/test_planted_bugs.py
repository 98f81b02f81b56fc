"""Bugs that are planted on purpose, one at a time: each is found within 500 seeds, so the checkers of runs under faults can fail.

A bug is a patch of the production machines, or of the part of the simulation that stands for a service's driver. What is
asserted is who complains: a bug that shows as something else than what it is would be found by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from qlm_core import ledger as lg
from qlm_core.batches.batch import Part
from qlm_core.executor.machine import Executor
from qlm_core.executor.window import Window
from qlm_core.executor.work_log import WorkLog
from qlm_core.ledger.machine import Ledger
from qlm_core.ledger.table import TRANSITIONS, Step
from qlm_core.manager.events import PartAgent
from qlm_core.manager.machine import Manager
from qlm_core.manager.requests import Book
from qlm_core.messages import Returned
from qlm_core.model import Phase
from qlm_core.sim.faults.batch_checks import ONCE
from qlm_core.sim.faults.batch_part import BatchPart
from qlm_core.sim.faults.drawing import draw
from qlm_core.sim.faults.run import run
from qlm_core.sim.faults.store import Store, StoredLine

SEEDS = 500

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


@dataclass(frozen=True)
class Bug:
    """A bug, and who finds it: any of these checkers.

    Attributes:
        seed: one that finds it, which is tried before all others: most of the time would be spent on those that do not.
    """

    name: str
    plant: Plant
    checkers: tuple[str, ...]
    seed: int


def without_effects(
    patch: Patch, machine: type, method: str, dropped: Callable[[object], bool]
) -> None:
    """Have a method of a machine leave out some of the effects that it returns."""
    whole = getattr(machine, method)

    def some(self: Any, *arguments: Any, **options: Any) -> list[Any]:
        return [one for one in whole(self, *arguments, **options) if not dropped(one)]

    patch.setattr(machine, method, some)


# ---------------------------------------------------------------- presence


def plant_agents_forgotten_in_silence(patch: Patch) -> None:
    """Whose lease runs out is deleted while its session is open; later reports are ignored."""
    without_effects(patch, Manager, "handle", lambda one: isinstance(one, PartAgent))


def plant_leases_run_while_asleep(patch: Patch) -> None:
    """As before, and the solver's own sleep counts."""
    plant_agents_forgotten_in_silence(patch)
    patch.setattr("qlm_core.presence.SleepWatch.slept_s", lambda self, now_s: 0.0)


def plant_requests_forgotten_with_their_agent(patch: Patch) -> None:
    """The groups in the queue of an agent that leaves are placed nowhere else."""

    def forget(self: Manager, agent: Any) -> None:
        agent.queue = []
        self._publisher.lacks(agent.id)

    patch.setattr(Manager, "_empty_queue", forget)


# ---------------------------------------------------------------- attempts


def plant_stale_epochs(patch: Patch) -> None:
    """An agent obeys whatever order comes last."""
    apply = Window.apply

    def obey(self: Window, update: Any, in_flight: Any) -> bool:
        self.epoch = 0
        return apply(self, update, in_flight)

    patch.setattr(Window, "apply", obey)


def plant_older_attempts(patch: Patch) -> None:
    """The number of an attempt is not looked at, nor who has it."""

    def current(self: Ledger, agent: Any, id: Any, attempt: int) -> Any:
        row = self._rows.get(id)
        return row if row is not None and row.agent is not None else None

    patch.setattr(Ledger, "_current", current)


def plant_pulls_granted_twice(patch: Patch) -> None:
    """What an agent holds is granted to the next one that asks."""
    patch.setitem(TRANSITIONS, (Phase.PULLED, Step.GRANT), Phase.PULLED)


def plant_tokens_resumed_twice(patch: Patch) -> None:
    """After a break the last chunk that arrived is sent once more."""
    welcome = WorkLog.welcome

    def again(self: WorkLog, going_on: Any) -> None:
        welcome(self, [replace(run, chunks=max(0, run.chunks - 1)) for run in going_on])

    patch.setattr(WorkLog, "welcome", again)


def plant_output_lost_with_a_stream(patch: Patch) -> None:
    """After a break nothing is sent again."""
    welcome = WorkLog.welcome

    def onward(self: WorkLog, going_on: Any) -> None:
        welcome(self, [replace(run, chunks=1 << 30) for run in going_on])

    patch.setattr(WorkLog, "welcome", onward)


def plant_cancelled_work_runs_on(patch: Patch) -> None:
    """A revocation does not reach the engine."""
    patch.setattr(Executor, "_on_revoked", lambda self, event: False)


# ---------------------------------------------------------------- records and counts


def plant_terminal_records_dropped(patch: Patch) -> None:
    """A request that was tried more than once ends without a record."""

    def dropped(one: object) -> bool:
        return isinstance(one, lg.EndRequest) and one.record.attempts > 1

    without_effects(patch, Ledger, "handle", dropped)


def plant_two_terminal_records(patch: Patch) -> None:
    """A request that is shed for its age gets a second record."""
    whole = Ledger.handle

    def doubled(self: Ledger, event: Any, *, now_s: float) -> list[Any]:
        effects = whole(self, event, now_s=now_s)
        return effects + [one for one in effects if isinstance(one, lg.EndRequest)]

    patch.setattr(Ledger, "handle", doubled)


def plant_early_acknowledgements(patch: Patch) -> None:
    """A commit is acknowledged when it is asked for."""
    write = Store.write

    def early(self: Store, what: Any, told: Any) -> None:
        write(self, what, lambda id: None)
        told(what.id)

    patch.setattr(Store, "write", early)


def plant_held_counts_that_stay(patch: Patch) -> None:
    """What an agent gave back or ended is still counted as held by it."""

    def released(self: Book, held: Any, agents: Any) -> None:
        if held.agent is not None:
            held.agent = None
            self.waiting += 1

    patch.setattr(Book, "released", released)


def plant_returns_untold(patch: Patch) -> None:
    """The solver is not told what waits again after its agent was lost."""

    def dropped(one: object) -> bool:
        return isinstance(one, lg.Tell) and isinstance(one.fact, Returned)

    without_effects(patch, Ledger, "_agent_connected", dropped)
    without_effects(patch, Ledger, "_woken", dropped)


def plant_gateways_not_forgotten(patch: Patch) -> None:
    """What a gateway held before it announced itself anew is kept as well."""
    patch.setattr(Book, "of_gateway", lambda self, gateway: [])


def plant_no_expiry(patch: Patch) -> None:
    """No time to live is ever over."""
    submitted = Ledger._submitted
    patch.setattr(
        Ledger,
        "_submitted",
        lambda self, event: submitted(self, replace(event, expires_s=1e18)),
    )


def plant_expired_work_is_urgent(patch: Patch) -> None:
    """Room is made for prompt requests whether or not they can still be in time."""
    patch.setattr(
        "qlm_core.executor.reserve.Reserve._in_line",
        lambda self: self._attempts.batch.line.before(self._margin_s),
    )


# ---------------------------------------------------------------- batches


def plant_lines_forgotten_with_their_gateway(patch: Patch) -> None:
    """What was released and has no record is not released again."""
    taken_up = Part.taken_up

    def forget(self: Part, begun: int, ended: Any) -> list[int]:
        taken_up(self, begun, ended)
        return []

    patch.setattr(Part, "taken_up", forget)


def plant_unrun_lines_left_out(patch: Patch) -> None:
    """Lines that were not run are in no file."""
    write = BatchPart._write
    patch.setattr(BatchPart, "_write", lambda self, id, unrun: write(self, id, None))


def plant_results_counted_before_they_are_stored(patch: Patch) -> None:
    """A line has ended for its batch when its result is given to the store."""
    insist = BatchPart._insist

    def early(self: BatchPart, what: Any, then: Any) -> None:
        if isinstance(what, StoredLine):
            self._store.write(what, lambda id: None)
            then()
        else:
            insist(self, what, then)

    patch.setattr(BatchPart, "_insist", early)


BUGS = (
    Bug(
        "agents forgotten in silence",
        plant_agents_forgotten_in_silence,
        ("nobody waits for ever", "the service is whole"),
        seed=34,
    ),
    Bug(
        "leases run while asleep",
        plant_leases_run_while_asleep,
        ("nobody waits for ever", "the service is whole"),
        seed=34,
    ),
    Bug(
        "requests forgotten with their agent",
        plant_requests_forgotten_with_their_agent,
        ("nobody waits for ever",),
        seed=324,
    ),
    Bug("stale epochs", plant_stale_epochs, ("older epochs never win",), seed=8),
    Bug("older attempts", plant_older_attempts, ("the newest attempt wins",), seed=38),
    Bug("pulls granted twice", plant_pulls_granted_twice, ("one holder",), seed=31),
    Bug(
        "tokens resumed twice",
        plant_tokens_resumed_twice,
        ("each token once and in order",),
        seed=15,
    ),
    Bug(
        "output lost with a stream",
        plant_output_lost_with_a_stream,
        ("each token once and in order", "answers are whole"),
        seed=5,
    ),
    Bug("cancelled work runs on", plant_cancelled_work_runs_on, ("ended work stops",), seed=1),
    Bug(
        "terminal records dropped",
        plant_terminal_records_dropped,
        ("one terminal record", "nobody waits for ever"),
        seed=1,
    ),
    Bug("two terminal records", plant_two_terminal_records, ("one terminal record",), seed=0),
    Bug(
        "early acknowledgements",
        plant_early_acknowledgements,
        ("nothing acknowledged is lost", "a key is one request"),
        seed=0,
    ),
    Bug("held counts that stay", plant_held_counts_that_stay, ("counts return to zero",), seed=5),
    Bug("returns untold", plant_returns_untold, ("told is held", "nobody waits for ever"), seed=5),
    Bug("gateways not forgotten", plant_gateways_not_forgotten, ("told is held",), seed=0),
    Bug("no expiry", plant_no_expiry, ("nobody waits for ever",), seed=1),
    Bug(
        "expired work is urgent",
        plant_expired_work_is_urgent,
        ("expired work is never urgent",),
        seed=147,
    ),
    Bug(
        "lines forgotten with their gateway",
        plant_lines_forgotten_with_their_gateway,
        ("nobody waits for ever",),
        seed=43,
    ),
    Bug("unrun lines left out", plant_unrun_lines_left_out, (ONCE,), seed=8),
    Bug(
        "results counted before they are stored",
        plant_results_counted_before_they_are_stored,
        (ONCE,),
        seed=119,
    ),
)


def first_found(first: int) -> tuple[int, str, str] | None:
    """The first seed that fails, with the checker's name and words: a likely one, then all others in order."""
    for seed in (first, *(seed for seed in range(SEEDS) if seed != first)):
        failure = run(draw(seed)).failure
        if failure is not None:
            return seed, failure.checker, failure.words
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_found_for_what_it_is(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    found = first_found(bug.seed)
    assert found is not None, f"nobody saw it in {SEEDS} seeds"
    assert found[1] in bug.checkers, found
