"""The shape of what leaves the gateway, by the endpoint that was asked: how output is put together and framed."""

from __future__ import annotations

from typing import Protocol

from gateway import openai
from gateway.answer import Answer
from gateway.measured import MeasuredAnswer, MeasuredFramer
from gateway.store import StoredRequest
from qlm_core.endpoint import Endpoint
from qlm_core.ledger import EndRecord


class Folded(Protocol):
    """The output of one request, put together from what came of it."""

    @property
    def text(self) -> str:
        """The text of the first choice."""

    @property
    def text_offset_chars(self) -> int:
        """Where an engine would say that the text of the next token begins; 0 where none says so."""

    def fold(self, data: bytes, *, whole: bool = False) -> None:
        """Add a chunk, or all of an answer at once. Raises BadChunkError."""

    def finish(self, reason: str) -> bytes:
        """What is still to be sent at the end; b"" for nothing. Raises BadChunkError."""

    def chunk(self) -> bytes:
        """Everything so far as one chunk; b"" if there is nothing."""

    def response(
        self, *, id: str, created: int, model: str, service_tier: str, record: EndRecord
    ) -> bytes:
        """The whole as its endpoint answers. Raises BadChunkError."""


class Frames(Protocol):
    """Gives what is sent of one request its common head."""

    def frame(self, data: bytes) -> bytes:
        """An engine's chunk as the client gets it; b"" for nothing. Raises BadChunkError."""

    def usage(self, record: EndRecord) -> bytes:
        """What reports token usage after the output; b"" for nothing."""


def answer_of(endpoint: Endpoint, *, in_turns: bool = False) -> Folded:
    """An empty answer.

    Args:
        in_turns: it is read as parts in order, so what is folded says where that is not the usual one.
    """
    if not endpoint.generates:
        return MeasuredAnswer()
    return Answer(chat=endpoint.chat, in_turns=in_turns)


def framer_of(request: StoredRequest, *, running_usage: bool) -> Frames:
    """What frames the output of a request.

    Args:
        running_usage: the client wants the count of tokens in each chunk, which the engine sent.
    """
    if not request.endpoint.generates:
        return MeasuredFramer(id=request.id, created=request.created, model=request.model)
    return openai.Framer(
        id=request.id,
        chat=request.endpoint.chat,
        created=request.created,
        model=request.model,
        service_tier=request.service_tier,
        running_usage=running_usage,
    )


def chunk_of(response: bytes, endpoint: Endpoint) -> bytes:
    """A whole answer as a single chunk, for who follows a request that has ended."""
    return openai.chunk_of(response, chat=endpoint.chat) if endpoint.generates else response
