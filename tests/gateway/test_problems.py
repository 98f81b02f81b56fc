"""Whose fault an end is, and what an engine means that says a prompt is too long."""

import pytest

from gateway.problems import is_context_overflow, problem_of_end
from qlm_core import messages as m
from qlm_core.endpoint import Endpoint
from qlm_core.ledger import EndRecord
from qlm_core.model import Phase
from tests.gateway.peers import fleet
from tests.gateway.test_http import CHAT, post

TOO_LONG = [
    # vLLM, at its tokenizer, before and inside its engine
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
    "The decoder prompt (length 9000) is longer than the maximum model length of 8192. Make sure that `max_model_len` is "
    "no smaller than the number of text tokens.",
    "The decoder prompt (length 8192) plus the number of requested output tokens (at least 1) is longer than the maximum "
    "model length of 8192.",
    "Input length (9000) exceeds model's maximum context length (8192).",
    "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 65536 tokens and "
    "your request has 57879 input tokens (8192 > 65536 - 57879).",
    # SGLang
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "Requested token count exceeds the model's maximum context length of 8192 tokens.",
    # llama.cpp
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    # TGI
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 + 200",
    "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
    # OpenAI, as a proxy passes it on
    "Error code: 400 - {'error': {'code': 'context_length_exceeded'}}",
    "prompt length 9000 exceeds max_model_len 8192",
]
OTHER = [
    "stop: at most 4 strings of a maximum length of 64",
    "max_tokens must be at least 1, got 0.",
    "Invalid 'user': string too long. Expected a string with maximum length 64.",
    "The model 'context' does not exist.",
    "logprobs exceeds the maximum allowed of 20",
    "",
]


@pytest.mark.parametrize("words", TOO_LONG)
def test_an_engine_that_finds_a_prompt_too_long_is_understood(words: str) -> None:
    assert is_context_overflow(400, words)
    assert not is_context_overflow(500, words)
    assert not is_context_overflow(0, words)


@pytest.mark.parametrize("words", OTHER)
def test_other_refusals_are_not_about_length(words: str) -> None:
    assert not is_context_overflow(400, words)


def failed(status: int, words: str) -> EndRecord:
    return EndRecord(
        phase=Phase.FAILED,
        reason="error",
        prompt_tokens=0,
        output_tokens=0,
        queue_s=0.1,
        ttft_s=None,
        tpot_s=None,
        e2e_s=0.5,
        attained=False,
        attempts=1,
        evictions=0,
        estimate=None,
        error=words,
        error_status=status,
    )


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (400, TOO_LONG[0], (400, "context_length_exceeded", "messages")),
        (422, TOO_LONG[-1], (400, "context_length_exceeded", "messages")),
        (400, OTHER[0], (400, "engine_refused", None)),
        (422, OTHER[0], (422, "engine_refused", None)),
        (0, "lost with 10 agents or engines", (502, "failed", None)),
    ],
)
def test_an_end_says_whose_fault_it_was(
    status: int, words: str, expected: tuple[int, str, str | None]
) -> None:
    problem = problem_of_end(failed(status, words), 1.0, Endpoint.CHAT_COMPLETIONS)
    assert problem is not None
    assert (problem.status, problem.code, problem.param) == expected
    assert words in problem.message


async def test_an_engines_words_on_length_reach_the_client() -> None:
    async with fleet() as it:
        it.agent.on_payload = lambda payload: it.agent.send(
            m.AttemptEnded(
                payload.id, payload.attempt, "error", error=TOO_LONG[0], error_status=400
            )
        )
        status, said, _ = await post(f"{it.url}/v1/chat/completions", CHAT)
        assert (status, said["error"]["code"]) == (400, "context_length_exceeded")
        assert said["error"]["message"] == TOO_LONG[0]
