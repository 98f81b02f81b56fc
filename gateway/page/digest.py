"""What the page is told: the solver's view in short, what is new in it since the last time, and what a tenant may see of it.

Everything here is pure and bounded: of each queue some groups, of the past some minutes. Instants are seconds of the gateway's
clock, so that what has not changed is the same in two digests and need not be sent again.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gateway.answer import Json

# Groups in all queues together, and the least and the most of one.
_GROUPS = 2_400
_GROUPS_MIN = 8
_GROUPS_MAX = 60
# How long and how much an instance's past is kept.
PAST_S = 120.0
_CHANGES_MAX = 60
# How long an instance is shown that has gone, and how many are known at all.
GONE_S = 600.0
_GONE_MAX = 4_000
# Of an agent, what comes from nobody's requests.
_OPEN = (
    "id",
    "gpu",
    "state",
    "model",
    "swapping_to",
    "tiers",
    "models",
    "batch_max",
    "kv_max",
    "past",
    "since",
)
# Of a batch, what does not come from who sent it.
_BATCH = (
    "id",
    "status",
    "endpoint",
    "model",
    "created_at",
    "expires_at",
    "completed_at",
    "request_counts",
)
# Of a digest, what comes from nobody's requests.
_OPEN_KEYS = ("solver", "models", "classes_set", "agents")


def groups_max(agents: int) -> int:
    """How many groups of each queue are shown, with so many queues."""
    return max(_GROUPS_MIN, min(_GROUPS_MAX, _GROUPS // max(1, agents)))


class Names:
    """Numbers for names that come often; a name keeps its number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name."""
        return self.known.setdefault(name, len(self.known))


class Past:
    """What each instance had awake in the last minutes, as instants at which that changed; and who has gone."""

    def __init__(self) -> None:
        self._of: dict[str, deque[tuple[float, int, str]]] = {}

    def note(self, agent: str, model: int, state: str, now_s: float) -> list[list[Any]]:
        """Take note of what is so now, and give what was: from when, the model's number or -1, the state."""
        changes = self._of.setdefault(agent, deque(maxlen=_CHANGES_MAX))
        if not changes or changes[-1][1:] != (model, state):
            changes.append((round(now_s, 1), model, state))
        while len(changes) > 1 and changes[1][0] < now_s - PAST_S:
            changes.popleft()
        return [list(change) for change in changes]

    def keep(self, agents: Json) -> None:
        """Forget all others."""
        self._of = {agent: changes for agent, changes in self._of.items() if agent in agents}


