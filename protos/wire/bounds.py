"""How large anything may be that a peer says: numbers, durations, names, lists.

Nothing that comes from outside reaches a machine unbounded: a sum of what passes here stays finite, fits the next message, and
is counted to in no time. What is out of range is refused with `WireError`, which names the field. Whatever is sent goes
through the `fit_…` functions first, so an honest peer is never refused for what its engine or its clock said.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

from qlm_core.config_rules import parse_address
from qlm_core.errors import ConfigError, QlmError

COUNT_MAX = 2**31 - 1
"""Tokens of one request, and whatever else is counted for one."""

NUMBER_MAX = 2**62
"""Epochs and numbers of groups, which only grow: room for as many again in the 64 bits that carry them."""

SECONDS_MAX = 1e9
RATE_MAX = 1e12
NAME_CHARS_MAX = 1024
TEXT_CHARS_MAX = 16_384
STATUS_MAX = 999
MODELS_MAX = 10_000
PEERS_MAX = 10_000
LINES_MAX = 100_000_000
"""Of one batch and model: no file holds as many, and their tokens are counted without an overflow."""

BATCH_MODELS_MAX = 1_000
ITEMS_MAX = 1_000_000
_SHOWN_CHARS = 64


class WireError(QlmError):
    """A peer sent a message that cannot be used; the text names the field."""


# --------------------------------------------------------------------------- from the wire


def message(received: object) -> None:
    """Raise WireError for what gRPC could not read: it hands out None then, to those who dialled."""
    if received is None:
        raise WireError("message: not of this stream's type; the peer speaks something else")


def count(field: str, value: int, most: int = COUNT_MAX) -> int:
    """A number of things. Raises WireError."""
    if not 0 <= value <= most:
        raise WireError(f"{field}: {value} is more than {most}, beyond any use")
    return value


def number(field: str, value: int) -> int:
    """A number that something goes by, such as an epoch. Raises WireError."""
    return count(field, value, NUMBER_MAX)


def seconds(field: str, value: float) -> float:
    """A duration. Raises WireError."""
    if not 0.0 <= value <= SECONDS_MAX:
        raise WireError(f"{field}: {value:g} is no duration from 0 to {SECONDS_MAX:g} s")
    return value


def target(field: str, value: float) -> float:
    """A duration that something is to be done in. Raises WireError."""
    if not 0.0 < value <= SECONDS_MAX:
        raise WireError(f"{field}: {value:g} is no target above 0 and up to {SECONDS_MAX:g} s")
    return value


def distance(field: str, value: float) -> float:
    """Seconds from now, either way. Raises WireError."""
    if not -SECONDS_MAX <= value <= SECONDS_MAX:
        raise WireError(f"{field}: {value:g} is further than {SECONDS_MAX:g} s from now")
    return value


def rate(field: str, value: float) -> float:
    """How much of something, on average or in a second. Raises WireError."""
    if not 0.0 <= value <= RATE_MAX:
        raise WireError(f"{field}: {value:g} is not from 0 to {RATE_MAX:g}")
    return value


def lines(field: str, value: int) -> int:
    """How many lines of a batch. Raises WireError."""
    return count(field, value, LINES_MAX)


def mean(field: str, value: float) -> float:
    """The mean of counts. Raises WireError."""
    if not 0.0 <= value <= COUNT_MAX:
        raise WireError(f"{field}: {value:g} is not from 0 to {COUNT_MAX}")
    return value


def share(field: str, value: float) -> float:
    """A part of a whole. Raises WireError."""
    if not 0.0 <= value <= 1.0:
        raise WireError(f"{field}: {value:g} is no share; give 0 to 1")
    return value


def name(field: str, value: str) -> str:
    """What something is called. Raises WireError for none and for an endless one."""
    if not 0 < len(value) <= NAME_CHARS_MAX:
        if not value:
            raise WireError(f"{field}: empty")
        raise WireError(f"{field}: {len(value)} characters, more than {NAME_CHARS_MAX}")
    return value


def label(field: str, value: str) -> str:
    """A name that need not be there. Raises WireError."""
    return name(field, value) if value else value


def text(field: str, value: str) -> str:
    """What somebody said. Raises WireError for an endless text."""
    if len(value) > TEXT_CHARS_MAX:
        raise WireError(f"{field}: {len(value)} characters, more than {TEXT_CHARS_MAX}")
    return value


def address(field: str, value: str) -> str:
    """Where somebody listens, as host:port. Raises WireError."""
    try:
        parse_address(name(field, value), field)
    except ConfigError:
        raise WireError(f"{field}: {value[:_SHOWN_CHARS]!r} is not host:port") from None
    return value


def token_ids(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """Ids as a vocabulary may have them. Raises WireError."""
    count(field, max(values, default=0))
    return tuple(values)


def few(field: str, items: Sized, most: int) -> None:
    """Raise WireError for a list that is too long."""
    if len(items) > most:
        raise WireError(f"{field}: {len(items)} entries, more than {most}")


# --------------------------------------------------------------------------- to the wire


def fit_count(value: int) -> int:
    """The nearest number that passes `count`."""
    return min(max(value, 0), COUNT_MAX)


def fit_lines(value: int) -> int:
    """The nearest number that passes `lines`."""
    return min(max(value, 0), LINES_MAX)


def fit_mean(value: float) -> float:
    """The nearest that passes `mean`; 0 for what is no number."""
    return min(max(0.0, value), float(COUNT_MAX))


def fit_seconds(value: float) -> float:
    """The nearest duration that passes `seconds`; 0 for what is no number."""
    return min(max(0.0, value), SECONDS_MAX)


def fit_distance(value: float) -> float:
    """The nearest that passes `distance`; the past for what is no number."""
    return min(max(-SECONDS_MAX, value), SECONDS_MAX)


def fit_rate(value: float) -> float:
    """The nearest that passes `rate`; 0 for what is no number."""
    return min(max(0.0, value), RATE_MAX)


def fit_text(value: str, most: int = TEXT_CHARS_MAX) -> str:
    """The beginning of a text, in characters that travel: half a pair of surrogates becomes a question mark."""
    return value[:most].encode("utf-8", "replace").decode()
