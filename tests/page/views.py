"""Views as a solver gives them, of any size, and a solver that gives them."""

from __future__ import annotations

import json
from typing import Any

from protos.qlm.v1 import gateway_session_service_pb2 as session_pb
from tests.gateway.peers import Solver

Json = dict[str, Any]
CLASSES = ("interactive", "batch-1", "batch-2")


def group(id: int, *, start_s: float = 0.0, **more: Any) -> Json:
    return {
        "group": id,
        "model": "tiny",
        "slo_class": "interactive",
        "waiting": 5,
        "held": 0,
        "starts_in_s": start_s,
        "ends_in_s": start_s + 2.0,
        "swap_s": 0.0,
        "due_in_s": 20.0,
        "last_due_in_s": 21.0,
        "expected_late": 0,
        "first_request": f"req-{id}",
    } | more


def agent(id: str, *queue: Json, **more: Any) -> Json:
    return {
        "id": id,
        "gpu": "a100",
        "connected": True,
        "ready": True,
        "draining": False,
        "awake_model": "tiny",
        "swapping_to": None,
        "tiers": {"tiny": "awake", "other": "asleep"},
        "models": ["tiny", "other"],
        "held": 3,
        "running": 2,
        "batch_max": 256,
        "kv_used_tokens": 1000,
        "kv_cache_tokens": 40_000,
        "tokens_per_s": 512.3,
        "window": 4,
        "queue": list(queue),
        "queue_groups": len(queue),
        "queue_waiting": sum(one["waiting"] for one in queue),
        "queue_expected_late": sum(one["expected_late"] for one in queue),
    } | more


def plan(**more: Any) -> Json:
    return {
        "age_s": 1.5,
        "objective": 12.5,
        "late_weight": 1.0,
        "groups": 2,
        "queues": 1,
        "backend": "highs",
        "termination": "optimal",
        "lower_bound": 12.0,
        "gap": 0.04,
        "bound_age_s": 1.5,
        "moved": 1,
        "wall_s": 0.2,
        "capacity": [{"gpu": "a100", "instances": 1, "saves_cost": 30.0, "saves_late_weight": 1.0}],
    } | more


def view(*agents: Json, **more: Any) -> Json:
    waiting = sum(one["queue_waiting"] for one in agents)
    return {
        "epoch": 1,
        "waiting": waiting,
        "held": sum(one["held"] for one in agents),
        "gateways": [],
        "agents": list(agents),
        "classes": {"interactive": {"waiting": waiting, "held": 3, "oldest_s": 4.0}},
        "unplaced": [],
        "plan": plan(),
        "plans": [plan(age_s=9.0, backend="search", gap=None, lower_bound=None, bound_age_s=None)],
        "planner": {"solves": 3, "adopted": 2, "repairs": 40, "moved_groups": 1},
        "counts": {},
        "rwt": {},
        "speed": [{"gpu": "a100", "model": "tiny", "factor": 0.97}],
    } | more


def large(agents: int, requests: int, *, tick: int = 0) -> Json:
    """Of so many instances, with so many requests that wait; each tick has moved on."""
    of_each = 12
    waiting = max(1, requests // (agents * of_each))
    queues = []
    for number in range(agents):
        queue = [
            group(
                (number * 1000 + place + tick),
                start_s=2.0 * place,
                model="tiny" if (place // 3) % 2 else "other",
                slo_class=CLASSES[place % 3],
                swap_s=1.0 if place % 3 == 0 and place else 0.0,
                waiting=waiting,
                expected_late=waiting if place > 9 and number % 20 == 0 else 0,
            )
            for place in range(of_each)
        ]
        one = agent(f"gpu-{number}", *queue, running=(number + tick) % 200)
        queues.append(one)
    return view(*queues)


class ShowingSolver(Solver):
    """Gives the view that the test says, and counts who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.view = view(agent("a100-0", group(1), group(2, start_s=3.0)))
        self.views = 0
        self.groups_max = 0

    async def View(self, request: Any, context: Any) -> session_pb.ViewResponse:
        self.views += 1
        self.groups_max = request.groups_max
        return session_pb.ViewResponse(view_json=json.dumps(self.view).encode())
