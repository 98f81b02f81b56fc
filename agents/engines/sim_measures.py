"""What the simulated engine answers where nothing is generated: vectors and scores that follow from the texts alone.

A vector counts the words of a text, hashed into its places, so that texts with the same words lie close together; a score
is the share of words that two texts have in common. The shapes are those of OpenAI and vLLM. Everything here is pure.
"""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec

from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest
from qlm_core.tokens import chat_texts, completion_prompts, scored_texts

DIMENSIONS = 32
_DIMENSIONS_MAX = 4096
# Fields that would have to change the answer, with the values that change nothing.
_FIXED: dict[str, tuple[object, ...]] = {
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "use_activation": (True,),
}

_encode = msgspec.json.Encoder().encode


def measure(body: dict[str, Any], endpoint: Endpoint, *, model: str, prompt_tokens: int) -> bytes:
    """The whole answer, as JSON. Raises InvalidRequest for a field that cannot be honoured."""
    for field, known in _FIXED.items():
        if body.get(field) not in (None, *known):
            raise InvalidRequest(
                field,
                "the simulated engine cannot honour it",
                "Leave it out, or use a real engine.",
            )
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    head: dict[str, Any] = {"model": model, "usage": usage}
    if endpoint is Endpoint.EMBEDDINGS:
        return _encode({"object": "list", "data": _embeddings(body)} | head)
    if endpoint is Endpoint.RERANK:
        return _encode({"id": "rerank-sim", "results": _ranked(body)} | head)
    data = [
        {"index": index, "object": "score", "score": score}
        for index, score in enumerate(_scores(body))
    ]
    return _encode({"id": "score-sim", "object": "list", "created": 0, "data": data} | head)


def vector(text: object, dimensions: int = DIMENSIONS) -> list[float]:
    """A unit vector for a text or a list of token ids, in numbers that 32 bits hold."""
    counts = [0.0] * dimensions
    for word in _words(text):
        code = crc32(word.encode("utf-8", "surrogatepass"))
        counts[code % dimensions] += 1.0 if code & 0x80000000 else -1.0
    length = math.sqrt(sum(count * count for count in counts))
    if not length:
        counts[0] = length = 1.0
    return [_rounded(count / length) for count in counts]


def _embeddings(body: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = body.get("dimensions")
    dimensions = DIMENSIONS if wanted is None else wanted
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _DIMENSIONS_MAX:
        raise InvalidRequest(
            "dimensions", f"must be a whole number from 1 to {_DIMENSIONS_MAX}", "Correct it."
        )
    if body.get("input") is None:
        inputs: Sequence[object] = ["".join(chat_texts(body.get("messages")))]
    else:
        inputs = completion_prompts(body["input"])
    in_base64 = body.get("encoding_format") == "base64"
    return [
        {"object": "embedding", "index": index, "embedding": _written(one, dimensions, in_base64)}
        for index, one in enumerate(inputs)
    ]


def _written(text: object, dimensions: int, in_base64: bool) -> list[float] | str:
    numbers = vector(text, dimensions)
    if not in_base64:
        return numbers
    return b64encode(struct.pack(f"<{dimensions}f", *numbers)).decode()


def _ranked(body: dict[str, Any]) -> list[dict[str, Any]]:
    _, documents = scored_texts(body)
    scores = _scores(body)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    top = body.get("top_n") or len(order)
    if not isinstance(top, int) or top < 0:
        raise InvalidRequest("top_n", "must be a whole number of at least 0", "Correct it.")
    return [
        {
            "index": index,
            "document": {"text": _text(documents[index])},
            "relevance_score": scores[index],
        }
        for index in order[:top]
    ]


def _scores(body: dict[str, Any]) -> list[float]:
    first, second = ([_words(one) for one in side] for side in scored_texts(body))
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            "text_2", "the two sides have different lengths", "Give one text, or as many on both."
        )
    return [_rounded(_share(*pair)) for pair in zip(first, second, strict=True)]


def _share(first: Sequence[str], second: Sequence[str]) -> float:
    """Of all different words of two texts, the share that both have."""
    ours, theirs = dict.fromkeys(first), dict.fromkeys(second)
    both = sum(word in theirs for word in ours)
    return both / max(1, len(ours) + len(theirs) - both)


def _words(text: object) -> Sequence[str]:
    if isinstance(text, list):
        return [str(part) for part in text]
    return _text(text).lower().split()


def _text(value: object) -> str:
    if isinstance(value, dict):
        parts = value.get("text", value.get("content", ""))
        return " ".join(map(_text, parts)) if isinstance(parts, list) else _text(parts)
    return value if isinstance(value, str) else str(value)


def _rounded(value: float) -> float:
    """The nearest number of 32 bits."""
    number: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return number
