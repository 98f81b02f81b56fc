"""Batches as the solver knows them: bulks up, finish times down, and the question when one would be done."""

from __future__ import annotations

from sys import intern

from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.wire import bounds as bd
from protos.wire.bounds import WireError
from protos.wire.values import (
    checked_slo,
    estimate_from_wire,
    estimate_to_wire,
    slo_from_wire,
    slo_to_wire,
)
from qlm_core import messages as m
from qlm_core.model import BatchId, ModelName


def bulk_to_wire(bulk: m.BulkWaiting, now_s: float) -> gateway_pb.BulkWaiting:
    """What waits of a batch and model."""
    return gateway_pb.BulkWaiting(
        batch_id=bulk.batch,
        model=bulk.model,
        slo_class=bulk.slo_class,
        slo=slo_to_wire(bulk.slo),
        lines=bd.fit_lines(bulk.lines),
        prompt_tokens_mean=bd.fit_mean(bulk.prompt_tokens_mean),
        max_output_tokens=bd.fit_count(bulk.max_output_tokens),
        waited_s=bd.fit_seconds(now_s - bulk.arrival_s),
        tenant=bulk.tenant,
    )


def bulk_from_wire(bulk: gateway_pb.BulkWaiting, now_s: float) -> m.BulkWaiting:
    """What waits of a batch and model. Raises WireError."""
    return m.BulkWaiting(
        batch=BatchId(intern(bd.name("bulk_waiting.batch_id", bulk.batch_id))),
        model=ModelName(intern(bd.name("bulk_waiting.model", bulk.model))),
        slo_class=intern(bd.label("bulk_waiting.slo_class", bulk.slo_class)),
        slo=checked_slo(slo_from_wire(bulk.slo), "bulk_waiting.slo"),
        lines=bd.lines("bulk_waiting.lines", bulk.lines),
        prompt_tokens_mean=bd.mean("bulk_waiting.prompt_tokens_mean", bulk.prompt_tokens_mean),
        max_output_tokens=bd.count("bulk_waiting.max_output_tokens", bulk.max_output_tokens),
        arrival_s=now_s - bd.seconds("bulk_waiting.waited_s", bulk.waited_s),
        tenant=bd.label("bulk_waiting.tenant", bulk.tenant),
    )


def bulk_estimate_to_wire(order: m.BulkEstimate) -> gateway_pb.BulkEstimate:
    """When a batch will be done."""
    return gateway_pb.BulkEstimate(batch_id=order.batch, finish=_finish_to_wire(order))


def bulk_estimate_from_wire(order: gateway_pb.BulkEstimate) -> m.BulkEstimate:
    """When a batch will be done. Raises WireError."""
    batch = BatchId(bd.name("bulk_estimate.batch_id", order.batch_id))
    return m.BulkEstimate(batch, *_finish_from_wire(order.finish))


def batch_question_to_wire(question: m.BatchQuestion) -> gateway_pb.EstimateBatchRequest:
    """What is asked of a batch that is not submitted."""
    return gateway_pb.EstimateBatchRequest(
        parts=[
            gateway_pb.BulkShape(
                model=part.model,
                lines=bd.fit_lines(part.lines),
                prompt_tokens_mean=bd.fit_mean(part.prompt_tokens_mean),
                max_output_tokens=bd.fit_count(part.max_output_tokens),
            )
            for part in question.parts
        ],
        slo_class=question.slo_class,
        slo=slo_to_wire(question.slo),
    )


def batch_question_from_wire(question: gateway_pb.EstimateBatchRequest) -> m.BatchQuestion:
    """What is asked of a batch that is not submitted. Raises WireError."""
    if not question.parts:
        raise WireError("parts: empty")
    bd.few("parts", question.parts, bd.BATCH_MODELS_MAX)
    return m.BatchQuestion(
        tuple(_shape_from_wire(part) for part in question.parts),
        bd.label("slo_class", question.slo_class),
        checked_slo(slo_from_wire(question.slo), "slo"),
    )


def _shape_from_wire(part: gateway_pb.BulkShape) -> m.BulkShape:
    return m.BulkShape(
        ModelName(bd.name("parts.model", part.model)),
        bd.lines("parts.lines", part.lines),
        bd.mean("parts.prompt_tokens_mean", part.prompt_tokens_mean),
        bd.count("parts.max_output_tokens", part.max_output_tokens),
    )


def batch_forecast_to_wire(answer: m.BatchForecast) -> gateway_pb.EstimateBatchResponse:
    """The answer to such a question."""
    return gateway_pb.EstimateBatchResponse(
        wait=estimate_to_wire(answer.wait), finish=_finish_to_wire(answer)
    )


def batch_forecast_from_wire(answer: gateway_pb.EstimateBatchResponse) -> m.BatchForecast:
    """The answer to such a question. Raises WireError."""
    return m.BatchForecast(estimate_from_wire(answer.wait), *_finish_from_wire(answer.finish))


def _finish_to_wire(said: m.BulkEstimate | m.BatchForecast) -> gateway_pb.FinishEstimate:
    return gateway_pb.FinishEstimate(
        feasible=said.feasible,
        finish_p50_s=None if said.finish_p50_s is None else bd.fit_seconds(said.finish_p50_s),
        finish_p90_s=None if said.finish_p90_s is None else bd.fit_seconds(said.finish_p90_s),
        explanation=bd.fit_text(said.explanation),
    )


def _finish_from_wire(
    finish: gateway_pb.FinishEstimate,
) -> tuple[bool, float | None, float | None, str]:
    explanation = bd.text("finish.explanation", finish.explanation)
    if not (finish.HasField("finish_p50_s") and finish.HasField("finish_p90_s")):
        return finish.feasible, None, None, explanation
    p50_s, p90_s = finish.finish_p50_s, finish.finish_p90_s
    if not 0.0 <= p50_s <= p90_s <= bd.SECONDS_MAX:
        raise WireError(
            f"finish: its quantiles {p50_s:g}, {p90_s:g} s do not ascend from 0 to {bd.SECONDS_MAX:g}"
        )
    return finish.feasible, p50_s, p90_s, explanation
