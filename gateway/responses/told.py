"""What a response object repeats of its request, from its first moment on."""

from __future__ import annotations

from gateway import body as bd
from gateway.responses.fields import Json, list_of, object_of, wrong
from qlm_core.errors import InvalidRequest

# As they came, or null.
_REPEATED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)
# Of metadata.
_PAIRS_MAX, _NAME_CHARS_MAX, _VALUE_CHARS_MAX = 16, 64, 512


def told(fields: Json, *, stored: bool, background: bool) -> Json:
    """These fields, with OpenAI's defaults where they hold here as well: what engines do is theirs to say.

    Args:
        fields: of the request, its tools checked.

    Raises:
        InvalidRequest: naming the field.
    """
    text = object_of(fields, "text")
    parallel = fields.get("parallel_tool_calls")
    return {name: fields.get(name) for name in _REPEATED} | {
        "background": background,
        "metadata": _metadata(fields),
        "parallel_tool_calls": True if parallel is None else bd.flag(fields, "parallel_tool_calls"),
        "reasoning": {"effort": None, "summary": None} | object_of(fields, "reasoning"),
        "store": stored,
        "text": text | {"format": text.get("format") or {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [{"strict": None, "parameters": None} | tool for tool in list_of(fields, "tools")],
        "truncation": "disabled",
    }


def _metadata(fields: Json) -> Json:
    pairs = object_of(fields, "metadata")
    if len(pairs) > _PAIRS_MAX:
        raise InvalidRequest("metadata", f"has more than {_PAIRS_MAX} pairs", "Send fewer.")
    for name, value in pairs.items():
        if not isinstance(value, str):
            raise wrong(f"metadata.{name:.64}", "must be text")
        if len(name) > _NAME_CHARS_MAX or len(value) > _VALUE_CHARS_MAX:
            raise InvalidRequest(
                f"metadata.{name:.64}",
                f"longer than {_NAME_CHARS_MAX} characters, or its value than {_VALUE_CHARS_MAX}",
                "Shorten it.",
            )
    return pairs
