"""Where groups stand without a planner."""

from __future__ import annotations

import pytest

from qlm_core.manager import placing
from qlm_core.manager.events import StartSolve, Wakeup
from qlm_core.manager.fleet import Roster
from qlm_core.messages import Ended, Pulled
from qlm_core.model import ModelName, Phase
from tests.manager.conftest import Bench


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> Bench:
    """A fleet of two with a group for each request, whose backlog counts as deep from six groups on."""
    monkeypatch.setattr(placing, "DEEP_BACKLOG_GROUPS", 5)
    bench.manager._grouper._requests_max = 1
    bench.agent("a", "m", "n")
    bench.agent("b", "m", "n")
    return bench


def opens_groups(bench: Bench, count: int, model: str = "m") -> list[int]:
    """Let so many groups of one key open, and return their numbers."""
    ids = bench.arrive(model, "batch-1", count=count)
    return [bench.manager.book.get(id).group.id for id in ids]


def test_in_a_deep_backlog_a_group_lines_up_behind_the_one_it_continues(deep: Bench) -> None:
    groups = opens_groups(deep, 5)
    repairs = deep.manager.planner.repairs
    later = opens_groups(deep, 4)
    assert deep.manager.planner.repairs == repairs
    home = deep.manager.agents[deep.manager.groups[groups[-1]].home]
    at = home.queue.index(groups[-1])
    assert home.queue[at : at + 5] == [groups[-1], *later]
    placed = [group for agent in deep.manager.agents.values() for group in agent.queue]
    assert sorted(placed) == [*groups, *later]


def test_a_solve_is_due_for_what_lined_up(deep: Bench) -> None:
    opens_groups(deep, 8)
    deep.post(Wakeup(), after_s=5.0)
    assert any(isinstance(effect, StartSolve) for effect in deep.effects)


def test_a_group_that_continues_none_is_placed_by_repair(deep: Bench) -> None:
    opens_groups(deep, 7)
    repairs = deep.manager.planner.repairs
    [first] = opens_groups(deep, 1, model="n")
    assert deep.manager.planner.repairs == repairs + 1
    assert deep.manager.groups[first].home is not None


def test_a_group_whose_predecessor_has_left_is_placed_by_repair(deep: Bench) -> None:
    opens_groups(deep, 7)
    last = deep.manager.groups[7].first()
    repairs = deep.manager.planner.repairs
    deep.fact(Ended(last.id, Phase.CANCELLED, 0, 0))
    [next_group] = opens_groups(deep, 1)
    assert deep.manager.planner.repairs == repairs + 1
    assert deep.manager.groups[next_group].home is not None


def test_agents_with_equal_profiles_count_as_one_kind_of_engine(bench: Bench) -> None:
    for name, speed in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        bench.agent(name, "m", speed=speed)
    engines = Roster(bench.manager.agents.values()).engines[ModelName("m")]
    assert [[agent.id for agent in alike] for _, alike in engines] == [["a", "b"], ["c"]]


def test_requests_of_one_kind_go_to_whoever_is_freest_while_little_waits(bench: Bench) -> None:
    agents = [bench.agent(name, "m") for name in "abc"]
    for _ in range(9):
        [id] = bench.arrive("m", count=1)
        home = bench.manager.book.get(id).group.home
        bench.fact(Pulled(id, home), after_s=0.01)
    assert [len(bench.manager.agents[id].held) for id in agents] == [3, 3, 3]


def test_of_idle_agents_the_one_where_it_ends_first_takes_a_request(bench: Bench) -> None:
    """The slow one would have room for longer, which is no reason."""
    bench.agent("slow", "m", speed=0.4)
    fast = bench.agent("fast", "m")
    for _ in range(3):
        [id] = bench.arrive("m", count=1)
        assert bench.manager.book.get(id).group.home == fast
        bench.fact(Pulled(id, fast), after_s=0.01)
