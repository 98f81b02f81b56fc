"""What both front doors share: the parts of one gateway, and views of it as JSON."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec

from gateway import explaining, openai
from gateway.answer import Json, usage_of
from gateway.batches.desk import BatchDesk
from gateway.driver import Driver
from gateway.files.store import FileStore
from gateway.intake import Intake
from gateway.keys import ApiKeys, Caller
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.page.hub import Hub
from gateway.queue_view import explanation_of, view_of
from gateway.responses.drafting import ResponseIntake
from gateway.responses.ended import ended_body
from gateway.sight import Sight
from gateway.solver_link import SolverLink
from gateway.store import StoredRequest
from protos.doors import Rejections
from qlm_core.config import Config
from qlm_core.errors import NotFound, Unavailable, UnknownModel
from qlm_core.ledger import EndRecord, Row
from qlm_core.model import RequestId

# A solver answers within milliseconds; a client that asked to be told should not wait longer for it than this.
ESTIMATE_WAIT_S = 0.1
RESPONSES_PATH = "/v1/responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts of one gateway."""

    config: Config
    driver: Driver
    intake: Intake
    responses: ResponseIntake
    solver: SolverLink
    metrics: Metrics
    keys: ApiKeys
    sight: Sight
    files: FileStore
    batches: BatchDesk
    rejections: Rejections
    page: Hub | None = None

    def unready(self) -> str:
        """Why no request would be served now, in words; "" if one would.

        A gateway that is not ready takes requests all the same, and they wait.
        """
        if self.driver.draining:
            return "the gateway is shutting down"
        if not self.solver.connected:
            return "no solver is connected"
        if not self.solver.models():
            return "no agent serves any model"
        if not self.solver.engines_up:
            return "no engine of any agent is up"
        return ""

    def models(self, caller: Caller) -> bytes:
        """OpenAI's list of models, of those that the caller may use."""
        known = self.intake.models(caller)
        data = [_model(name, length) for name, length in known.items()]
        return openai.encode({"object": "list", "data": data})

    def model(self, name: str, caller: Caller) -> bytes:
        """OpenAI's model object. Raises UnknownModel."""
        known = self.intake.models(caller)
        if name not in known:
            raise UnknownModel(name[:128], tuple(known))
        return openai.encode(_model(name, known[name]))

    async def queues(self, caller: Caller) -> bytes:
        """The solver's view, of which a tenant sees what is not of others. Raises Unavailable."""
        view = await self.solver.view()
        if caller.operator:
            return view
        return openai.encode(view_of(openai.parse(view), list(self.sight.newest(caller))))

    async def standing(self, id: RequestId, caller: Caller) -> bytes:
        """Where a request stands, and its answer once it has ended. Raises NotFound."""
        row, live = self.sight.row(id, caller), self.sight.live(id, caller)
        if row is not None:
            return openai.encode(row_json(row, live, self.now_s))
        await self.sight.settled(id, caller)
        request, end = await self.sight.ended(id, caller)
        view = ended_json(request, end.ended_at, end.record)
        if request.asked:
            view["response"] = msgspec.Raw(ended_body(request, end.record, end.answer))
        else:
            # As it is: what is in it is not read, so no number is written in another way.
            view["response"] = msgspec.Raw(end.answer) if end.answer else None
        return openai.encode(view)

    async def explain(self, id: RequestId, caller: Caller) -> bytes:
        """Why a request stands where it stands, or how it ended. Raises NotFound, Unavailable (the store)."""
        said, trouble = None, ""
        if self.sight.row(id, caller) is not None:
            said, trouble = await self._asked(id)
        # It may have ended while the solver was asked.
        row = self.sight.row(id, caller)
        if row is None:
            return openai.encode(await self._ended(id, caller))
        explanation = explaining.open_json(row, said, trouble, self.now_s)
        return openai.encode(explanation if caller.operator else explanation_of(explanation))

    async def _asked(self, id: RequestId) -> tuple[Json | None, str]:
        """What the solver says of a request, and else why it says nothing."""
        if not self.solver.connected:
            return None, "no solver is connected"
        try:
            said = openai.parse(await self.solver.explain(id))
        except msgspec.DecodeError:
            said = None
        except NotFound:
            return None, "the solver has not heard of it yet"
        except Unavailable as error:
            return None, str(error)
        return (
            (said, "")
            if isinstance(said, dict)
            else (None, "what the solver says of it cannot be read")
        )

    async def _ended(self, id: RequestId, caller: Caller) -> Json:
        """How a request ended, that is stored or was among the latest."""
        await self.sight.settled(id, caller)
        remembered = self.sight.remembered(id, caller)
        if remembered is not None:
            ended_at, model, record = remembered
            view: Json = {"id": id, "model": model, "ended": int(ended_at)} | end_json(record)
        else:
            request, end = await self.sight.ended(id, caller)
            record = end.record
            view = ended_json(request, end.ended_at, record)
        said = {"state": record.phase.value, "because": explaining.ended_because(record)}
        return view | said

    async def estimated(self, live: Live) -> None:
        """Wait a moment for the solver's estimate, if a solver is there."""
        if live.estimate is not None or live.record is not None or not self.solver.connected:
            return
        if live.estimated is None:
            live.estimated = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ESTIMATE_WAIT_S):
                await asyncio.shield(live.estimated)

    @property
    def now_s(self) -> float:
        """The ledger's clock."""
        return asyncio.get_running_loop().time()


def path_of(request: StoredRequest) -> str:
    """The endpoint that a request came to, as its client knows it."""
    return RESPONSES_PATH if request.asked else request.endpoint.path


def row_json(row: Row, live: Live | None, now_s: float) -> Json:
    """An open request as JSON."""
    request = None if live is None else live.request
    return {
        "id": row.meta.id,
        "endpoint": None if request is None else path_of(request),
        "created": None if request is None else request.created,
        "model": row.meta.model,
        "slo_class": row.meta.slo_class,
        "phase": row.phase.value,
        "waited_s": now_s - row.meta.arrival_s,
        "prompt_tokens": row.meta.prompt_tokens,
        "produced_tokens": row.output_tokens,
        "agent": row.agent,
        "attempts": row.attempts,
        "evictions": row.evictions,
        "estimate": row.estimate,
    }


def ended_json(request: StoredRequest, ended_at: float, record: EndRecord) -> Json:
    """A request that has ended as JSON, without its answer.

    Args:
        ended_at: seconds of the store's clock, which resembles Unix time.
    """
    return {
        "id": request.id,
        "endpoint": path_of(request),
        "created": request.created,
        "ended": int(ended_at),
        "model": request.model,
        "slo_class": request.slo_class,
    } | end_json(record)


def end_json(record: EndRecord) -> Json:
    """A terminal record as JSON."""
    return {
        "phase": record.phase.value,
        "reason": record.reason,
        "error": record.error,
        "usage": usage_of(record),
        "queue_s": record.queue_s,
        "ttft_s": record.ttft_s,
        "tpot_s": record.tpot_s,
        "pause_s": record.pause_s,
        "e2e_s": record.e2e_s,
        "attained": record.attained,
        "attempts": record.attempts,
        "evictions": record.evictions,
        "resumed_by": record.resumed_by.value,
        "estimate": record.estimate,
    }


def _model(name: str, length: int) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "qlm",
        "max_model_len": length,
    }
