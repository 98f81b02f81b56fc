"""A response that has ended as its client is told it, whoever tells it. Everything here is pure."""

from __future__ import annotations

from msgspec.structs import replace

from gateway import openai
from gateway.problems import Problem, problem_of_end
from gateway.responses import from_chat as fc
from gateway.responses.asked import required
from gateway.responses.to_chat import field_of
from gateway.store import StoredRequest
from qlm_core.endpoint import Endpoint
from qlm_core.ledger import EndRecord


def in_our_words(problem: Problem | None) -> Problem | None:
    """A problem of the chat as one of the response that it answers."""
    if problem is None or problem.param is None:
        return problem
    return replace(problem, param=field_of(problem.param))


def ended_body(request: StoredRequest, record: EndRecord, said: bytes) -> bytes:
    """The response object of a request that has ended.

    Args:
        said: the chat's answer, as far as there is one.
    """
    problem = in_our_words(problem_of_end(record, 0.0, Endpoint.CHAT_COMPLETIONS))
    whole = openai.parse(said) or {}
    return openai.encode(fc.ended(request, required(request), record, whole, problem))
