"""Whatever is asked of /v1/estimate."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.endpoint import Endpoint
from tests.fuzz.bodies import MODEL, bodies, values
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import Fleet, serving

GOOD = {"model": MODEL, "lines": 9, "prompt_tokens_mean": 3.5, "completion_window": "8h"}
FILED = {"input_file_id": "file-0", "endpoint": "/v1/completions", "completion_window": "8h"}
NAMES = [*GOOD, *FILED, "max_output_tokens", "models", "body", "url", "service_tier", ""]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


parts = st.lists(
    st.dictionaries(st.sampled_from(NAMES), values, max_size=3).map(lambda some: GOOD | some),
    max_size=3,
)
asked = st.dictionaries(st.sampled_from(NAMES), values, max_size=3).map(lambda some: GOOD | some)
several = parts.map(lambda some: {"models": some, "completion_window": "8h"})
filed = st.dictionaries(st.sampled_from(NAMES), values, max_size=2).map(lambda some: FILED | some)
sent = (asked | several | filed).map(lambda some: json.dumps(some).encode("utf-8", "surrogatepass"))
in_bodies = bodies(Endpoint.CHAT_COMPLETIONS).map(lambda body: b'{"body": ' + body + b"}")


@fuzzed
@given(sent | in_bodies | bodies(Endpoint.COMPLETIONS))
def test_no_question_does_harm(fleet: Fleet, body: bytes) -> None:
    status, answer = fleet.ask("POST", "/v1/estimate", body)
    assert status < 500, answer
    fleet.check()
