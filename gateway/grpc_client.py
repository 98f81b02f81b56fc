"""The gRPC front door. Every request here is durable before it is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import grpc

from gateway import access, shapes
from gateway import headers as hd
from gateway.desk import Desk
from gateway.intake import NAME_BYTES_MAX, Wish
from gateway.keys import KEY_BYTES_MAX, ApiKeys, Caller, Forbidden
from gateway.live import Follower, Live
from protos import wire
from protos.doors import Check, Refusal
from protos.outbox import batches
from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as pb_grpc
from protos.qlm.v1 import types_pb2
from qlm_core.endpoint import Endpoint
from qlm_core.errors import (
    InvalidRequest,
    KeyReused,
    NotFound,
    QlmError,
    QueueFull,
    SetAside,
    ShedLate,
    Unavailable,
    UnknownModel,
)
from qlm_core.ledger import EndRecord, Row
from qlm_core.model import GatewayId, ModelName, Phase, RequestId, RequestMeta
from qlm_core.outcome import ShedReason

NO_KEY = "authorization: missing or unknown API key. Send Bearer and one of the API keys"
PAGE_MAX = 1000
PAGE_DEFAULT = 100
# Chunks are merged up to this size; clients of gRPC take messages of 4 MiB unless they say otherwise.
CHUNK_BYTES = 1_048_576
_ROW_NUMBER = re.compile(r"[0-9]{1,20}")

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Reply = TypeVar("Reply")


class UnauthenticatedError(QlmError):
    """API keys are configured and the call brought none of them."""


# The first class in the list that fits decides, so subclasses come first.
STATUS_OF: tuple[tuple[type[QlmError], grpc.StatusCode], ...] = (
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownModel, grpc.StatusCode.NOT_FOUND),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (KeyReused, grpc.StatusCode.ALREADY_EXISTS),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ShedLate, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (SetAside, grpc.StatusCode.DATA_LOSS),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (QlmError, grpc.StatusCode.INTERNAL),
)


def status_of(error: QlmError) -> grpc.StatusCode:
    """The gRPC status of an error of ours."""
    return next(code for kind, code in STATUS_OF if isinstance(error, kind))


async def _abort(desk: Desk, context: Context, error: QlmError) -> None:
    code = getattr(error, "code", None)
    desk.metrics.refused(code if isinstance(code, str) else status_of(error).name.lower())
    if isinstance(error, QueueFull | ShedLate):
        context.set_trailing_metadata(
            (("retry-after-s", str(max(1, math.ceil(error.retry_after_s)))),)
        )
    await context.abort(status_of(error), str(error))


def _answering(
    method: Callable[[ClientServicer, Request, Caller], Awaitable[Reply]],
) -> Callable[[ClientServicer, Request, Context], Awaitable[Reply]]:
    """A call with one answer, whose errors become gRPC statuses."""

    @functools.wraps(method)
    async def call(self: ClientServicer, request: Request, context: Context) -> Reply:
        async with self.called(context) as caller:
            return await method(self, request, caller)

    return call


def caller_of(keys: ApiKeys, context: Context) -> Caller | None:
    """Who makes a call; None if they may not come in."""
    said = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
    return keys.caller(*(value if isinstance(value, bytes) else value.encode() for value in said))


def keyed(desk: Desk) -> Check:
    """A check that lets in who brings an API key, where there are any."""

    def check(context: Context) -> Refusal | None:
        if caller_of(desk.keys, context) is not None:
            return None
        code = grpc.StatusCode.UNAUTHENTICATED
        desk.metrics.refused(code.name.lower())
        return Refusal(code, "key", NO_KEY)

    return check


class ClientServicer(pb_grpc.ClientServiceServicer):
    """Serves clients."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    @contextlib.asynccontextmanager
    async def called(self, context: Context) -> AsyncIterator[Caller]:
        """One call: gives who makes it, and turns errors into gRPC statuses."""
        try:
            caller = caller_of(self.desk.keys, context)
            if caller is None:
                raise UnauthenticatedError(NO_KEY)
            yield caller
        except QlmError as error:
            await _abort(self.desk, context, error)
            raise

    # ---------------------------------------------------------------- streams

    async def Submit(
        self, request: pb.SubmitRequest, context: Context
    ) -> AsyncIterator[pb.SubmitResponse]:
        async with self.called(context) as caller:
            id, slo_class = await self._take(request.request, context, caller, watched=True)
            live = self.desk.driver.live(id)
            follower = live.follow() if live is not None else None
            try:
                accepted = await self._accepted(id, slo_class)
                yield pb.SubmitResponse(event=pb.RequestEvent(accepted=accepted))
                async for event in self._events(id, caller, live, follower):
                    yield pb.SubmitResponse(event=event)
            finally:
                if live is not None and follower is not None:
                    live.unfollow(follower)

    async def WatchRequest(
        self, request: pb.WatchRequestRequest, context: Context
    ) -> AsyncIterator[pb.WatchRequestResponse]:
        async with self.called(context) as caller:
            id = RequestId(request.id)
            live = self.desk.sight.watch(id, caller)
            access.note(live)
            follower = live.follow() if live is not None else None
            try:
                async for event in self._events(id, caller, live, follower):
                    yield pb.WatchRequestResponse(event=event)
            finally:
                if live is not None and follower is not None:
                    live.unfollow(follower)

    async def _events(
        self, id: RequestId, caller: Caller, live: Live | None, follower: Follower | None
    ) -> AsyncIterator[pb.RequestEvent]:
        """Output and end of a request, from its beginning."""
        if live is None or follower is None:
            request, end = await self.desk.sight.ended(id, caller)
            if end.record.phase is Phase.FINISHED:
                data = shapes.chunk_of(end.answer, request.endpoint)
                chunk = pb.OutputChunk(chunk_json=data, tokens=end.record.output_tokens)
                yield pb.RequestEvent(chunk=chunk)
            yield pb.RequestEvent(ended=_ended(end.record))
            return
        while outputs := await follower.take():
            # A message costs far more than merging the chunks that came meanwhile.
            for part in batches(outputs, lambda output: len(output.data), CHUNK_BYTES):
                data, tokens = live.merge(part)
                yield pb.RequestEvent(chunk=pb.OutputChunk(chunk_json=data, tokens=tokens))
        if follower.overrun:
            raise Unavailable("the stream was read too slowly to be kept; take it up again")
        record = await asyncio.shield(live.ended)
        yield pb.RequestEvent(ended=_ended(record))

    # ---------------------------------------------------------------- calls

    async def Enqueue(self, request: pb.EnqueueRequest, context: Context) -> pb.EnqueueResponse:
        async with self.called(context) as caller:
            id, slo_class = await self._take(request.request, context, caller, watched=False)
            return pb.EnqueueResponse(accepted=await self._accepted(id, slo_class))

    @_answering
    async def GetRequest(
        self, request: pb.GetRequestRequest, caller: Caller
    ) -> pb.GetRequestResponse:
        id = RequestId(request.id)
        row = self.desk.sight.row(id, caller)
        if row is not None:
            return pb.GetRequestResponse(request=self._view(row))
        await self.desk.sight.settled(id, caller)
        stored, end = await self.desk.sight.ended(id, caller)
        view = pb.RequestView(
            id=id,
            model=stored.model,
            slo_class=stored.slo_class,
            phase=wire.phase_to_wire(end.record.phase),
            waited_s=end.record.e2e_s,
            prompt_tokens=end.record.prompt_tokens,
            produced_tokens=end.record.output_tokens,
            attempt=end.record.attempts,
        )
        return pb.GetRequestResponse(
            request=view, response_json=end.answer, ended=_ended(end.record)
        )

    @_answering
    async def CancelRequest(
        self, request: pb.CancelRequestRequest, caller: Caller
    ) -> pb.CancelRequestResponse:
        phase = await self.desk.sight.cancel(RequestId(request.id), caller)
        return pb.CancelRequestResponse(phase=wire.phase_to_wire(phase))

    @_answering
    async def EstimateWait(
        self, request: pb.EstimateWaitRequest, caller: Caller
    ) -> pb.EstimateWaitResponse:
        lengths = self.desk.intake.models(caller)
        if request.model not in lengths:
            raise UnknownModel(request.model[:NAME_BYTES_MAX], tuple(lengths))
        wish = _wish(request)
        self.desk.intake.require_range(wish)
        slo_class, slo = self.desk.intake.targets(wish, caller)
        now_s = self.desk.now_s
        meta = RequestMeta(
            id=RequestId("estimate"),
            gateway=GatewayId(self.desk.config.gateway.id),
            model=ModelName(request.model),
            slo_class=slo_class,
            slo=slo,
            prompt_tokens=max(1, request.prompt_tokens),
            max_output_tokens=request.max_output_tokens or lengths[request.model],
            arrival_s=now_s,
        )
        estimate = await self.desk.solver.estimate(meta, now_s=now_s)
        return pb.EstimateWaitResponse(
            estimate=wire.estimate_to_wire(estimate), feasible=estimate.p90_s <= slo.start_s
        )

    @_answering
    async def ListRequests(
        self, request: pb.ListRequestsRequest, caller: Caller
    ) -> pb.ListRequestsResponse:
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        below = _page_start(request.page_token)
        newest = self.desk.sight.newest(caller)
        older = (row for row in newest if below is None or row.number < below)
        rows = list(islice(older, size + 1))
        more = str(rows[size - 1].number) if len(rows) > size else ""
        views = [self._view(row) for row in rows[:size]]
        return pb.ListRequestsResponse(requests=views, next_page_token=more)

    @_answering
    async def ViewQueues(self, _: pb.ViewQueuesRequest, caller: Caller) -> pb.ViewQueuesResponse:
        return pb.ViewQueuesResponse(view_json=await self.desk.queues(caller))

    @_answering
    async def ExplainRequest(
        self, request: pb.ExplainRequestRequest, caller: Caller
    ) -> pb.ExplainRequestResponse:
        explanation = await self.desk.explain(RequestId(request.id), caller)
        return pb.ExplainRequestResponse(explanation_json=explanation)

    @_answering
    async def AskWhatIf(self, request: pb.AskWhatIfRequest, caller: Caller) -> pb.AskWhatIfResponse:
        caller.require_operator()
        return pb.AskWhatIfResponse(answer_json=await self.desk.solver.what_if(request.changes))

    # ---------------------------------------------------------------- parts

    async def _take(
        self, new: pb.NewRequest, context: Context, caller: Caller, *, watched: bool
    ) -> tuple[RequestId, str]:
        """Check and store a request; returns its id and the class really used."""
        endpoint = wire.endpoint_from_wire(new.endpoint)
        if endpoint is None:
            known = ", ".join(one.name.lower() for one in Endpoint)
            raise InvalidRequest("request.endpoint", "unspecified", f"Say one of {known}.")
        if len(new.idempotency_key.encode()) > KEY_BYTES_MAX:
            raise InvalidRequest(
                "request.idempotency_key", f"longer than {KEY_BYTES_MAX} bytes", "Shorten it."
            )
        if not new.model:
            raise InvalidRequest("request.model", "missing", "Name the model to use.")
        key = new.idempotency_key
        wish = replace(_wish(new), trace=_trace(context))
        self.desk.intake.require_range(wish)
        draft = self.desk.intake.draft(
            new.body_json,
            endpoint,
            wish=wish,
            caller=caller,
            model=new.model,
            keyed=bool(key),
        )
        id = await self.desk.driver.submit_durable(draft, key=key, watched=watched)
        access.note(self.desk.driver.live(id))
        return id, draft.slo_class

    async def _accepted(self, id: RequestId, slo_class: str) -> pb.Accepted:
        live = self.desk.driver.live(id)
        estimate = None
        if live is not None:
            await self.desk.estimated(live)
            if live.record is not None and live.record.reason == ShedReason.LATE.value:
                raise ShedLate(live.record.retry_after_s)
            slo_class = live.request.slo_class
            estimate = live.estimate
        given = None if estimate is None else wire.estimate_to_wire(estimate)
        return pb.Accepted(id=id, slo_class=slo_class, estimate=given)

    def _view(self, row: Row) -> pb.RequestView:
        return pb.RequestView(
            id=row.meta.id,
            model=row.meta.model,
            slo_class=row.meta.slo_class,
            phase=wire.phase_to_wire(row.phase),
            waited_s=self.desk.now_s - row.meta.arrival_s,
            prompt_tokens=row.meta.prompt_tokens,
            produced_tokens=row.output_tokens,
            agent=row.agent or "",
            attempt=row.attempts,
        )


