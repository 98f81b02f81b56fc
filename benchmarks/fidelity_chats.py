"""The chats of the fidelity corpus, and what its completions share with them. Pure data."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]

CHAT: Body = {
    "messages": [{"role": "user", "content": "Say something."}],
    "max_tokens": 24,
    "temperature": 0,
}
SEEDED: Body = {"temperature": 1.0, "seed": 7}
LONG_TEXT = "for index in range(10):\n    total += values[index]\n" * 24
EMOJI = "👩‍👩‍👧‍👦 🇺🇳 ✊🏿 grüße 你好 שלום नमस्ते "
PARIS: Body = {"type": "string", "enum": ["Paris", "Rome"]}
SCHEMA: Body = {
    "type": "object",
    "properties": {"city": PARIS, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
JSON_SCHEMA: Body = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
TOOLS: list[Body] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tells the {name} of a city.",
            "parameters": {"type": "object", "properties": {"city": PARIS}, "required": ["city"]},
        },
    }
    for name in ("weather", "height")
]
# What hermes' tool parser takes for a call of a tool.
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "Paris"\}\}\n</tool_call>'
TWO_CALLS = rf"{CALL}\n{CALL.replace('weather', 'height')}"
GRAMMAR = 'root ::= "yes" | "no, " [a-c] [a-c]'

SYSTEM: Body = {"role": "system", "content": "Be brief."}
USER: Body = {"role": "user", "content": "Say something."}
BEGUN: Body = {"role": "assistant", "content": "Well, I"}
CALLED: Body = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call-1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
        }
    ],
}
TOLD: Body = {"role": "tool", "tool_call_id": "call-1", "content": "Sunny."}

# Bodies that completions and chats have in common, by the name of the case.
SHARED: dict[str, Body] = {
    "plain": {},
    "one-token": {"max_tokens": 1},
    "long": {"max_tokens": 300, "ignore_eos": True},
    "hot": {"temperature": 1.8, "seed": 11, "max_tokens": 120, "ignore_eos": True},
    "n-3": SEEDED | {"n": 3},
    "beam-search": {"use_beam_search": True, "n": 2, "max_tokens": 8},
    "stop-one": {"stop": "e", "max_tokens": 60} | SEEDED,
    "stop-several": {"stop": ["\n", "e", "ab"], "max_tokens": 60} | SEEDED,
    "stop-included": {"stop": ["e"], "include_stop_str_in_output": True, "max_tokens": 60} | SEEDED,
    "stop-token-ids": {"stop_token_ids": list(range(300, 1200)), "max_tokens": 60} | SEEDED,
    "min-tokens": {"allowed_token_ids": [4, 70, 71, 72], "min_tokens": 10} | SEEDED,
    "prompt-logprobs": {"prompt_logprobs": 1, "max_tokens": 4},
    "huge-logit-bias": {"logit_bias": {str(token): -50 for token in range(300, 600)}},
    "bad-words": {"bad_words": ["the", "import", "a"]} | SEEDED,
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "special-tokens-shown": SEEDED
    | {"skip_special_tokens": False, "allowed_token_ids": [0, 1, 2, 3, 70], "ignore_eos": True},
    "token-ids": {"return_token_ids": True},
    "token-ids-n": SEEDED | {"return_token_ids": True, "n": 2, "max_tokens": 5},
    "json-schema": {"response_format": JSON_SCHEMA, "max_tokens": 60},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "regex": {"structured_outputs": {"regex": "[a-z]{3,8}-[0-9]{2}"}},
    "grammar": {"structured_outputs": {"grammar": GRAMMAR}},
    "cache-salt": {"cache_salt": "salt"},
    "bad-temperature": {"temperature": 5},
    "bad-limit": {"max_tokens": -3},
    "bad-n": {"n": 0},
    "bad-format": {"response_format": {"type": "xml"}},
}

# Bodies of chats, over CHAT. A value of None takes a field away.
CHATS: dict[str, Body] = SHARED | {
    "no-limit": {"max_tokens": None, "allowed_token_ids": [4, *range(70, 90)]} | SEEDED,
    "max-completion-tokens": {"max_tokens": None, "max_completion_tokens": 9},
    "n-2-logprobs": SEEDED | {"n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 5},
    "end-at-once": {"allowed_token_ids": [4]},
    "logprobs": {"logprobs": True, "max_tokens": 6},
    "logprobs-1": {"logprobs": True, "top_logprobs": 1, "max_tokens": 6},
    "logprobs-5": {"logprobs": True, "top_logprobs": 5, "max_tokens": 6},
    "logprobs-broken-utf8": {"logprobs": True, "top_logprobs": 1, "temperature": 1.8, "seed": 3},
    "top-logprobs-alone": {"top_logprobs": 2},
    "logprob-token-ids": {"logprobs": True, "logprob_token_ids": [65, 900], "max_tokens": 4},
    "echo": {"echo": True, "messages": [USER, BEGUN]},
    "system": {"messages": [SYSTEM, USER]},
    "developer": {"messages": [SYSTEM | {"role": "developer"}, USER]},
    "conversation": {"messages": [SYSTEM, USER, BEGUN, USER]},
    "assistant-last": {"messages": [USER, BEGUN]},
    "tool-messages": {"messages": [USER, CALLED, TOLD], "tools": TOOLS, "tool_choice": "none"},
    "names": {"messages": [USER | {"name": "anna"}]},
    "empty-content": {"messages": [{"role": "user", "content": ""}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say"}]}]},
    "two-parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": x} for x in ("Say", "it")]}
        ]
    },
    "unicode": {"messages": [{"role": "user", "content": EMOJI * 6}]},
    "long-prompt": {"messages": [{"role": "user", "content": LONG_TEXT}], "max_tokens": 8},
    "continued": {
        "messages": [USER, BEGUN],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "no-generation-prompt": {"add_generation_prompt": False},
    "special-tokens-added": {"add_special_tokens": True},
    "template-arguments": {"chat_template_kwargs": {"enable_thinking": False}},
    "prompt-text": {"return_prompt_text": True, "max_tokens": 4},
    "tokens-as-ids": {"return_tokens_as_token_ids": True, "logprobs": True, "max_tokens": 5},
    "truncated-prompt": {
        "messages": [{"role": "user", "content": LONG_TEXT}],
        "truncate_prompt_tokens": 20,
        "max_tokens": 4,
    },
    "tools-none": {"tools": TOOLS, "tool_choice": "none"},
    "tools-auto": {"tools": TOOLS, "tool_choice": "auto"},
    "tools-without-choice": {"tools": TOOLS},
    "tools-auto-called": {"tools": TOOLS, "structured_outputs": {"regex": CALL}, "max_tokens": 90},
    "tools-auto-called-twice": {
        "tools": TOOLS,
        "structured_outputs": {"regex": TWO_CALLS},
        "max_tokens": 180,
    },
    "tools-auto-text-and-call": {
        "tools": TOOLS,
        "structured_outputs": {"regex": f"[a-z ]{{8}}{CALL}"},
        "max_tokens": 90,
    },
    "tools-auto-call-cut-short": {
        "tools": TOOLS,
        "structured_outputs": {"regex": CALL},
        "max_tokens": 30,
    },
    "tools-required": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 90},
    "tools-named": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 60,
    },
    "tools-named-n": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "height"}},
        "max_tokens": 60,
        "n": 2,
    }
    | SEEDED,
    "tools-logprobs": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "logprobs": True,
        "max_tokens": 60,
    },
    "no-parallel-calls": {
        "tools": TOOLS,
        "structured_outputs": {"regex": TWO_CALLS},
        "parallel_tool_calls": False,
        "max_tokens": 180,
    },
    "json-object": {"response_format": {"type": "json_object"}},
    "format-text": {"response_format": {"type": "text"}},
    "priority": {"priority": 3},
    "xargs": {"vllm_xargs": {"a": 1}},
    "user-and-metadata": {"user": "somebody", "metadata": {"a": "b"}, "store": False},
    "unknown-fields": {"a_field_of_tomorrow": {"deep": [1, None, "x"]}},
    "bad-role": {"messages": [{"role": "stranger", "content": "Hm."}]},
    "bad-top-logprobs": {"logprobs": True, "top_logprobs": 500},
    "bad-tool-choice": {"tools": TOOLS, "tool_choice": "sometimes"},
    "bad-named-tool": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "nobody"}},
    },
    "bad-part": {"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]},
    "bad-continuation": {"messages": [USER, BEGUN], "continue_final_message": True},
    "bad-messages": {"messages": "Say something."},
    "image-for-a-text-model": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
                ],
            }
        ]
    },
    "no-messages": {"messages": []},
    "prompt-too-long": {"messages": [{"role": "user", "content": "words " * 4000}]},
}

# The token </think>; among few tokens a seeded draw comes upon it soon.
THOUGHT: int = 2049
SOON: Body = {"allowed_token_ids": [THOUGHT, *range(70, 78)]} | SEEDED
THOUGHTS: dict[str, Body] = {
    "never-ending": {"ignore_eos": True},
    "then-content": SOON,
    "then-content-logprobs": SOON | {"logprobs": True},
    "then-content-n": SOON | {"n": 3},
    "token-ids": SOON | {"return_token_ids": True},
    "not-included": SOON | {"include_reasoning": False},
    "then-json": SEEDED
    | {"logit_bias": {str(THOUGHT): 12}, "response_format": JSON_SCHEMA, "max_tokens": 90},
    "then-a-call": SEEDED
    | {
        "logit_bias": {str(THOUGHT): 12},
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 90,
    },
    "earlier-thoughts": SOON | {"messages": [USER, BEGUN | {"reasoning": "Let me see."}, USER]},
}
