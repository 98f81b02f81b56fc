"""Endpoints that generate nothing: what their prompts weigh, and that they never go on in the middle."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from qlm_core.endpoint import Endpoint
from qlm_core.grouping import PROMPT_ALONE, GroupKey
from qlm_core.model import GatewayId, ModelName, RequestId, RequestMeta, Slo
from qlm_core.resume import Resume, exact_from_ids, resume_of
from qlm_core.tokens import measured_tokens

MEASURING = [endpoint for endpoint in Endpoint if not endpoint.generates]
PICTURE = {"content": [{"type": "image_url", "image_url": {"url": "x" * 400}}, {"text": "x" * 8}]}


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        (Endpoint.EMBEDDINGS, {"input": "x" * 9}, [3]),
        (Endpoint.EMBEDDINGS, {"input": ["x" * 8, "", "é"]}, [2, 1, 1]),
        (Endpoint.EMBEDDINGS, {"input": [5, 6, 7]}, [3]),
        (Endpoint.EMBEDDINGS, {"input": [[5, 6, 7], [5]]}, [3, 1]),
        (Endpoint.EMBEDDINGS, {"messages": [{"role": "user", "content": "x" * 8}]}, [2]),
        (Endpoint.SCORE, {"text_1": "x" * 8, "text_2": "y" * 4}, [3]),
        (Endpoint.SCORE, {"text_1": "x" * 8, "text_2": ["y" * 4, "y" * 40]}, [3, 12]),
        (Endpoint.SCORE, {"text_1": ["x" * 8, "x"], "text_2": ["y" * 4, "y" * 40]}, [3, 11]),
        (Endpoint.SCORE, {"queries": "x" * 8, "documents": [PICTURE]}, [4]),
        (Endpoint.SCORE, {"data_1": [1, 2], "data_2": [[1, 2, 3], [4]]}, [5, 3]),
        (Endpoint.RERANK, {"query": "x" * 8, "documents": ["y" * 4, {"text": "y" * 8}]}, [3, 4]),
    ],
)
def test_every_sequence_that_is_computed_counts(
    endpoint: Endpoint, body: dict[str, Any], tokens: list[int]
) -> None:
    assert measured_tokens(body, endpoint) == tokens


@pytest.mark.parametrize("endpoint", MEASURING)
def test_what_is_measured_is_never_continued(endpoint: Endpoint) -> None:
    body = {"input": "x", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    assert resume_of(body, endpoint) is Resume.NEVER
    assert not exact_from_ids(body, endpoint)


@pytest.mark.parametrize(("limit", "alone"), [(0, True), (1, True), (2, False), (64, False)])
def test_what_ends_with_its_prompt_is_a_kind_of_its_own(limit: int, alone: bool) -> None:
    meta = RequestMeta(
        id=RequestId("r"),
        gateway=GatewayId("g"),
        model=ModelName("m"),
        slo_class="interactive",
        slo=Slo(ttft_s=1.0, tpot_s=0.1),
        prompt_tokens=9,
        max_output_tokens=limit,
        arrival_s=0.0,
    )
    assert (GroupKey.of(meta).limit_scale == PROMPT_ALONE) is alone
    # After the first token there is no pace to keep.
    assert GroupKey.of(meta).pace_s == (inf if alone else 0.1)
