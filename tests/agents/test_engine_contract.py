"""What every engine keeps, whatever it wraps: one suite over all rows of the table of engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agents.engines import KINDS
from qlm_core.endpoint import Endpoint
from qlm_core.executor import EngineDown, EngineReady, JobDone, JobLost, JobOutput, JobRefused
from qlm_core.messages import Payload
from qlm_core.model import ModelName, ModelTier, RequestId
from tests.agents.harness import ENDS, HARNESSES, Harness


@pytest.fixture(params=sorted(KINDS))
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    async with HARNESSES[request.param].started() as started:
        yield started


async def test_starts_with_its_first_model_awake_and_a_profile_of_each(harness: Harness):
    ready = harness.heard.events[0]
    assert isinstance(ready, EngineReady)
    assert ready.awake == harness.models[0]
    assert dict(ready.tiers)[ready.awake] is ModelTier.AWAKE
    assert {profile.model for profile in harness.engine.profiles} == set(harness.models)


@pytest.mark.parametrize("chat", [False, True])
async def test_a_job_streams_all_its_tokens_then_ends_once(harness: Harness, chat: bool):
    harness.engine.submit(harness.job("a", 30, chat=chat))
    end = await harness.heard.end_of("a")
    assert isinstance(end, JobDone)
    assert end.finish_reason == "length"
    assert end.output_tokens == 30
    assert end.prompt_tokens > 0
    assert harness.heard.tokens("a") == 30
    kinds = [type(event) for event in harness.heard.of("a")]
    assert kinds == [JobOutput] * (len(kinds) - 1) + [JobDone]
    if harness.exact_text:
        assert harness.heard.text("a") == harness.expected_text("a", 0, 30)


async def test_many_jobs_at_once(harness: Harness):
    for index in range(12):
        harness.engine.submit(harness.job(f"j{index}", 5 + index))
    ends = [await harness.heard.end_of(f"j{index}") for index in range(12)]
    assert [end.output_tokens for end in ends] == [5 + index for index in range(12)]  # type: ignore[union-attr]


async def test_after_abort_nothing_more_comes_and_others_go_on(harness: Harness):
    harness.engine.submit(harness.job("gone", 400))
    harness.engine.submit(harness.job("stays", 40))
    await harness.heard.until(JobOutput, id="gone")
    harness.engine.abort(RequestId("gone"), 1)
    before = len(harness.heard.of("gone"))
    assert isinstance(await harness.heard.end_of("stays"), JobDone)
    assert len(harness.heard.of("gone")) == before


async def test_abort_of_what_is_not_there_is_ignored(harness: Harness):
    harness.engine.submit(harness.job("a", 20))
    harness.engine.abort(RequestId("other"), 1)
    harness.engine.abort(RequestId("a"), 7)
    assert isinstance(await harness.heard.end_of("a"), JobDone)


@pytest.mark.parametrize("chat", [False, True])
async def test_a_resumed_job_continues_where_it_stopped(harness: Harness, chat: bool):
    text = harness.expected_text("a", 0, 8)
    job = harness.job(
        "a", 20, chat=chat, attempt=2, resume_text=text, produced_tokens=8,
    )  # fmt: skip
    harness.engine.submit(job)
    end = await harness.heard.end_of("a")
    assert isinstance(end, JobDone)
    assert end.output_tokens == 12
    assert harness.heard.tokens("a") == 12
    if harness.exact_text:
        assert harness.heard.text("a") == harness.expected_text("a", 8, 20)


async def test_the_prompt_of_a_resumed_job_includes_what_it_continues(harness: Harness):
    harness.engine.submit(harness.job("whole", 20))
    whole = await harness.heard.end_of("whole")
    text = harness.expected_text("resumed", 0, 8)
    harness.engine.submit(
        harness.job("resumed", 20, attempt=2, resume_text=text, produced_tokens=8)
    )
    resumed = await harness.heard.end_of("resumed")
    assert isinstance(whole, JobDone)
    assert isinstance(resumed, JobDone)
    assert resumed.prompt_tokens == whole.prompt_tokens + 8


async def test_an_unreadable_body_is_refused(harness: Harness):
    model = ModelName(harness.models[0])
    harness.engine.submit(Payload(RequestId("bad"), 1, model, Endpoint.COMPLETIONS, b"{"))
    end = await harness.heard.end_of("bad")
    assert isinstance(end, JobRefused)
    assert end.status == 400
    assert "body" in end.error


async def test_swaps_and_serves_the_other_model(harness: Harness):
    if len(harness.models) == 1:
        harness.engine.swap(ModelName(harness.models[0]))
        await harness.heard.until(EngineReady, 2)
        return
    for model in (harness.models[1], harness.models[0]):
        count = sum(isinstance(event, EngineReady) for event in harness.heard.events)
        harness.engine.swap(ModelName(model))
        ready = (await harness.heard.until(EngineReady, count + 1))[-1]
        assert isinstance(ready, EngineReady)
        assert ready.awake == model
        awake = [name for name, tier in ready.tiers if tier is ModelTier.AWAKE]
        assert awake == [model]
        harness.engine.submit(harness.job(f"on-{model}", 6, model=model))
        assert isinstance(await harness.heard.end_of(f"on-{model}"), JobDone)


async def test_stop_ends_everything_and_can_be_repeated(harness: Harness):
    harness.engine.submit(harness.job("a", 1000))
    await harness.heard.until(JobOutput, id="a")
    await harness.engine.stop()
    await harness.engine.stop()
    count = len(harness.heard.events)
    await asyncio.sleep(0.05)
    assert len(harness.heard.events) == count


async def test_a_crash_loses_jobs_and_is_told(harness: Harness):
    if not harness.can_crash:
        pytest.skip("this engine cannot crash apart from its agent")
    harness.engine.submit(harness.job("a", 1500))
    await harness.heard.until(JobOutput, id="a")
    await harness.crash()
    assert isinstance(await harness.heard.end_of("a"), JobLost)
    await harness.heard.until(EngineDown)
    assert sum(isinstance(event, ENDS) for event in harness.heard.of("a")) == 1
