"""Why a request stands where it stands, in words and figures: what its gateway knows, and what the solver adds.

The gateway knows where a request is, since when, what it has produced and what was estimated; the solver knows the queue. So of
what runs, of what has ended, and while no solver answers, the gateway speaks alone. The form is documented in docs/api.md.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from gateway.answer import Json
from gateway.store import StoredRequest
from qlm_core.ledger import EndRecord, Row
from qlm_core.model import Estimate, Phase, RequestId

# Requests without a row of the store that can be explained after their end.
REMEMBERED_MAX = 1_000
# Of an engine's last word, which tells of usage; one that is longer is not kept.
CLOSING_BYTES_MAX = 4_096


class Remembered:
    """How the latest requests ended that are not stored, without their bodies."""

    def __init__(self) -> None:
        self._ends: OrderedDict[RequestId, tuple[str, float, str, EndRecord]] = OrderedDict()

    def add(self, request: StoredRequest, ended_at: float, record: EndRecord) -> None:
        """Keep an end, and drop the oldest beyond the limit."""
        if len(record.closing) > CLOSING_BYTES_MAX:
            record = replace(record, closing=b"")
        self._ends[request.id] = (request.owner, ended_at, request.model, record)
        if len(self._ends) > REMEMBERED_MAX:
            self._ends.popitem(last=False)

    def find(self, id: RequestId) -> tuple[str, float, str, EndRecord] | None:
        """Owner, end (of the store's clock), model and record of one that has ended, or None."""
        return self._ends.get(id)


def open_json(row: Row, solver: Json | None, trouble: str, now_s: float) -> Json:
    """An open request.

    Args:
        solver: the solver's explanation, if it gave one.
        trouble: else why it did not.
    """
    meta, started_s = row.meta, row.pulled_s
    own: Json = {
        "id": meta.id,
        "model": meta.model,
        "slo_class": meta.slo_class,
        "phase": row.phase.value,
        "state": _STATES[row.phase],
        "because": "",
        "age_s": round(now_s - meta.arrival_s, 3),
        "waited_s": round((now_s if started_s is None else started_s) - meta.arrival_s, 3),
        "ttft_s": None
        if row.first_token_s is None
        else round(row.first_token_s - meta.arrival_s, 3),
        "due_in_s": round(meta.due_s - now_s, 3),
        "estimate": row.estimate,
        "prompt_tokens": row.counted_prompt_tokens or meta.prompt_tokens,
        "produced_tokens": row.output_tokens,
        "max_output_tokens": meta.max_output_tokens,
        "agent": row.agent,
        "attempts": row.attempts,
        "evictions": row.evictions,
    }
    if row.phase is not Phase.WAITING:
        own["because"] = _running(row, own)
        return (solver or {}) | own
    if solver is not None:
        # Whose queue it stands in is the solver's to say, and what it had to wait so far the ledger's.
        return own | solver | {"waited_s": own["waited_s"]}
    again = "" if not row.attempts else f" again, after {_tokens(row.output_tokens)} of output"
    own["because"] = f"it waits{again}; its place in the queue is not known here: {trouble}"
    return own


def ended_because(record: EndRecord) -> str:
    """How a request ended, as a sentence."""
    what = record.phase.value + (f" ({record.reason})" if record.reason else "")
    if record.error:
        what += f": {record.error}"
    parts = [f"{what} after {record.e2e_s:.1f} s"]
    if record.queue_s is not None:
        parts.append(f"waited {record.queue_s:.1f} s{_estimated(record.estimate)}")
    if record.ttft_s is not None:
        parts.append(f"first token after {record.ttft_s:.1f} s")
    if record.output_tokens:
        parts.append(f"{_tokens(record.output_tokens)} of output")
    if record.phase is Phase.FINISHED:
        parts.append("its targets were met" if record.attained else "its targets were missed")
    return ", ".join(parts)


_STATES = {Phase.WAITING: "waiting", Phase.PULLED: "held", Phase.RUNNING: "running"}


def _running(row: Row, own: Json) -> str:
    waited = f"it waited {own['waited_s']:.1f} s{_estimated(row.estimate)}"
    runs_s = own["age_s"] - own["waited_s"]
    if row.phase is Phase.PULLED:
        return f"agent {row.agent} has it and its engine has given nothing yet; {waited}"
    of = f" of at most {row.meta.max_output_tokens}" if row.meta.max_output_tokens else ""
    return f"agent {row.agent} runs it: {_tokens(row.output_tokens)} so far{of}, {runs_s:.1f} s after it was taken; {waited}"


def _estimated(estimate: Estimate | None) -> str:
    return "" if estimate is None else f" ({estimate.mean_s:.1f} s were estimated)"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
