"""What a tenant sees of the solver's view and explanations, which are about everybody's requests.

Operators see them as they are (docs/api.md). A tenant sees which agents and models there are, its own requests by model and
class, and how far back one of them stands: nothing that is told of others is more than a count.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.answer import Json
from qlm_core.ledger import Row
from qlm_core.model import Phase

# Of an agent, what does not come from anybody's requests.
_AGENT = (
    "id",
    "gpu",
    "connected",
    "ready",
    "draining",
    "awake_model",
    "swapping_to",
    "tiers",
    "models",
)
# Of an explanation, what names other requests or counts them one group at a time.
_OF_OTHERS = ("group", "groups_ahead")


def view_of(view: Json, rows: Sequence[Row]) -> Json:
    """The view for whose open requests are in `rows`, which tells how many of theirs wait, and where the others are."""
    held = [row for row in rows if row.phase is not Phase.WAITING]
    agents = []
    for agent in view.get("agents", ()):
        theirs = [row for row in held if row.agent == agent["id"]]
        running = sum(row.phase is Phase.RUNNING for row in theirs)
        shown = {name: agent[name] for name in _AGENT if name in agent}
        agents.append(shown | {"held": len(theirs), "running": running, "queue": []})
    groups: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        counts = groups.setdefault((row.meta.model, row.meta.slo_class), [0, 0])
        counts[row.phase is not Phase.WAITING] += 1
    return {
        "waiting": len(rows) - len(held),
        "held": len(held),
        "agents": agents,
        "yours": [
            {"model": model, "slo_class": slo_class, "waiting": waiting, "held": taken}
            for (model, slo_class), (waiting, taken) in groups.items()
        ],
    }


def explanation_of(explanation: Json) -> Json:
    """The explanation of a request for its tenant."""
    return {name: value for name, value in explanation.items() if name not in _OF_OTHERS}
