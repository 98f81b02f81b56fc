"""The HTTP headers that a gateway reads and writes, under their current names and the deprecated ones.

Names follow llm-d's router, so a gateway fits where one stood; ours start with `x-qlm-`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from gateway.asgi import RawHeaders
from gateway.intake import Wish
from gateway.keys import KEY_BYTES_MAX
from gateway.problems import Problem
from qlm_core.errors import InvalidRequest
from qlm_core.ledger import EndRecord
from qlm_core.model import Estimate, Phase, RequestId

Headers = dict[bytes, bytes]

_CLASS = (
    b"x-qlm-slo-class",
    b"x-llm-d-inference-objective",
    b"x-gateway-inference-objective",
    b"x-dynamo-inference-objective",
)
_TENANT = (
    b"x-qlm-tenant",
    b"x-llm-d-inference-fairness-id",
    b"x-gateway-inference-fairness-id",
    b"x-tenant-id",
)
# Of agents: the conversation that a request is part of.
_SESSION = (b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-affinity")
_TTFT_MS = (b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms")
_TPOT_MS = (b"x-llm-d-slo-tpot-ms", b"x-slo-tpot-ms")
_E2E_MS = (b"x-qlm-slo-e2e-ms",)
_TTL = b"x-llm-d-inference-ttl"
_TTL_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_TTL_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_REQUEST_ID_BYTES_MAX = 128
# W3C Trace Context; the second is nothing without the first.
_TRACE = ("traceparent", "tracestate")
_TRACE_BYTES_MAX = 512
# Refusals that leave the rest of the body where it is.
_UNREAD = ("body_too_large", "body_too_slow", "unsupported_content_encoding")
# What a browser's script may read of an answer, beside what it may read always.
EXPOSED = (
    b"x-request-id",
    b"x-qlm-request-id",
    b"x-qlm-estimated-wait-ms",
    b"x-llm-d-flow-queue-duration-ms",
    b"x-llm-d-request-dropped-reason",
    b"x-should-retry",
    b"retry-after",
    b"retry-after-ms",
    b"location",
    b"preference-applied",
    b"x-qlm-clamped",
    b"allow",
    b"content-disposition",
    b"content-range",
    b"accept-ranges",
    b"etag",
)
# OpenAI's libraries do not come back at all where they are told to stay away for longer.
RETRY_AFTER_S_MAX = 120.0


def every(raw: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """All values under a lower-case name."""
    return [value for key, value in raw if key == name]


def read(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers by lower-case name; the first of several of the same name counts."""
    headers: Headers = {}
    for name, value in raw:
        headers.setdefault(name, value)
    return headers


def text(headers: Headers, *names: bytes) -> str:
    """The first of these headers that is there, or ""."""
    for name in names:
        value = headers.get(name)
        if value:
            return value.decode("latin-1").strip()
    return ""


def flag(headers: Headers, name: bytes) -> bool:
    """Whether a header says true. Raises InvalidRequest when it says neither true nor false."""
    value = text(headers, name).lower()
    if value in ("", "0", "false"):
        return False
    if value in ("1", "true"):
        return True
    raise InvalidRequest(name.decode(), f"{value[:32]!r} is not true or false", "Correct it.")


def key(headers: Headers) -> str:
    """The client's name for this submission; "" for none. Raises InvalidRequest."""
    found = text(headers, b"idempotency-key")
    if len(found) > KEY_BYTES_MAX:
        raise InvalidRequest("idempotency-key", f"longer than {KEY_BYTES_MAX} bytes", "Shorten it.")
    return found


def prefers_async(headers: Headers) -> bool:
    """Whether the client prefers not to wait for the answer (RFC 7240)."""
    preferences = text(headers, b"prefer").lower().split(",")
    return any(one.partition(";")[0].strip() == "respond-async" for one in preferences)


def wants_async(headers: Headers) -> bool:
    """Whether the client does not wait for the answer, in whichever way it says so. Raises InvalidRequest."""
    return flag(headers, b"x-qlm-async") or prefers_async(headers)


def come_back(in_s: float) -> RawHeaders:
    """When to come back: in seconds, and in milliseconds for who reads that, which they do first.

    What would be longer than clients heed is told as the longest that they do.
    """
    in_s = min(in_s, RETRY_AFTER_S_MAX)
    # Never too early by a fraction, and not at once.
    return [
        (b"retry-after", b"%d" % max(1, math.ceil(in_s))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(in_s * 1000.0))),
    ]


