"""Request traces in the formats the public ones come in, told apart by their columns.

| format | columns |
|---|---|
| plain | arrival_s, prompt_tokens, output_tokens, optional model and slo_class |
| Azure 2023 | TIMESTAMP, ContextTokens, GeneratedTokens |
| BurstGPT | Timestamp (s), Model, Request tokens, Response tokens |
| Mooncake | JSON lines with timestamp (ms), input_length, output_length |
| ServeGen, by client | t_s, client, rate_rps, family, p1, optional model: windows of 600 s |
| ServeGen, totals | t_s, rate_rps, cv_rate_weighted, optional model: windows of 600 s |

Time starts with the first request, or with the first window of rates. Requests without output (the
failed ones of BurstGPT) are left out. Everything is streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from qlm.tables import Row, TableError, columns_of, require_columns, rows_of
from qlm_core.sim.workload import (
    Mix,
    RateWindow,
    TraceMapping,
    TraceRow,
    WorkloadRequest,
    requests_from_trace,
    rows_from_rate_windows,
)

PLAIN = ("arrival_s", "prompt_tokens", "output_tokens")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
SERVEGEN = ("t_s", "client", "rate_rps", "family", "p1")
SERVEGEN_TOTALS = ("t_s", "rate_rps", "cv_rate_weighted")

WINDOW_S = 600.0
# A window's arrivals are drawn and sorted as a whole: six million of them take some ten seconds and
# most of a gigabyte. The busiest published window has 3,880 requests/s.
WINDOW_RPS_MAX = 10_000.0
# Gaps of a narrower Weibull are next to nothing, but for one in thousands of millions: the window would
# never fill.
WEIBULL_SHAPE_MIN = 0.05

DEFAULT_MIX = Mix((("interactive", 0.5), ("batch-1", 0.3), ("batch-2", 0.2)))
"""Shares of classes in a trace whose rows name none; those that a fleet has not are left out."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FAMILIES: dict[str, Literal["gamma", "weibull"]] = {
    "gamma": "gamma",
    "weibull": "weibull",
    # An exponential gap is the Gamma one of shape 1.
    "exponential": "gamma",
}


def default_mix(classes: Collection[str]) -> Mix:
    """The default shares of these classes; equal ones where none of them has a default."""
    shares = tuple((name, share) for name, share in DEFAULT_MIX.shares if name in classes)
    return Mix(shares or tuple((name, 1.0) for name in classes))


def read_requests(path: Path, mapping: TraceMapping) -> Iterator[WorkloadRequest]:
    """The requests of a trace file in any known format, mapped to this fleet's classes and models.

    A ServeGen file holds rates, not requests: `rate_scale` scales the rates there, and lengths are
    those of ShareGPT.

    Raises:
        TableError: the file, a column or a value is unusable; the message says where and what to
            do.
    """
    if not holds_rates(path):
        return requests_from_trace(read_trace(path), mapping)
    windows = read_rate_windows(path, rate_scale=mapping.rate_scale)
    rows = rows_from_rate_windows(
        windows, seed=mapping.seed, rate_scale=mapping.rate_scale, window_s=WINDOW_S
    )
    return requests_from_trace(rows, mapping.at_trace_rate())


def holds_rates(path: Path) -> bool:
    """Whether a trace file holds rates, from which any number of requests can be drawn. Raises as `read_requests`."""
    columns = columns_of(path)
    return _has(columns, SERVEGEN) or _has(columns, SERVEGEN_TOTALS)


def read_trace(path: Path) -> Iterator[TraceRow]:
    """The rows of a trace of requests, in order of arrival.

    Raises:
        TableError: as `read_requests`; also for a file in an unknown format.
    """
    columns = columns_of(path)
    convert = _converter(path, columns)
    origin_s: float | None = None
    last_s = 0.0
    for row in rows_of(path):
        if not columns:
            require_columns(path, tuple(row.values), MOONCAKE, where=f"line {row.line}")
        request = convert(row)
        if request is None:
            continue
        if origin_s is None:
            origin_s = request.arrival_s
        arrival_s = request.arrival_s - origin_s
        if arrival_s < last_s:
            raise TableError(
                f"{path}, line {row.line}: it arrives before the row above. Sort the rows by time."
            )
        last_s = arrival_s
        yield TraceRow(
            arrival_s=arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            model=request.model,
            slo_class=request.slo_class,
        )


def read_rate_windows(path: Path, *, rate_scale: float = 1.0) -> Iterator[RateWindow]:
    """The rows of a ServeGen file, which stand in order of time within each model.

    Where the file holds several models, the windows of the first one are read. Rates are those of
    the file; `rate_scale` says how many times as much will be drawn from them.

    Raises:
        TableError: as `read_requests`; also for windows that are out of order or overlap, and for
            more requests in a window than can be drawn at once.
    """
    columns = columns_of(path)
    totals = _has(columns, SERVEGEN_TOTALS)
    if not totals:
        require_columns(path, columns, SERVEGEN)
    model: str | None = None
    course = _Course(rate_scale)
    for row in rows_of(path):
        model = model or row.text("model")
        if row.text("model") != model:
            continue
        start_s = course.start_of(row)
        yield _total_window(row, start_s) if totals else _client_window(row, start_s)


