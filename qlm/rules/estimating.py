"""The rules of waiting-time estimates, beyond the paper."""

from __future__ import annotations

from math import inf
from typing import Any

from qlm.rules.registry import Rule

_TIMELINE = "qlm_core.manager.timeline"
_ESTIMATORS = "qlm_core.manager.estimators"
_CALIBRATION = "qlm_core.rwt.calibration"


def _as_estimated(calibration: Any, wait: Any) -> Any:
    """The quantiles of a wait as they are."""
    return wait.quantiles_s


ESTIMATOR = (
    Rule(
        name="overtaking",
        part="estimator",
        reason="Counts more urgent requests that go on arriving, which will go first.",
        where=f"{_TIMELINE}:Timeline._overtakers",
        without=lambda timeline, agent, key, agents, now_s: ([], [], []),
    ),
    Rule(
        name="gotts-horizon",
        part="estimator",
        reason="Takes arrivals to go on for as long as they have with probability one half, nine times that with nine tenths.",
        where="qlm_core.rwt.waits:lasts_for",
        without=lambda probability: 1.0,
    ),
    Rule(
        name="mean-horizon",
        part="estimator",
        reason="Takes them to go on for 0.4 of that in the mean, which comes nearest in least squares.",
        where="qlm_core.rwt.waits:_LASTING_MEAN",
        without=1.0,
    ),
    Rule(
        name="grace-of-new-streams",
        part="estimator",
        reason="Adds ten seconds to the age of a stream, so that a new one is not taken to be over at once.",
        where="qlm_core.rwt.rates:ArrivalRate._GRACE_S",
        without=0.0,
    ),
    Rule(
        name="worth-orders-overtakers",
        part="estimator",
        reason="Has those go first that are worth most for the time that is left, as plans do, not those due first.",
        where=f"{_TIMELINE}:_Stream.first_before_s",
        without=lambda stream, other: other.ttft_s - stream.ttft_s,
    ),
    Rule(
        name="pressing-shortens-waits",
        part="estimator",
        reason="Ends a wait by the target where room is taken from outputs that give way.",
        where=f"{_TIMELINE}:relieved",
        without=lambda steady, pressed, *, press_in_s, due_in_s: steady,
    ),
    Rule(
        name="full-slots",
        part="estimator",
        reason="Looks at each output of an engine whose few slots are all taken, to tell when the next one ends.",
        where=f"{_TIMELINE}:full_slots",
        without=lambda agent, groups, estimators, *, now_s: None,
    ),
    Rule(
        name="prompts-one-after-the-other",
        part="estimator",
        reason="Has a request wait until the prompts ahead are computed even while there is room.",
        where=f"{_TIMELINE}:_prompt_s",
        without=lambda rate: 0.0,
    ),
    Rule(
        name="iteration-under-way",
        part="estimator",
        reason="Adds what is left of the iteration under way, and the next where it is chosen already.",
        where=f"{_ESTIMATORS}:_passing",
        without=lambda profile: 0.0,
    ),
    Rule(
        name="pace-uncertainty",
        part="estimator",
        reason="Adds the uncertainty of the pace itself, which no sum over requests averages away.",
        where=f"{_ESTIMATORS}:_pace_spread",
        without=lambda speed_spread, variation, ended: 0.0,
    ),
    Rule(
        name="life-table",
        part="estimator",
        reason="Learns lengths from outputs that run on, since of a young batch only the short ones have ended.",
        where=f"{_ESTIMATORS}:Estimators.produced",
        without=lambda estimators, request, tokens, seen: seen,
    ),
    Rule(
        name="speed-from-steady-batches",
        part="estimator",
        reason="Learns an engine's speed from intervals alone in which its batch hardly changed.",
        where=f"{_ESTIMATORS}:_STEADY",
        without=inf,
    ),
    Rule(
        name="calibration",
        part="estimator",
        reason="Moves quantiles by outcomes until they hold as often as they claim.",
        where=f"{_CALIBRATION}:Calibration._quantiles",
        without=_as_estimated,
    ),
    Rule(
        name="calibration-by-magnitude",
        part="estimator",
        reason="Calibrates short and long waits apart, by powers of four.",
        where=f"{_CALIBRATION}:Calibration._MAGNITUDE",
        without=1e6,
    ),
    Rule(
        name="neighbours-teach",
        part="estimator",
        reason="Starts a magnitude with a tenth of what its neighbour has learned.",
        where=f"{_CALIBRATION}:Calibration._LIKENESS",
        without=0.0,
    ),
    Rule(
        name="wide-at-first",
        part="estimator",
        reason="Starts p90 and p99 wide, as nothing is known of a queue at first.",
        where=f"{_CALIBRATION}:Calibration._FIRST",
        without=(0.0, 0.0, 0.0),
    ),
    Rule(
        name="hardly-wide-without-a-queue",
        part="estimator",
        reason="Starts waits of less than 0.2 s nearly as they are: there is no queue that could be longer.",
        where=f"{_CALIBRATION}:Calibration._FIRST_SHORT",
        without=(0.0, 0.5, 1.0),
    ),
    Rule(
        name="overdue-counts-at-once",
        part="estimator",
        reason="Counts a wait that has outlasted a quantile then, not minutes later at its first token.",
        where=f"{_CALIBRATION}:Calibration._GRACE_S",
        without=inf,
    ),
    Rule(
        name="lucky-ones-count-late",
        part="estimator",
        reason="Counts a wait that ends within its p50 when that is over, as the shortest of those told together end first.",
        where=f"{_CALIBRATION}:Calibration._LUCKY",
        without=0,
    ),
    Rule(
        name="steps-by-flight",
        part="estimator",
        reason="Shrinks steps with the number of undecided waits, since they will all err alike.",
        where=f"{_CALIBRATION}:_Shift._FLIGHT",
        without=inf,
    ),
    Rule(
        name="slow-landing",
        part="estimator",
        reason="Takes as many to be in flight for all that land together as when the first of them did.",
        where=f"{_CALIBRATION}:Calibration._LANDING",
        without=0.0,
    ),
    Rule(
        name="large-first-steps",
        part="estimator",
        reason="Learns in larger steps at first.",
        where=f"{_CALIBRATION}:_Shift._FIRST_STEP",
        without=0.0,
    ),
)