def wish(headers: Headers) -> Wish:
    """Class, targets and tenant as headers give them. Raises InvalidRequest for what is no number."""
    return Wish(
        slo_class=text(headers, *_CLASS),
        ttft_s=_milliseconds(headers, _TTFT_MS),
        tpot_s=_milliseconds(headers, _TPOT_MS),
        e2e_s=_milliseconds(headers, _E2E_MS),
        ttl_s=_duration(text(headers, _TTL)),
        tenant=text(headers, *_TENANT),
        session=text(headers, *_SESSION),
        trace=trace(headers),
    )


def trace(headers: Headers) -> tuple[tuple[str, str], ...]:
    """The headers of the client's trace, to be passed on; () where it has none."""
    kept: list[tuple[str, str]] = []
    for name in _TRACE:
        value = headers.get(name.encode(), b"").strip()
        if not _is_plain(value, _TRACE_BYTES_MAX):
            break
        kept.append((name, value.decode()))
    return tuple(kept)


def patience_s(headers: Headers) -> float | None:
    """How long the client waits between two bytes of the answer, where it says so: OpenAI's libraries do."""
    try:
        given = float(text(headers, b"x-stainless-read-timeout") or "nan")
    except ValueError:
        return None
    return given if math.isfinite(given) and given > 0 else None


def echoed(headers: Headers) -> RawHeaders:
    """The client's own request id, for an answer to something that never became a request."""
    own = headers.get(b"x-request-id", b"")
    return [(b"x-request-id", own)] if _is_plain(own) else []


def clamped(values: Iterable[tuple[str, float]]) -> RawHeaders:
    """What was brought within its range, so that nobody takes it for what was asked for."""
    said = ", ".join(f"{name}={value:.6g}" for name, value in values)
    return [(b"x-qlm-clamped", said.encode())] if said else []


def answering(
    headers: Headers, id: RequestId, queue_s: float | None, estimate: Estimate | None
) -> RawHeaders:
    """Ids, time in the queue, and the wait that was estimated at the arrival."""
    told = echoed(headers) or [(b"x-request-id", id.encode())]
    told.append((b"x-qlm-request-id", id.encode()))
    if queue_s is not None:
        told.append((b"x-llm-d-flow-queue-duration-ms", b"%d" % int(queue_s * 1000)))
    if estimate is not None:
        told.append((b"x-qlm-estimated-wait-ms", _in_milliseconds(estimate)))
    return told


def answered(headers: Headers, id: RequestId, record: EndRecord) -> RawHeaders:
    """As `answering`, for a request that has ended."""
    queue_s = record.queue_s
    if queue_s is None and record.phase is not Phase.FINISHED:
        queue_s = record.e2e_s
    return answering(headers, id, queue_s, record.estimate)


def problem(problem: Problem) -> RawHeaders:
    """What headers say of an error."""
    told: RawHeaders = []
    if problem.retry_after_s is not None:
        told += come_back(problem.retry_after_s)
    if problem.should_retry is not None:
        told.append((b"x-should-retry", b"true" if problem.should_retry else b"false"))
    if problem.allow:
        told.append((b"allow", problem.allow.encode()))
    if problem.dropped:
        told.append((b"x-llm-d-request-dropped-reason", problem.dropped.encode()))
    if problem.code in _UNREAD:
        # The rest of the body is not wanted on this connection.
        told.append((b"connection", b"close"))
    if problem.status == 401:
        told.append((b"www-authenticate", b"Bearer"))
    return told


def _in_milliseconds(estimate: Estimate) -> bytes:
    """A dictionary as structured fields have it (RFC 8941)."""
    parts = (("mean", estimate.mean_s), ("p50", estimate.p50_s), ("p90", estimate.p90_s))
    return ", ".join(
        f"{name}={value_s * 1000:.0f}" for name, value_s in (*parts, ("p99", estimate.p99_s))
    ).encode()


def _milliseconds(headers: Headers, names: tuple[bytes, ...]) -> float | None:
    value = text(headers, *names)
    if not value:
        return None
    name = next(name for name in names if headers.get(name)).decode()
    try:
        given = float(value)
    except ValueError:
        given = math.nan
    if not math.isfinite(given):
        raise InvalidRequest(
            name,
            f"{value[:32]!r} is not a number",
            "Give milliseconds.",
            code="invalid_slo",
        )
    return given / 1000.0


def _duration(value: str) -> float | None:
    """A duration as Go writes it, such as 1m30s."""
    if not value:
        return None
    parts = _TTL_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise InvalidRequest(
            _TTL.decode(), f"{value[:32]!r} is not a duration", "Write it like 90s or 1m30s."
        )
    return sum(float(number) * _TTL_UNIT_S[unit] for number, unit in parts)


def _is_plain(value: bytes, bytes_max: int = _REQUEST_ID_BYTES_MAX) -> bool:
    return 0 < len(value) <= bytes_max and value.isascii() and value.decode().isprintable()