def _wish(request: pb.NewRequest | pb.EstimateWaitRequest) -> Wish:
    tenant = request.tenant if isinstance(request, pb.NewRequest) else ""
    if not request.HasField("slo"):
        return Wish(slo_class=request.slo_class, tenant=tenant)
    if request.slo_class:
        raise InvalidRequest("slo", "given together with slo_class", "Give one of the two.")
    slo = wire.slo_from_wire(request.slo)
    return Wish(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, e2e_s=slo.e2e_s, tenant=tenant)


def _trace(context: Context) -> tuple[tuple[str, str], ...]:
    said = context.invocation_metadata() or ()
    return hd.trace({key.encode(): value.encode() for key, value in said if isinstance(value, str)})


def _page_start(token: str) -> int | None:
    if not token:
        return None
    if not _ROW_NUMBER.fullmatch(token):
        raise InvalidRequest("page_token", "not one of ours", "Pass next_page_token unchanged.")
    return int(token)


def _ended(record: EndRecord) -> pb.Ended:
    failed = record.phase is Phase.FAILED and bool(record.error)
    return pb.Ended(
        phase=wire.phase_to_wire(record.phase),
        reason=f"{record.reason}: {record.error}" if failed else record.reason,
        usage=types_pb2.Usage(
            prompt_tokens=record.prompt_tokens, output_tokens=record.output_tokens
        ),
        ttft_s=record.ttft_s,
        e2e_s=record.e2e_s,
        attained=record.attained,
        evictions=record.evictions,
        estimate=None if record.estimate is None else wire.estimate_to_wire(record.estimate),
    )
