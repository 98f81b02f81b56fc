"""Whatever body comes, each of its readers takes it or refuses it in so many words: the gateway, and the engines of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.engines.connection import Connection
from agents.engines.lenient_json import NO_JSON
from agents.engines.requests import Abilities, CannotContinue, NothingLeft, prepare
from agents.engines.shapes import Shape
from agents.engines.sim import SimEngine
from gateway.intake import Draft, Intake, Wish
from gateway.keys import Caller
from qlm_core.config import Config
from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest
from qlm_core.executor import JobDone, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from qlm_core.resume import resume_of
from tests.fuzz.bodies import MODEL, one_odd_field
from tests.fuzz.bodies import asked as requests
from tests.fuzz.effort import fuzzed

CONFIG = Config.from_mapping(
    {
        "models": {MODEL: {"max_model_len": 64}},
        "agents": [
            {
                "name": "a",
                "models": [MODEL],
                "gpu": "a10",
                "engine": {"kind": "sim", "sim": {"zero_delay": True}},
            }
        ],
    }
)
ANYONE = Caller(tenant="", operator=True)
SHAPED = Abilities(
    ids=True,
    context_tokens=64,
    shapes=dict.fromkeys(
        ("/v1/completions", "/v1/chat/completions"), Shape({"a": None}, {}, {}, {})
    ),
)


class Helper:
    """A server that divides text into its characters."""

    async def tokenize(self, served: str, text: str) -> list[int]:
        return [ord(character) for character in text]

    async def detokenize(self, served: str, ids: list[int]) -> str | None:
        return "".join(map(chr, ids))


def draft(endpoint: Endpoint, body: bytes) -> Draft | None:
    """What the gateway makes of a body; None where it refuses it."""
    try:
        return Intake(CONFIG, lambda: ()).draft(
            body, endpoint, wish=Wish(), caller=ANYONE, keyed=True
        )
    except InvalidRequest as refused:
        words = str(refused)
    assert len(words) < 2_000
    return None


@fuzzed
@given(requests)
def test_the_gateway_takes_it_or_names_what_is_wrong(given: tuple[Endpoint, bytes]) -> None:
    taken = draft(*given)
    if taken is not None:
        assert 1 <= taken.prompt_tokens < 2**31
        assert int(taken.endpoint.generates) <= taken.max_output_tokens < 2**31
        assert len(taken.tenant.encode()) <= 256


@fuzzed
@given(requests, st.booleans())
async def test_a_simulated_engine_ends_every_job(
    given: tuple[Endpoint, bytes], taken: bool
) -> None:
    endpoint, body = given
    if taken:
        accepted = draft(endpoint, body)
        body = b"" if accepted is None else accepted.body
    await simulated([Payload(RequestId("r"), 1, ModelName(MODEL), endpoint, body)])


async def simulated(jobs: Iterable[Payload]) -> None:
    """Have a simulated engine run jobs, each of which it ends."""
    said: list[object] = []
    engine = SimEngine(CONFIG, CONFIG.agents[0])
    await engine.start(said.append)
    for job in jobs:
        said.clear()
        engine.evictable(job)
        engine.submit(job)
        for _ in range(3):
            await asyncio.sleep(0)
        *outputs, end = said
        assert isinstance(end, JobDone | JobRefused), job.body
        assert all(isinstance(output, JobOutput) for output in outputs)
    await engine.stop()


@pytest.mark.parametrize("endpoint", Endpoint)
async def test_no_field_with_an_odd_value_stops_the_simulated_engine(endpoint: Endpoint) -> None:
    bodies = list(one_odd_field(endpoint))
    await simulated(Payload(RequestId("r"), 1, ModelName(MODEL), endpoint, body) for body in bodies)


@pytest.mark.parametrize("endpoint", Endpoint)
async def test_no_field_with_an_odd_value_stops_the_gateway_or_an_engine(
    endpoint: Endpoint,
) -> None:
    produced = 2 * endpoint.generates
    for body in one_odd_field(endpoint):
        draft(endpoint, body)
        await asked(endpoint, body, produced=produced, ids=(1, 2)[:produced])


@fuzzed
@given(requests, st.integers(0, 5), st.sampled_from([(), (1, 2, 3)]))
async def test_a_request_to_a_server_is_prepared_or_refused(
    given: tuple[Endpoint, bytes], produced: int, ids: tuple[int, ...]
) -> None:
    produced *= given[0].generates
    await asked(*given, produced=produced, ids=ids[:produced])


async def asked(endpoint: Endpoint, body: bytes, *, produced: int, ids: tuple[int, ...]) -> None:
    """Have a request to a server prepared, anew or in the middle."""
    job = Payload(
        RequestId("r"), 1, ModelName(MODEL), endpoint, body,
        resume_text="x" * produced, produced_tokens=produced, resume_ids=ids,
    )  # fmt: skip
    Connection("http://127.0.0.1:1", served={ModelName(MODEL): MODEL}).evictable(job)
    try:
        prepared = await prepare(job, MODEL, Helper(), SHAPED)
    except (*NO_JSON, CannotContinue, NothingLeft):
        return
    # What is not looked at passes unread, whatever it is.
    sent = msgspec.json.decode(prepared.body, type=dict[str, msgspec.Raw])
    assert msgspec.json.decode(sent["model"]) == MODEL
    assert len(prepared.body) < len(body) + 2_000


@fuzzed
@given(requests)
def test_what_the_gateway_takes_can_be_restored(given: tuple[Endpoint, bytes]) -> None:
    taken = draft(*given)
    if taken is not None:
        again = resume_of(msgspec.json.decode(taken.body), taken.endpoint)
        assert again is taken.resume
