"""The requests of the exactness tests: long outputs with natural and forced ends, and a hundred of all kinds. Pure."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

MODEL = "tiny-llama"
TOPICS = (
    "def main():",
    "import os\n",
    "class Tree:",
    "for line in file:",
    "The quick brown fox",
    "return self._value",
    "# A comment says why",
    "if not found:",
    "raise ValueError(",
    "async def run(",
    "try:\n    pass",
    "with open(path) as file:",
)
# With it random weights wander instead of repeating themselves, though they stay greedy.
WANDERING: Json = {"temperature": 0, "repetition_penalty": 1.15}


def long_outputs() -> list[Json]:
    """Twelve completions of up to 1,800 tokens and six chats of up to 1,500; every third may end by itself."""
    bodies = []
    for number, topic in enumerate(TOPICS):
        body = {"model": MODEL, "prompt": topic, "max_tokens": 1800} | WANDERING
        bodies.append(body | {"ignore_eos": number % 3 != 0, "stream": number % 2 == 0})
    for number, topic in enumerate(TOPICS[:6]):
        messages = [{"role": "user", "content": topic}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 1500} | WANDERING
        bodies.append(body | {"ignore_eos": number % 3 != 0, "stream": number % 2 == 0})
    for body in bodies:
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
    return bodies


# The completions of this kind are of token ids.
BY_IDS: Json = {}
KINDS: tuple[Json, ...] = (
    {},
    {"stop": ["zz", "qu", "\n\n"]},
    {"min_tokens": 100},
    {"logprobs": 2},
    BY_IDS,
    {"stop": ["self"], "include_stop_str_in_output": True},
    {"presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"logit_bias": {str(token): -4 for token in range(300, 500)}},
    {"bad_words": ["the", "self"]},
    {"seed": 5, "temperature": 0.9, "top_k": 50},
)


def hundred() -> list[Json]:
    """A hundred outputs of up to 180 tokens: ten kinds, each as five completions and five chats, streamed and whole."""
    bodies = []
    for kind in KINDS:
        for number in range(10):
            topic, chat = TOPICS[number], number % 2 == 1
            body: Json = {"model": MODEL, "max_tokens": 180, "ignore_eos": True} | WANDERING
            if chat:
                body["messages"] = [{"role": "user", "content": topic}]
            else:
                body["prompt"] = [50 + 7 * number, 300, 412, 77] if kind is BY_IDS else topic
            body |= kind
            if chat and "logprobs" in kind:
                body |= {"logprobs": True, "top_logprobs": 2}
            if number % 4 < 2:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            bodies.append(body)
    return bodies


def urgent(number: int) -> Json:
    """A short interactive request."""
    return {"model": MODEL, "prompt": f"Urgent {number}", "max_tokens": 24, "temperature": 0, "ignore_eos": True}  # fmt: skip
