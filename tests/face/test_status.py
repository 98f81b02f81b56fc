"""`qlm status` and `qlm explain` as people read them, from views as the services give them."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from qlm.commands import explain, status
from qlm_core.config import SolverConfig
from qlm_core.manager import Manager, views


def group(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "group": number,
        "model": "mistral-7b",
        "slo_class": "batch-1",
        "waiting": 5,
        "held": 2,
        "starts_in_s": 1.25,
        "first_request": "x",
    } | fields


def agent(**fields: Any) -> dict[str, Any]:
    return {
        "id": "a100-0",
        "gpu": "a100",
        "connected": True,
        "ready": True,
        "draining": False,
        "awake_model": "mistral-7b",
        "swapping_to": None,
        "running": 12,
        "kv_used_tokens": 45_000,
        "tokens_per_s": 1234.5,
        "queue": [],
    } | fields


def view(**fields: Any) -> dict[str, Any]:
    return {
        "waiting": 55,
        "held": 12,
        "agents": [agent(queue=[group(n) for n in range(11)])],
        "unplaced": [],
        "plan": {
            "backend": "highs",
            "age_s": 2.0,
            "objective": 10.379,
            "gap": 0.061,
            "bound_age_s": 3.0,
        },
        "planner": {"solves": 9, "adopted": 2, "repairs": 40},
        "attainment": {"batch-1": {"ended": 40.0, "attainment_ratio": 0.975}},
        "solves": {"highs": 9.0},
        "step_downs": {"gurobi": 9.0},
    } | fields


def shown(one: dict[str, Any]) -> list[str]:
    """The lines on a terminal of eighty columns."""
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(status._picture(one))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, lines)) <= 80
    return [" ".join(line.split()) for line in lines]


def batch(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "batch": f"batch_0123456789abcdef012345{number:02}",
        "due_in_s": 7_200.0,
        "models": [
            {"model": "m", "waiting_lines": 970, "waiting": 30, "held": 8, "ended": 200},
            {"model": "n", "waiting_lines": 5, "waiting": 0, "held": 0, "ended": 1},
        ],
        "feasible": True,
        "finish_p50_s": 90.0,
        "finish_p90_s": 600.0,
    } | fields


def test_batches_are_shown_with_when_they_will_be_done() -> None:
    late = batch(1, feasible=False, finish_p50_s=None, finish_p90_s=None, models=[])
    many = [batch(0), late, *(batch(number) for number in range(2, 11))]
    lines = shown(view(batches=many, waiting_lines=12_345))
    assert "batch_0123456789abcdef01234500 1013 201 120 min 90 s 10 min yes" in lines
    assert "batch_0123456789abcdef01234501 0 0 120 min - - no" in lines
    assert "and 3 more" in lines
    assert "batches 12,345 lines of 11 batches wait to become requests" in lines
    assert not any("batches" in line for line in shown(view()))


def test_agents_queues_plan_and_attainment_are_shown() -> None:
    lines = shown(view())
    assert "a100-0 a100 mistral-7b ready 12 45,000 1,234" in lines
    assert "a100-0 mistral-7b batch-1 0 5 2 1.2" in lines
    assert "and 3 more 15" in lines
    assert "requests 55 wait in 11 groups, 12 are with agents" in lines
    assert "plan by highs, 2 s old, objective 10.38, gap 6.1 % to a bound 3 s old" in lines
    assert "planner 9 solves (highs 9), 2 adopted; 40 repairs" in lines
    assert "fell back from gurobi 9 times (the solver's log says why)" in lines
    assert "attained batch-1 97.5 % of 40" in lines


def test_states_of_agents_are_named() -> None:
    agents = [
        agent(id="gone", connected=False),
        agent(id="swaps", swapping_to="vicuna-13b", awake_model=None),
        agent(id="drains", draining=True),
        agent(id="down", ready=False),
    ]
    text = "\n".join(shown(view(agents=agents, unplaced=[group(1, starts_in_s=None)])))
    for state in ("away", "→ vicuna-13b swapping", "draining", "engine down"):
        assert state in text
    assert "(none) mistral-7b batch-1 1 5 2 -" in text


def test_agents_stand_in_order_and_long_names_are_whole() -> None:
    queue = [group(123_456, slo_class="interactive", waiting=98_765)]
    agents = [agent(id=name, queue=queue) for name in ("host2-gpu0", "host1-gpu0")]
    lines = shown(view(agents=agents))
    assert "host1-gpu0 mistral-7b interactive 123456 98765 2 1.2" in lines
    assert [line.split()[0] for line in lines if "gpu0" in line] == [
        *("host1-gpu0", "host2-gpu0"),
        *("host1-gpu0", "host2-gpu0"),
    ]


def test_a_fleet_of_nothing_can_be_shown() -> None:
    """The solver's own view of a fleet that has not begun."""
    empty = views.view(Manager(SolverConfig(), (), now_s=0.0), now_s=0.0)
    lines = shown(empty | {"attainment": {}, "solves": {}, "step_downs": {}})
    assert "plan none yet" in lines


def test_an_explanation_says_first_where_and_why() -> None:
    lines = explain.lines_of(
        {
            "id": "chatcmpl-1",
            "model": "m",
            "state": "waiting",
            "because": "on a10-0, behind 2 groups",
            "groups_ahead": [],
            "in_window": True,
            "model_swap_to": None,
            "alternatives": [{"agent": "a100-1", "would_start_in_s": 0.5671}],
        }
    )
    assert lines == [
        "chatcmpl-1: waiting",
        "  on a10-0, behind 2 groups",
        "  model         m",
        "  groups ahead  none",
        "  in window     yes",
        "  alternatives  agent a100-1, would start in s 0.567",
    ]
