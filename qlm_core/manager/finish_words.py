"""Why a batch will be done when it will, in words: what it waits behind, what limits it, what would help."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from qlm_core.manager.bulks import Bulk
from qlm_core.manager.reckoning import Outlook
from qlm_core.model import ModelName

_MODELS_SHOWN_MAX = 5
_WORTH_SAYING_S = 5.0
_WORTH_SAYING = 0.05
_KNOWN_LINES = 20


def unserved(models: Sequence[ModelName]) -> str:
    """Why nothing can be said."""
    named = ", ".join(models[:_MODELS_SHOWN_MAX])
    return f"no connected agent serves {named}; start one, or the batch will not end"


def explained(
    parts: Sequence[Bulk],
    outlooks: Sequence[Outlook],
    p50_s: float,
    p90_s: float,
    left_s: float,
    *,
    feasible: bool,
) -> str:
    """A few sentences; `left_s` of the completion window are left, less than nothing once that is over."""
    last = max(outlooks, key=lambda one: one.p90_s)
    said = [_progress(parts, last)]
    if last.behind_s > _WORTH_SAYING_S:
        said.append(f"What stands before it in the queues takes {duration(last.behind_s)}.")
    if last.taken > _WORTH_SAYING:
        said.append(f"Requests that go first take {last.taken:.0%} of those instances.")
    if last.ended < _KNOWN_LINES:
        said.append(
            f"How long its outputs are is not known yet ({last.output_tokens:.0f} tokens are assumed)."
        )
    if left_s <= 0.0:
        said.append("Its window is over.")
    elif feasible:
        said.append(f"{duration(left_s)} of its window are left.")
    else:
        said.append(_help(last, p50_s, p90_s, left_s))
    return " ".join(said)


def _progress(parts: Sequence[Bulk], last: Outlook) -> str:
    left = sum(one.left for one in parts)
    lines = "1 line" if left == 1 else f"{left} lines"
    where = "1 instance" if last.instances == 1 else f"{last.instances} instances"
    if not last.lines_per_s:
        return f"{lines} left, all of them at engines."
    text = f"{lines} left"
    if len(parts) > 1:
        text += f" of {len(parts)} models, {last.model} the last of them"
    return f"{text}; {where} start {last.lines_per_s:.3g} lines/s together."


def _help(last: Outlook, p50_s: float, p90_s: float, left_s: float) -> str:
    late = (
        f"{duration(left_s)} of its window are left, and it needs {duration(p50_s)} to "
        f"{duration(p90_s)}."
    )
    busy_s = p90_s - last.behind_s
    spare_s = left_s - last.behind_s
    ways = [f"a window that is {duration(p90_s - left_s)} longer"]
    if spare_s > last.tail_s and busy_s > last.tail_s and last.instances:
        times = (busy_s - last.tail_s) / (spare_s - last.tail_s)
        more = ceil(last.instances * (times - 1.0))
        if more > 0:
            ways.append(f"{more} more instance{'s' if more > 1 else ''} of the kind")
        if last.lines_per_s:
            ways.append(f"{1.0 - 1.0 / times:.0%} fewer lines")
    return f"{late} What would help: {', or '.join(ways)}."


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    if seconds < 5400.0:
        return f"{seconds / 60.0:.0f} min"
    if seconds < 172_800.0:
        return f"{seconds / 3600.0:.1f} h"
    return f"{seconds / 86_400.0:.1f} days"
