"""Which prompts are kept back for a moment, so that outputs under way keep the pace that was promised of them.

An engine computes prompts between two tokens of every output in its batch, so a burst of prompts slows all of them down at once.
In the mean that is foreseen (`executor/tempo.py`), but an output of a dozen tokens has no time to make up for it. So a request
whose first token is not due soon goes to the engine when its prompt fits into an iteration at the promised pace. A prompt that is
too long for that goes alone, and when everybody can bear the pause.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from qlm_core.executor.batch import Batch, InFlight
from qlm_core.executor.reading import CAUTION
from qlm_core.model import RequestRef

WAITS_S = 2.0
"""A first token that is due within this time is waited for: its prompt is not kept back."""


def disturbs(
    ref: RequestRef, batch: Batch, may_pause_s: Callable[[InFlight], float], *, now_s: float
) -> bool:
    """Whether a prompt that can wait would cost somebody on the engine the promised pace.

    Args:
        may_pause_s: how long an output may rest with all that was promised of it kept; negative for one that is late already.
    """
    if batch.tempo.pace_s == inf or not _can_wait(ref, batch.reading.token_s, now_s):
        return False
    unread = batch.reading.unread_tokens
    fits = batch.tempo.prompt_tokens(len(batch.running), batch.resident_tokens)
    if unread + ref.prompt_tokens <= fits:
        return False
    if unread:
        return True
    spare_s = [
        may_pause_s(item) for item in batch.running.values() if item.pace_s < inf and item.produced
    ]
    bearable_s = min((one for one in spare_s if one >= 0.0), default=inf)
    return ref.prompt_tokens * batch.reading.token_s > bearable_s


def _can_wait(ref: RequestRef, token_s: float, now_s: float) -> bool:
    """What has begun is owed its next token, and does not wait."""
    own_s = CAUTION * ref.prompt_tokens * token_s
    return not ref.produced_tokens and now_s + WAITS_S + own_s < ref.due_s
