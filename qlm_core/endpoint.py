"""What a client can ask of a model: the endpoints of OpenAI's API, and of servers like it, that an engine answers.

Each is called by the path at which engines serve it. Two of them generate text, token by token. The others measure texts:
their work ends with the prompt, their answer comes whole, and one that was broken off begins anew.
"""

from __future__ import annotations

from enum import Enum


class Endpoint(Enum):
    """What is asked of a model; the value is the path."""

    COMPLETIONS = "/v1/completions"
    CHAT_COMPLETIONS = "/v1/chat/completions"
    EMBEDDINGS = "/v1/embeddings"
    SCORE = "/v1/score"
    RERANK = "/v1/rerank"

    @property
    def path(self) -> str:
        """Where engines serve it."""
        return self.value

    @property
    def chat(self) -> bool:
        """Whether the prompt is a list of messages, and the answer another one."""
        return self is Endpoint.CHAT_COMPLETIONS

    @property
    def generates(self) -> bool:
        """Whether the answer is generated token by token, so that it can be streamed and continued."""
        return self in _GENERATING

    @property
    def id_prefix(self) -> str:
        """What the ids of its answers begin with."""
        return _PREFIXES[self]

    @property
    def prompt_field(self) -> str:
        """The field of a body that holds the prompt, as it is told to clients."""
        return _PROMPT_FIELDS[self]


_GENERATING = (Endpoint.COMPLETIONS, Endpoint.CHAT_COMPLETIONS)
_PREFIXES = {
    Endpoint.COMPLETIONS: "cmpl",
    Endpoint.CHAT_COMPLETIONS: "chatcmpl",
    Endpoint.EMBEDDINGS: "embd",
    Endpoint.SCORE: "score",
    Endpoint.RERANK: "rerank",
}
_PROMPT_FIELDS = {
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.CHAT_COMPLETIONS: "messages",
    Endpoint.EMBEDDINGS: "input",
    Endpoint.SCORE: "text_2",
    Endpoint.RERANK: "documents",
}
