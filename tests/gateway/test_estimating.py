"""POST /v1/estimate over HTTP: what is put to the solver, what is said of its answer, and what is wrong with a question."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qlm_core import messages as m
from qlm_core.model import ModelName, Slo
from tests.gateway.peers import config, fleet, running, soon
from tests.gateway.test_http import CHAT, post

Json = dict[str, Any]
ONE: Json = {"model": "tiny", "prompt_tokens_mean": 120}
BATCH: Json = ONE | {"lines": 5000, "max_output_tokens": 50, "completion_window": "8h"}


async def test_a_request_is_asked_about_with_its_class_and_told_when_it_would_be_done() -> None:
    async with fleet() as it:
        status, told, headers = await post(
            f"{it.url}/v1/estimate", ONE | {"service_tier": "flex"}, {"x-request-id": "mine"}
        )
        assert status == 200, told
        [asked] = it.solver.asked
        assert asked.parts == (m.BulkShape(ModelName("tiny"), 1, 120.0, 1000),)
        assert (asked.slo_class, asked.slo) == ("batch-1", Slo(ttft_s=60.0))
        assert headers["x-request-id"] == "mine"  # type: ignore[index, call-overload]
        assert (told["object"], told["slo_class"], told["lines"]) == ("estimate", "batch-1", 1)
        assert told["wait_s"] == {"mean": 1.5, "p50": 1.0, "p90": 2.0, "p99": 3.0}
        assert (told["feasible"], told["explanation"]) == (True, "3 lines left")
        assert (told["finish_p50_s"], told["finish_p90_s"]) == (60.0, 90.0)
        assert told["finish_p50_at"] == pytest.approx(time.time() + 60, abs=5)
        assert told["finish_p90_at"] - told["finish_p50_at"] == 30
        assert not it.solver.heard(m.Arrived)


async def test_targets_in_headers_are_those_of_the_question() -> None:
    async with fleet() as it:
        targets = {"x-slo-ttft-ms": "2500", "x-qlm-slo-e2e-ms": "60000"}
        status, _, _ = await post(f"{it.url}/v1/estimate", ONE, targets)
        assert status == 200
        assert (it.solver.asked[0].slo.ttft_s, it.solver.asked[0].slo.e2e_s) == (2.5, 60.0)


async def test_a_batch_is_asked_about_as_it_would_be_submitted() -> None:
    async with fleet() as it:
        status, told, _ = await post(f"{it.url}/v1/estimate", BATCH)
        assert status == 200, told
        [asked] = it.solver.asked
        assert asked.parts == (m.BulkShape(ModelName("tiny"), 5000, 120.0, 50),)
        assert (asked.slo_class, asked.slo) == ("batch-2", Slo(ttft_s=28800.0, e2e_s=28800.0))
        assert told["lines"] == 5000


async def test_several_models_are_asked_about_together() -> None:
    async with fleet() as it:
        await soon(it.gateway._solver.models)
        models = [
            {"model": "tiny", "lines": 10, "prompt_tokens_mean": 3.5},
            {"model": "other", "prompt_tokens_mean": 0, "max_output_tokens": 0},
            {"model": "elsewhere", "lines": 2, "prompt_tokens_mean": 9},
        ]
        asked = {"models": models, "completion_window": "30m"}
        status, told, _ = await post(f"{it.url}/v1/estimate", asked)
        assert status == 200, told
        parts = it.solver.asked[0].parts
        assert [(part.model, part.lines, part.prompt_tokens_mean) for part in parts] == [
            ("tiny", 10, 3.5),
            ("other", 1, 0.0),
            ("elsewhere", 2, 9.0),
        ]
        assert parts[1].max_output_tokens == 0
        assert told["lines"] == 13


@pytest.mark.parametrize(
    ("url", "body", "limit"),
    [
        (None, CHAT | {"max_tokens": 7}, 7),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 40, "max_tokens": 9}, 9),
        ("/v1/embeddings", {"model": "tiny", "input": ["x" * 40]}, 0),
    ],
)
async def test_a_body_is_asked_about_as_it_would_be_sent(
    url: str | None, body: Json, limit: int
) -> None:
    async with fleet() as it:
        asked = {"body": body | {"service_tier": "flex"}, "url": url}
        status, told, _ = await post(f"{it.url}/v1/estimate", asked)
        assert status == 200, told
        [question] = it.solver.asked
        [part] = question.parts
        assert (part.model, part.lines, part.max_output_tokens) == ("tiny", 1, limit)
        assert part.prompt_tokens_mean > 0
        assert question.slo_class == "batch-1"
        batch = asked | {"lines": 40, "completion_window": "1h"}
        status, _, _ = await post(f"{it.url}/v1/estimate", batch)
        assert status == 200
        question = it.solver.asked[1]
        assert (question.parts[0].lines, question.slo.e2e_s) == (40, 3600.0)
        assert question.slo_class == "batch-2"


def parts(*changed: Json) -> Json:
    return {"models": [{"model": "tiny", "prompt_tokens_mean": 1} | one for one in changed]}


def bodied(**changed: Any) -> Json:
    return {"body": CHAT} | changed


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt_tokens_mean": 1}, "model", "missing_field"),
        (ONE | {"model": 3}, "model", None),
        (ONE | {"model": "nobodys"}, "model", "model_not_found"),
        ({"model": "tiny"}, "prompt_tokens_mean", "missing_field"),
        (ONE | {"prompt_tokens_mean": "3"}, "prompt_tokens_mean", "invalid_value"),
        (ONE | {"prompt_tokens_mean": True}, "prompt_tokens_mean", "invalid_value"),
        (ONE | {"prompt_tokens_mean": -1}, "prompt_tokens_mean", "invalid_value"),
        (ONE | {"prompt_tokens_mean": 1e300}, "prompt_tokens_mean", "invalid_value"),
        (BATCH | {"lines": 0}, "lines", "invalid_value"),
        (BATCH | {"lines": 1.5}, "lines", "invalid_value"),
        (BATCH | {"lines": True}, "lines", "invalid_value"),
        (BATCH | {"lines": 10**12}, "lines", "invalid_value"),
        (BATCH | {"max_output_tokens": -1}, "max_output_tokens", "invalid_value"),
        (BATCH | {"max_output_tokens": "9"}, "max_output_tokens", "invalid_value"),
        (BATCH | {"completion_window": 8}, "completion_window", None),
        (BATCH | {"completion_window": "8x"}, "completion_window", "invalid_value"),
        (BATCH | {"completion_window": "99d"}, "completion_window", "invalid_value"),
        (ONE | {"service_tier": 1}, "service_tier", None),
        (ONE | {"service_tier": "gold"}, "slo_class", None),
        (ONE | {"models": []}, "models", None),
        ({"models": []}, "models", None),
        ({"models": {}}, "models", None),
        ({"models": [3]}, "models[0]", None),
        (parts({}, {}), "models", None),
        (parts({}, {"model": "nobodys"}), "model", "model_not_found"),
        (parts({"model": None}), "models[0].model", "missing_field"),
        (parts({"lines": -1}), "models[0].lines", "invalid_value"),
        (parts({"prompt_tokens_mean": None}), "models[0].prompt_tokens_mean", "missing_field"),
        (parts({"max_output_tokens": {}}), "models[0].max_output_tokens", "invalid_value"),
        (bodied(body=3), "body", None),
        (bodied(url="/v1/responses"), "url", None),
        (bodied(model="tiny"), "model", None),
        (bodied(models=[]), "models", None),
        (bodied(prompt_tokens_mean=3), "prompt_tokens_mean", None),
        (bodied(max_output_tokens=3), "max_output_tokens", None),
        (bodied(lines=0), "lines", "invalid_value"),
        (bodied(body={"model": "tiny"}), "messages", None),
        (bodied(url="/v1/completions"), "prompt", None),
    ],
)
async def test_what_is_wrong_is_told_by_its_field(body: Json, param: str, code: str | None) -> None:
    async with fleet() as it:
        status, told, _ = await post(f"{it.url}/v1/estimate", body)
        assert status == (404 if code == "model_not_found" else 400), told
        assert told["error"]["param"] == param
        if code is not None:
            assert told["error"]["code"] == code
        assert not it.solver.asked


async def test_a_model_that_nobody_serves_now_is_told_apart_from_one_that_nobody_knows() -> None:
    async with fleet() as it:
        it.solver.forecast = None
        status, told, _ = await post(f"{it.url}/v1/estimate", ONE)
        assert (status, told["error"]["code"]) == (400, "not_served")


async def test_without_a_finish_time_there_is_none() -> None:
    async with fleet() as it:
        unknown = m.BatchForecast(it.solver.estimate, False, None, None, "nobody can say")
        it.solver.forecast = unknown
        _, told, _ = await post(f"{it.url}/v1/estimate", BATCH)
        names = ("finish_p50_s", "finish_p90_s", "finish_p50_at", "finish_p90_at")
        assert [told[name] for name in names] == [None] * 4
        assert told["feasible"] is False


async def test_without_a_solver_nobody_can_say() -> None:
    async with running(config()) as (_, at):
        status, told, _ = await post(f"http://{at.http}/v1/estimate", ONE)
        assert status == 503
        assert "solver" in told["error"]["message"]


async def test_a_key_may_ask_about_what_it_may_ask_for() -> None:
    keys = {"alice": {"key": "alices", "models": ["tiny"], "classes": ["batch-1"]}}
    async with fleet(api_keys=keys) as it:
        own = {"authorization": "Bearer alices"}
        status, _, _ = await post(f"{it.url}/v1/estimate", ONE)
        assert status == 401
        status, told, _ = await post(f"{it.url}/v1/estimate", ONE | {"model": "other"}, own)
        assert (status, told["error"]["code"]) == (404, "model_not_found")
        wish = own | {"x-qlm-slo-class": "interactive"}
        status, told, _ = await post(f"{it.url}/v1/estimate", ONE, wish)
        assert (status, told["error"]["code"]) == (403, "class_not_allowed")
        status, told, _ = await post(f"{it.url}/v1/estimate", BATCH, own)
        assert (status, told["slo_class"]) == (200, "batch-1")
