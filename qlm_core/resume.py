"""Which requests can be continued on another engine after part of their output is out.

A continued attempt gets the prompt and the text produced so far. That is enough for plain text of a
single choice and for nothing else: the state of a grammar, further choices, log-probabilities or an
echoed prompt cannot be rebuilt from text. The gateway decides by this what a lost attempt means; an
agent does well to leave such requests alone when it evicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields that tie the output to state inside the engine, or add output that is not text.
_TIED = (
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "logprobs",
    "prompt_embeds",
    "prompt_logprobs",
    "return_token_ids",
    "structured_outputs",
    "suffix",
    "top_logprobs",
    "truncate_prompt_tokens",
    "use_beam_search",
)


def resumable(body: Mapping[str, Any], *, chat: bool) -> bool:
    """Whether a request with this body can go on elsewhere from the text that it produced.

    Tools are allowed here: the answer may well be text. Once a tool call has begun the request is not
    resumable any more, which only whoever sees the output can tell.
    """
    if _above_one(body.get("n")) or _above_one(body.get("best_of")) or body.get("echo"):
        return False
    if any(body.get(field) for field in _TIED):
        return False
    if chat and body.get("continue_final_message") and not _ends_in_text(body.get("messages")):
        return False
    if not chat and body.get("logprobs") is not None:
        return False  # 0 asks for the chosen token's own log-probability
    if not chat and isinstance(body.get("prompt"), list):
        prompt = body["prompt"]
        if not (prompt and isinstance(prompt[0], int)):
            return False
    shape = body.get("response_format")
    return not (isinstance(shape, Mapping) and shape.get("type", "text") != "text")


def _ends_in_text(messages: object) -> bool:
    """Whether the last message is plain text, to which more can be added."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and isinstance(last.get("content"), str)


def _above_one(value: object) -> bool:
    return isinstance(value, int) and value > 1
