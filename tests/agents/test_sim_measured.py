"""What the simulated engine measures: embeddings and scores that follow from the texts, in the usual shapes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from qlm_core.endpoint import Endpoint
from qlm_core.executor import JobDone, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, RequestId
from tests.agents.harness import SimHarness


async def measured(endpoint: Endpoint, zero_delay: bool = True, **body: Any) -> tuple[Any, Any]:
    """The end, and the answer where there was one."""
    async with SimHarness.started(zero_delay=zero_delay) as harness:
        model = ModelName(harness.models[0])
        job = Payload(RequestId("a"), 1, model, endpoint, json.dumps(body).encode())
        assert not harness.engine.evictable(job)
        harness.engine.submit(job)
        end = await harness.heard.end_of("a")
        outputs = [event for event in harness.heard.of("a") if isinstance(event, JobOutput)]
        if isinstance(end, JobRefused):
            assert not outputs
            return end, None
        [output] = outputs
        assert (output.tokens, output.whole, output.plain) == (0, True, False)
        return end, json.loads(output.data)


@pytest.mark.parametrize("zero_delay", [True, False])
async def test_each_input_has_a_vector_and_counts(zero_delay: bool) -> None:
    inputs = ["the same words", "words the same", "something else entirely"]
    end, answer = await measured(Endpoint.EMBEDDINGS, zero_delay, input=inputs, dimensions=64)
    assert isinstance(end, JobDone)
    assert (end.prompt_tokens, end.output_tokens) == (4 + 4 + 6, 0)
    assert answer["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
    vectors = [one["embedding"] for one in answer["data"]]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {64}
    assert vectors[0] == vectors[1] != vectors[2]
    assert sum(number * number for number in vectors[2]) == pytest.approx(1.0)


async def test_base64_holds_the_same_numbers() -> None:
    _, plain = await measured(Endpoint.EMBEDDINGS, input=[[5, 6], [7]])
    _, packed = await measured(Endpoint.EMBEDDINGS, input=[[5, 6], [7]], encoding_format="base64")
    for one, other in zip(plain["data"], packed["data"], strict=True):
        data = base64.b64decode(other["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == one["embedding"]
    assert plain["usage"]["prompt_tokens"] == 3


async def test_documents_are_ranked_by_what_they_share_with_the_query() -> None:
    documents = ["nothing in common", {"text": "a red fox"}, "a fox"]
    end, answer = await measured(Endpoint.RERANK, query="a red fox", documents=documents, top_n=2)
    assert isinstance(end, JobDone)
    assert [one["index"] for one in answer["results"]] == [1, 2]
    assert answer["results"][0]["document"] == {"text": "a red fox"}
    assert answer["results"][0]["relevance_score"] == 1.0
    _, scored = await measured(Endpoint.SCORE, text_1="a red fox", text_2=documents)
    scores = [one["score"] for one in scored["data"]]
    assert scores[2] == answer["results"][1]["relevance_score"]
    assert scores[0] == 0.0


@pytest.mark.parametrize(
    ("endpoint", "body", "field"),
    [
        (Endpoint.EMBEDDINGS, {"input": "x", "dimensions": 0}, "dimensions"),
        (Endpoint.EMBEDDINGS, {"input": "x", "embed_dtype": "float16"}, "embed_dtype"),
        (Endpoint.EMBEDDINGS, {"input": ["x", "y" * 9_000]}, "input"),
        (Endpoint.SCORE, {"text_1": ["x", "y"], "text_2": ["x", "y", "z"]}, "text_2"),
        (Endpoint.RERANK, {"query": "x", "documents": ["x"], "top_n": -1}, "top_n"),
    ],
)
async def test_what_cannot_be_honoured_is_named(
    endpoint: Endpoint, body: dict[str, Any], field: str
) -> None:
    end, _ = await measured(endpoint, **body)
    assert isinstance(end, JobRefused)
    assert end.status == 400
    assert field in end.error


async def test_what_is_cut_fits() -> None:
    end, _ = await measured(Endpoint.EMBEDDINGS, input="y" * 9_000, truncate_prompt_tokens=100)
    assert isinstance(end, JobDone)
    assert end.prompt_tokens == 100
