"""What a line asks for as a request, and what came of that as its result: as the endpoint of its batch has them."""

from __future__ import annotations

from gateway.batches.opened import OpenBatch
from gateway.batches.results import InputLine
from gateway.intake import Draft, Intake, Wish
from gateway.keys import Caller
from gateway.problems import Problem, problem_of_end
from gateway.responses.drafting import ResponseIntake
from gateway.responses.ended import ended_body, in_our_words
from gateway.store import StoredEnd, StoredRequest
from qlm_core.errors import InvalidRequest
from qlm_core.ledger import EndRecord


class Drafter:
    """Makes drafts of the lines of one gateway's batches."""

    def __init__(self, intake: Intake, responses: ResponseIntake) -> None:
        self._intake = intake
        self._responses = responses

    async def draft(self, batch: OpenBatch, line: InputLine) -> Draft:
        """The request of a line. Raises InvalidRequest, UnknownModel, Unavailable, SetAside."""
        stored, body = batch.stored, bytes(line.body)
        wish = Wish(slo_class=stored.slo_class)
        # What its tenant may ask for was looked at when the batch was created.
        caller = Caller(tenant=stored.owner)
        if batch.endpoint.responds:
            draft = await self._responses.draft_line(body, wish=wish, caller=caller)
        else:
            draft = self._intake.draft(body, batch.endpoint.asks, wish=wish, caller=caller)
        if draft.stream:
            raise InvalidRequest("stream", "a line of a batch cannot be streamed", "Leave it out.")
        return draft


def answer_of(request: StoredRequest, end: StoredEnd) -> bytes:
    """The answer of a request that has finished, as its endpoint has it. Raises SetAside."""
    return ended_body(request, end.record, end.answer) if request.asked else end.answer


def problem_of(request: StoredRequest, record: EndRecord) -> Problem | None:
    """Why a request has no answer; None for a finished one."""
    problem = problem_of_end(record, 0.0, request.endpoint)
    return in_our_words(problem) if request.asked else problem