class Gone:
    """Instances that were here and are not any more, as they were last."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Json]] = {}

    def among(self, agents: dict[str, Json], now_s: float) -> dict[str, Json]:
        """Those that have gone lately, with who is here now."""
        for id, agent in agents.items():
            self._last[id] = (now_s, agent)
        gone = {id: last for id, last in self._last.items() if id not in agents}
        for id, (at_s, _) in gone.items():
            if at_s < now_s - GONE_S or len(self._last) > _GONE_MAX:
                del self._last[id]
        return {id: _gone(*last) for id, last in gone.items() if id in self._last}


def _gone(at_s: float, agent: Json) -> Json:
    nothing = dict.fromkeys(("running", "held", "kv", "tokens_per_s", "late", "waiting"), 0)
    asleep: Json = {"model": None, "swapping_to": None, "tiers": {}, "queue": [], "queue_groups": 0}
    since_s = round(at_s, 1)
    past = [*agent["past"], [since_s, -1, "gone"]]
    return agent | nothing | asleep | {"state": "gone", "since": since_s, "past": past}


class Digester:
    """Makes digests of views; numbers of names hold for all of them."""

    def __init__(self) -> None:
        self.models = Names()
        self.classes = Names()
        self._past = Past()
        self._gone = Gone()

    def digest(self, view: Json, now_s: float) -> Json:
        """A view in short.

        Args:
            view: as the solver gives it.
            now_s: when that was, on the gateway's clock.
        """
        agents = {one["id"]: self._agent(one, now_s) for one in view.get("agents", ())}
        agents |= self._gone.among(agents, now_s)
        self._past.keep(agents)
        plan = view.get("plan")
        return {
            "solver": True,
            "agents": agents,
            "unplaced": [self._group(one, now_s) for one in view.get("unplaced", ())],
            "waiting": view.get("waiting", 0),
            "held": view.get("held", 0),
            "late": sum(one["late"] for one in agents.values()),
            "class_counts": {
                self.classes.number(name): [
                    counts["waiting"],
                    counts["held"],
                    round(counts["oldest_s"], 1),
                ]
                for name, counts in view.get("classes", {}).items()
            },
            "plan": None if plan is None else _plan(plan, now_s),
            "plans": [_plan(one, now_s) for one in view.get("plans", ())],
            "planner": view.get("planner"),
            "rwt": view.get("rwt", {}),
            "speed": view.get("speed", []),
            "models": list(self.models.known),
            "classes_set": list(self.classes.known),
        }

    def _agent(self, agent: Json, now_s: float) -> Json:
        state = state_of(agent)
        model = agent["swapping_to"] or agent["awake_model"]
        number = -1 if model is None else self.models.number(model)
        return {
            "id": agent["id"],
            "gpu": agent["gpu"],
            "state": state,
            "model": agent["awake_model"],
            "swapping_to": agent["swapping_to"],
            "tiers": agent["tiers"],
            "models": [self.models.number(name) for name in agent["models"]],
            "running": agent["running"],
            "held": agent["held"],
            "batch_max": agent.get("batch_max"),
            "kv": agent["kv_used_tokens"],
            "kv_max": agent.get("kv_cache_tokens"),
            "tokens_per_s": round(agent["tokens_per_s"]),
            "late": agent.get("queue_expected_late", 0),
            "waiting": agent.get("queue_waiting", 0),
            "queue_groups": agent.get("queue_groups", len(agent["queue"])),
            "queue": [self._group(group, now_s) for group in agent["queue"]],
            "past": self._past.note(agent["id"], number, state, now_s),
        }

    def _group(self, group: Json, now_s: float) -> list[Any]:
        """As `GROUP` in the page's source has it."""
        return [
            group["group"],
            self.models.number(group["model"]),
            self.classes.number(group["slo_class"]),
            group["waiting"],
            group["held"],
            _at(now_s, group["starts_in_s"]),
            _at(now_s, group.get("ends_in_s")),
            group.get("swap_s", 0.0),
            _at(now_s, group.get("due_in_s")),
            group.get("expected_late", 0),
            group["first_request"],
        ]


def batch_of(batch: Json) -> Json:
    """What is shown of a batch, as its client sees it: nothing that its client wrote."""
    return {name: batch[name] for name in _BATCH} | {"forecast": batch["qlm"]}


def state_of(agent: Json) -> str:
    """One word for how an instance is."""
    if not agent["connected"]:
        return "away"
    if agent["swapping_to"]:
        return "swapping"
    if agent["draining"]:
        return "draining"
    return "ready" if agent["ready"] else "down"


def changes(before: Json, after: Json) -> Json:
    """What is to be said to whoever knows `before`: values that are new, and of agents those that changed or went."""
    said: Json = {
        name: value
        for name, value in after.items()
        if name != "agents" and (name not in before or before[name] != value)
    }
    old, new = before.get("agents", {}), after.get("agents", {})
    agents = {id: agent for id, agent in new.items() if old.get(id) != agent}
    gone = [id for id in old if id not in new]
    if agents:
        said["agents"] = agents
    if gone:
        said["gone"] = gone
    return said


def of_tenant(digest: Json, yours: Json) -> Json:
    """What a tenant sees: which agents there are, and its own requests.

    Args:
        yours: counts of its requests.
    """
    said = {name: digest[name] for name in _OPEN_KEYS if name in digest}
    agents = {
        id: {name: agent[name] for name in _OPEN if name in agent} | {"queue": []}
        for id, agent in digest.get("agents", {}).items()
    }
    return said | {"agents": agents, "yours": yours}


def _at(now_s: float, in_s: float | None) -> float | None:
    return None if in_s is None else round(now_s + in_s, 1)


def _plan(plan: Json, now_s: float) -> Json:
    bound_age_s = plan["bound_age_s"]
    shown = {name: value for name, value in plan.items() if name not in ("age_s", "bound_age_s")}
    return shown | {
        "at": round(now_s - plan["age_s"], 1),
        "bound_at": None if bound_age_s is None else round(now_s - bound_age_s, 1),
    }
