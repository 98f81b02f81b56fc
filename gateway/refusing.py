"""An error as the answer to a request, counted as one that was refused."""

from __future__ import annotations

from gateway import headers as hd
from gateway.asgi import JSON, RawHeaders, Send, answer
from gateway.metrics import Metrics
from gateway.problems import Problem


async def refuse(
    metrics: Metrics,
    problem: Problem,
    send: Send,
    headers: hd.Headers,
    extra: RawHeaders | None = None,
) -> None:
    """Answer with an error.

    Args:
        headers: the request's.
        extra: of the answer, beside those that belong to the error; None: those of what never became a request.
    """
    metrics.refused(problem.code or problem.type)
    told = hd.echoed(headers) if extra is None else extra
    await answer(send, problem.status, problem.body(), [JSON, *told, *hd.problem(problem)])
