"""What an engine's whole answers have beside output, so that an answer put together from a stream has it too.

A whole answer names fields that a stream leaves out because they are empty (`"refusal": null`). Which ones depends on
server and version, so they are learned from one answer of each endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.engines.lenient_json import encode, read

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """The empty fields of an endpoint's whole answers: of the answer, its usage, each choice and each message.

    Attributes:
        fingerprint: the server's `system_fingerprint`, "" if it has none.
        reasons: the answer was reasoning, which the server parses out of the text.
    """

    answer: Json
    usage: Json
    choice: Json
    message: Json
    fingerprint: str = ""
    reasons: bool = False

    def chunk(self, choices: int) -> bytes:
        """The fields as a chunk of so many choices, to be folded before all others; empty if there are none."""
        if not (self.answer or self.usage or self.choice or self.message):
            return b""
        usage = {"usage": self.usage} if self.usage else {}
        parts = [
            {"index": index, **self.choice} | ({"delta": self.message} if self.message else {})
            for index in range(choices)
        ]
        return encode({**self.answer, **usage, "choices": parts})


def learn(data: bytes) -> Shape:
    """The shape of a whole answer. Raises Unreadable, KeyError, TypeError or IndexError for what is none."""
    answer = read(data)
    choice = answer["choices"][0]
    message = choice.get("message") or {}
    return Shape(
        answer=_empty(answer),
        usage=_usage(answer.get("usage") or {}),
        choice=_empty(choice),
        message=_empty(message),
        fingerprint=str(answer.get("system_fingerprint") or ""),
        reasons=bool(message.get("reasoning") or message.get("reasoning_content")),
    )


def _usage(usage: Json) -> Json:
    """The empty fields of usage, and of the details in it."""
    details = {key: _empty(value) for key, value in usage.items() if isinstance(value, dict)}
    return _empty(usage) | {key: value for key, value in details.items() if value}


def _empty(fields: Json) -> Json:
    return {key: value for key, value in fields.items() if value is None or value == []}