@dataclass(slots=True)
class _Course:
    """How far the windows of a file have come, in seconds from the first, and the rate (requests/s)
    that has come together in the last.
    """

    rate_scale: float
    origin_s: float | None = None
    start_s: float = 0.0
    rate_rps: float = 0.0

    def start_of(self, row: Row) -> float:
        """When the row's window opens. Raises TableError unless it can follow those above it."""
        stated_s = row.number("t_s")
        if self.origin_s is None:
            self.origin_s = stated_s
        # Windows a multiple of 600 s apart are to be just that, whatever fraction they begin with.
        start_s = round(stated_s - self.origin_s, 3)
        if start_s != self.start_s:
            self._require_next(row, start_s)
            self.start_s, self.rate_rps = start_s, 0.0
        self.rate_rps += row.number("rate_rps")
        if self.rate_rps * self.rate_scale > WINDOW_RPS_MAX:
            raise row.error(
                "rate_rps",
                f"the window has come to {self.rate_rps * self.rate_scale:g} requests/s",
                f"Give rates, or a --rate-scale, that keep it to {WINDOW_RPS_MAX:g}.",
            )
        return start_s

    def _require_next(self, row: Row, start_s: float) -> None:
        if start_s < self.start_s:
            raise row.error(
                "t_s", "the window opens before the one above", "Sort the rows by time."
            )
        if start_s < self.start_s + WINDOW_S:
            raise row.error(
                "t_s",
                f"the window opens {start_s - self.start_s:g} s after the one above",
                f"Give windows of {WINDOW_S:g} s.",
            )


def _client_window(row: Row, start_s: float) -> RateWindow:
    family = _FAMILIES.get((row.text("family") or "").lower())
    if family is None:
        raise row.error(
            "family",
            f"{row.text('family')!r} is unknown",
            f"Use one of {', '.join(_FAMILIES)}.",
        )
    least = WEIBULL_SHAPE_MIN if family == "weibull" else 1e-3
    return RateWindow(
        start_s=start_s,
        client=row.text("client") or "",
        rate_rps=row.number("rate_rps"),
        family=family,
        shape=row.number("p1", least=least, most=1e3),
    )


def _total_window(row: Row, start_s: float) -> RateWindow:
    silent = row.text("cv_rate_weighted") is None
    # A mean over clients is at the mercy of the burstiest; beyond 30 a window is one burst anyway.
    cv = 1.0 if silent else min(30.0, row.number("cv_rate_weighted", least=0.05))
    return RateWindow(
        start_s=start_s,
        client="all",
        rate_rps=row.number("rate_rps"),
        family="gamma",
        shape=1.0 / cv**2,
    )


def _converter(path: Path, columns: tuple[str, ...]) -> Callable[[Row], TraceRow | None]:
    if not columns:
        return _mooncake
    for wanted, convert in ((PLAIN, _plain), (AZURE, _azure), (BURSTGPT, _burstgpt)):
        if _has(columns, wanted):
            return convert
    raise TableError(
        f"{path}, header: no known trace format has the columns {', '.join(columns)}. "
        f"Rename them to {', '.join(PLAIN)}."
    )


def _has(columns: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return all(name in columns for name in wanted)


def _plain(row: Row) -> TraceRow:
    return TraceRow(
        arrival_s=row.number("arrival_s"),
        prompt_tokens=row.count("prompt_tokens", least=1),
        output_tokens=row.count("output_tokens", least=1),
        model=row.text("model"),
        slo_class=row.text("slo_class"),
    )


def _azure(row: Row) -> TraceRow | None:
    text = row.text("TIMESTAMP") or ""
    try:
        # The parser takes the seven decimals of 2023 and drops the last.
        at = datetime.fromisoformat(text)
    except ValueError:
        raise row.error(
            "TIMESTAMP", f"{text!r} is not a date and time", "Write 2023-11-16 18:15:46.68."
        ) from None
    if at.tzinfo is None:
        # The files of 2023 name no zone, those of 2024 name UTC.
        at = at.replace(tzinfo=UTC)
    return _unless_empty(row, (at - _EPOCH).total_seconds(), "ContextTokens", "GeneratedTokens")


def _burstgpt(row: Row) -> TraceRow | None:
    return _unless_empty(row, row.number("Timestamp"), "Request tokens", "Response tokens", "Model")


def _mooncake(row: Row) -> TraceRow | None:
    return _unless_empty(row, row.number("timestamp") / 1e3, "input_length", "output_length")


def _unless_empty(
    row: Row, arrival_s: float, prompt: str, output: str, model: str = ""
) -> TraceRow | None:
    output_tokens = row.count(output)
    prompt_tokens = row.count(prompt)
    if output_tokens == 0 or prompt_tokens == 0:
        return None
    return TraceRow(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        model=row.text(model) if model else None,
    )
