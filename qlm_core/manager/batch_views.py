"""Pictures of batches as plain data: what is left of each, and when it will be done. The forms are in docs/api.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlm_core.grouping import BatchKey
from qlm_core.manager.bulks import Bulk
from qlm_core.manager.finishes import STAGES
from qlm_core.manager.machine import Manager
from qlm_core.model import RequestMeta

_SHOWN_MAX = 1_000


def batches(manager: Manager, *, now_s: float) -> list[dict[str, Any]]:
    """The batches that are not over, the first due first."""
    known = manager.bulks.by_batch()
    first = sorted(known, key=lambda key: _due_s(known[key]))[:_SHOWN_MAX]
    return [_batch(manager, key, known[key], now_s) for key in first]


def _due_s(parts: Sequence[Bulk]) -> float:
    return min([one.due_s for one in parts])


def _batch(manager: Manager, key: BatchKey, parts: Sequence[Bulk], now_s: float) -> dict[str, Any]:
    said = manager.finishes.of(key)
    gateway, id = key
    return {
        "batch": id,
        "gateway": gateway,
        "tenant": parts[0].tenant,
        "due_in_s": round(_due_s(parts) - now_s, 3),
        "models": [
            {
                "model": one.key.model,
                "waiting_lines": one.unreleased,
                "waiting": one.at_hand,
                "held": one.held,
                "ended": one.ended,
            }
            for one in parts
        ],
        "feasible": None if said is None else said.feasible,
        "finish_p50_s": None if said is None else _rounded(said.finish_p50_s),
        "finish_p90_s": None if said is None else _rounded(said.finish_p90_s),
        "explanation": "" if said is None else said.explanation,
        "said_s_ago": manager.finishes.age_s(key, now_s=now_s),
    }


def batch_of(manager: Manager, request: RequestMeta, *, now_s: float) -> dict[str, Any]:
    """What the explanation of a line says of its batch; nothing of another request."""
    key = request.gateway, request.batch
    parts = manager.bulks.by_batch().get(key) if request.batch else None
    return {} if not parts else {"batch": _batch(manager, key, parts, now_s)}


def finishes(manager: Manager) -> list[dict[str, Any]]:
    """How often finish times held that were told at the beginning of each stage of a batch."""
    found = []
    for most, record in zip(STAGES, manager.finishes.records, strict=True):
        p50, p90 = (round(count / max(1, record.observed), 4) for count in record.covered)
        found.append(
            {
                "done_max": round(most, 3),
                "observed": record.observed,
                "coverage_p50": p50,
                "coverage_p90": p90,
            }
        )
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
