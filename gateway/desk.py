"""What both front doors share: the parts of one gateway, and views of it as JSON."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from itertools import islice

from gateway import openai
from gateway.answer import Json, usage_of
from gateway.driver import Driver
from gateway.intake import Intake
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.solver_link import SolverLink
from qlm_core.config import Config
from qlm_core.errors import NotFound, Unavailable, UnknownModel
from qlm_core.ledger import EndRecord, Row
from qlm_core.model import RequestId

LISTED_MAX = 1000
# A solver answers within milliseconds; a client that asked to be told should not wait longer for it than this.
ESTIMATE_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts of one gateway."""

    config: Config
    driver: Driver
    intake: Intake
    solver: SolverLink
    metrics: Metrics

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

    def models(self) -> bytes:
        """OpenAI's list of models."""
        data = [_model(name, length) for name, length in self.intake.models().items()]
        return openai.encode({"object": "list", "data": data})

    def model(self, name: str) -> bytes:
        """OpenAI's model object. Raises UnknownModel."""
        known = self.intake.models()
        if name not in known:
            raise UnknownModel(name[:128], tuple(known))
        return openai.encode(_model(name, known[name]))

    def listing(self) -> bytes:
        """The newest open requests."""
        rows = [
            row_json(row, self.now_s) for row in islice(self.driver.ledger.newest(), LISTED_MAX)
        ]
        return openai.encode({"object": "list", "data": rows})

    async def standing(self, id: RequestId) -> bytes:
        """Where a request stands, and its answer once it has ended. Raises NotFound."""
        row = self.driver.ledger.row(id)
        if row is not None:
            return openai.encode(row_json(row, self.now_s))
        await self.settled(id)
        request, end = await self.driver.ended(id)
        view: Json = {"id": id, "model": request.model, "slo_class": request.slo_class}
        view |= end_json(end.record)
        view["response"] = openai.parse(end.answer)
        return openai.encode(view)

    async def explain(self, id: RequestId) -> bytes:
        """Why a request stands where it stands. Raises NotFound, Unavailable."""
        row = self.driver.ledger.row(id)
        if row is None:
            await self.settled(id)
            _, end = await self.driver.ended(id)
            return openai.encode({"id": id} | end_json(end.record))
        try:
            return await self.solver.explain(id)
        except NotFound:
            raise Unavailable(
                "the solver has not heard of this request yet; try again later"
            ) from None

    async def settled(self, id: RequestId) -> None:
        """Wait until an end that is being stored is stored."""
        live = self.driver.live(id)
        if live is not None and live.record is not None:
            await asyncio.shield(live.ended)

    async def estimated(self, live: Live) -> None:
        """Wait a moment for the solver's estimate, if a solver is there."""
        if live.estimate is not None or live.record is not None or not self.solver.connected:
            return
        if live.estimated is None:
            live.estimated = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(live.estimated), ESTIMATE_WAIT_S)

    @property
    def now_s(self) -> float:
        """The ledger's clock."""
        return asyncio.get_running_loop().time()


def row_json(row: Row, now_s: float) -> Json:
    """An open request as JSON."""
    return {
        "id": row.meta.id,
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
