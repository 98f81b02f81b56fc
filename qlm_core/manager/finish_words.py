"""Why a batch will be done when it will, in words: what it waits behind, what limits it, what would help."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

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
    lines: int,
    models: int,
    outlooks: Sequence[Outlook],
    p50_s: float,
    p90_s: float,
    left_s: float,
    *,
    feasible: bool,
) -> str:
    """A few sentences.

    Args:
        lines: that have not ended, of so many models.
        left_s: of the completion window; less than nothing once that is over, infinite without one.
    """
    last = max(outlooks, key=lambda one: one.p90_s)
    said = [_progress(lines, models, last)]
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
    elif left_s == inf:
        pass
    elif feasible:
        said.append(f"{duration(left_s)} of its window are left.")
    else:
        said.append(_help(last, p50_s, p90_s, left_s))
    return " ".join(said)


def _progress(lines: int, models: int, last: Outlook) -> str:
    text = "1 line left" if lines == 1 else f"{lines} lines left"
    if models > 1:
        text += f" of {models} models, {last.model} the last of them"
    if not last.lines_per_s:
        return f"{text}, all of them at engines."
    where = "1 instance starts" if last.instances == 1 else f"{last.instances} instances start"
    return f"{text}; {where} {last.lines_per_s:.3g} lines/s."


def _help(last: Outlook, p50_s: float, p90_s: float, left_s: float) -> str:
    late = (
        f"{duration(left_s)} of its window are left, and it needs {duration(p50_s)} to "
        f"{duration(p90_s)}."
    )
    ways = [f"a window that is {duration(p90_s - left_s)} longer"]
    # Neither more instances nor fewer lines shorten what one output takes.
    spare_s, busy_s = (one_s - last.behind_s - last.tail_s for one_s in (left_s, p90_s))
    if spare_s > 0.0 and last.instances:
        times = busy_s / spare_s
        more = ceil(last.instances * (times - 1.0))
        ways.append(f"{more} more instance{'s' if more > 1 else ''} of the kind")
        ways.append(f"{1.0 - 1.0 / times:.0%} fewer lines")
    elif last.tail_s > 0.5 * p50_s:
        ways.append("a lower limit on output tokens")
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
