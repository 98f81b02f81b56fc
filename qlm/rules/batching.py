"""The rules of batches: how their lines are planned, and when they are said to be done."""

from __future__ import annotations

from math import inf
from typing import Any

from qlm.rules.registry import Rule

_BULKS = "qlm_core.manager.bulks"
_FINISHES = "qlm_core.manager.finishes"
_RECKONING = "qlm_core.manager.reckoning"
_LENGTHS = "qlm_core.rwt.batches"
_FORETOLD = "qlm_core.rwt.foretold"


def _learned_at_once(
    bulks: Any, request: Any, output_tokens: int, seen: int, agent: object
) -> None:
    """An end tells of lengths as soon as it is known."""
    bulks._estimators.finished(request, output_tokens, seen)


BATCHES = (
    Rule(
        name="few-lines-count",
        part="batches",
        reason="Counts 64 lines of a group at most where groups are weighed, as only those that could run next compete.",
        where="qlm_core.grouping:COUNTED_LINES_MAX",
        without=1 << 40,
    ),
    Rule(
        name="two-groups-of-lines-each",
        part="batches",
        reason="Plans the lines of a model as two groups for each instance, whatever their number, so that all end together.",
        where=f"{_BULKS}:GROUPS_PER_INSTANCE",
        without=1,
    ),
    Rule(
        name="lines-go-where-wanted-first",
        part="batches",
        reason="Has released lines wait where lines are wanted within 20 s of the first place that wants any.",
        where=f"{_BULKS}:SOON_S",
        without=inf,
    ),
    Rule(
        name="ends-of-lines-are-learned-late",
        part="batches",
        reason="Learns the length of a line at its agent's next report, as those that go on are learned of then.",
        where=f"{_BULKS}:Bulks.finished",
        without=_learned_at_once,
    ),
    Rule(
        name="batches-lie-apart",
        part="batches",
        reason="Takes mean outputs of batches to lie a factor of 3.7 apart until batches have ended.",
        where=f"{_LENGTHS}:_APART",
        without=0.0,
    ),
    Rule(
        name="first-lines-tell-little",
        part="batches",
        reason="Takes scale and shape of lengths from few lines however many run, as no distribution is that simple.",
        where=f"{_LENGTHS}:_SCALE_LINES",
        without=inf,
    ),
    Rule(
        name="rates-drift",
        part="batches",
        reason="Lets rates of arrival change by a factor of one and a half over as long as they are known from.",
        where=f"{_RECKONING}:_RATE_DRIFT",
        without=0.0,
    ),
    Rule(
        name="longest-is-unsure",
        part="batches",
        reason="Widens what follows the last start by three tenths, as nobody has seen an output like the longest.",
        where=f"{_RECKONING}:_TAIL_ERROR",
        without=0.0,
    ),
    Rule(
        name="all-the-rest-is-unsure",
        part="batches",
        reason="Widens finish times by a tenth for swaps, batches that are not full and plans that change.",
        where=f"{_RECKONING}:_MODEL_ERROR",
        without=0.0,
    ),
    Rule(
        name="slowness-is-seen",
        part="batches",
        reason="Compares how many lines ended with how many should have, and expects the others to be as late.",
        where=f"{_FORETOLD}:Slowness.value",
        without=property(lambda slowness: 1.0),
    ),
    Rule(
        name="slowness-stays",
        part="batches",
        reason="Takes the next batch of a model to be as late as those before it.",
        where=f"{_FINISHES}:PACE_STEP",
        without=0.0,
    ),
    Rule(
        name="finishes-off-as-measured",
        part="batches",
        reason="Starts calibration with how far finish times were off on simulated beds.",
        where=f"{_FINISHES}:FIRST_RECORDS",
        without=((0.0, 1.0),) * 4,
    ),
    Rule(
        name="verdict-beyond-the-middle",
        part="batches",
        reason="Calls a batch feasible by a time a little after p50, where both errors together are rarest.",
        where=f"{_FINISHES}:VERDICT",
        without=0.0,
    ),
)
