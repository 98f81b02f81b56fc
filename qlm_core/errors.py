"""The exceptions that cross an edge of QLM.

Inside the core an expected result (shed, stale, infeasible) is a value. These exceptions exist for the
edges: a file that cannot be read, a request that cannot be accepted, a peer that cannot be reached.
"""

import traceback

from qlm_core.nearest import did_you_mean

# How clients of OpenAI's API are told that a sequence is too long for the model.
CONTEXT_CODE = "context_length_exceeded"
# Of so many models the nearest to an unknown one is looked for, which costs time at every such request.
_NEAREST_OF = 64


class QlmError(Exception):
    """Something QLM reports to its user in one line."""


class ConfigError(QlmError):
    """The configuration is unusable; the message names the key and the remedy."""


class InvalidRequest(QlmError):
    """A request cannot be accepted as it stands.

    Attributes:
        field: the offending field as the client wrote it, or "" where no single field is to blame.
        remedy: what to do about it.
        code: a short machine-readable code (OpenAI's `error.code`).
    """

    def __init__(self, field: str, problem: str, remedy: str, *, code: str = "invalid_value"):
        super().__init__(f"{field}: {problem}. {remedy}" if field else f"{problem}. {remedy}")
        self.field = field
        self.remedy = remedy
        self.code = code


class ContextExceeded(InvalidRequest):
    """A prompt that cannot fit the model, in the words by which clients of OpenAI's API know that.

    Args:
        length: the model's, in tokens.
        found: what the prompt has instead, with its unit.
    """

    def __init__(self, field: str, length: int, found: str):
        remedy = f"Please reduce the length of the {field}."
        super().__init__(field, "too long", remedy, code=CONTEXT_CODE)
        # Clients look for OpenAI's sentence, some of them at the beginning.
        self.args = (
            f"This model's maximum context length is {length} tokens. However, your {field} has {found}. {remedy}",
        )


class UnknownModel(InvalidRequest):
    """The request names a model that no agent of this fleet can serve."""

    def __init__(self, model: str, known: tuple[str, ...]):
        super().__init__(
            "model",
            f"the model {model!r} is not served here",
            f"Use one of: {', '.join(known)}.{did_you_mean(model, known[:_NEAREST_OF])}"
            if known
            else "No agent has announced a model yet.",
            code="model_not_found",
        )


class QueueFull(QlmError):
    """A configured limit on waiting work is reached; try again after `retry_after_s`."""

    def __init__(self, what: str, limit: int, retry_after_s: float):
        super().__init__(f"{what}: the limit of {limit} is reached. Retry later.")
        self.retry_after_s = retry_after_s


class TooLate(QlmError):
    """A request would begin when its client no longer waits; try again after `retry_after_s`."""

    def __init__(self, wait_s: float, patience_s: float):
        super().__init__(
            f"The request would begin in about {wait_s:.0f} s, and its client waits for "
            f"{patience_s:.0f} s only. Retry later, raise the client's timeout, or submit it durably with an "
            "idempotency-key and fetch it."
        )
        self.retry_after_s = max(1.0, wait_s - patience_s)


class ShedLate(QlmError):
    """A request whose target cannot be met, of a class that sheds such; try again after `retry_after_s`."""

    def __init__(self, retry_after_s: float):
        super().__init__(
            "The target of this request cannot be met now, and its SLO class sheds what would be late. "
            "Retry later, or use a class that waits."
        )
        self.retry_after_s = retry_after_s


class KeyReused(QlmError):
    """An idempotency key already names a request with other content."""

    def __init__(self, key: str):
        super().__init__(
            f"idempotency-key: {key[:64]!r} names an earlier request with other content. "
            "Use a new key, or send the same request."
        )


class Conflict(QlmError):
    """What is asked for is not possible in the state that something is in, and trying again would not help."""


class NotFound(QlmError):
    """No such request is known."""


class SetAside(QlmError):
    """A stored request that this gateway cannot read and keeps as it is."""

    def __init__(self, id: str):
        super().__init__(
            f"id: {id[:64]!r} is kept here but cannot be read, so it neither runs nor has an answer. "
            "Send the request again, under another idempotency key if it had one."
        )


class NoRoom(QlmError):
    """There is no room for what a client wants kept, and trying again soon would not help."""

    def __init__(self, what: str, remedy: str):
        super().__init__(f"{what}. {remedy}")


class FileLost(QlmError):
    """A file that is listed and whose bytes are not where they were put."""

    def __init__(self, id: str):
        super().__init__(
            f"id: the bytes of {id[:64]!r} are not on the gateway's disk any more. Upload the file again; "
            "the gateway's operator may put a copy back into gateway.store.files."
        )


class Unavailable(QlmError):
    """A peer that is needed for this cannot be reached now."""


def kind_and_place(error: Exception) -> str:
    """What an unexpected error is and where it came from; its message is left out, for it may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in " + " > ".join(f"{f.name}:{f.lineno}" for f in frames)
