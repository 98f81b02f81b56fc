"""Workloads: who asks for what, when. Synthetic streams, the paper's workloads, and mapped traces.

Everything follows from a seed. Arrivals, lengths and choices of each stream have generators of
their own, so a higher rate or another mix leaves the lengths as they were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import accumulate, islice
from math import gamma, inf, isfinite
from random import Random
from typing import Literal

from qlm_core.errors import ConfigError
from qlm_core.sim.lengths import LengthsName, sample_lengths

REQUESTS_MAX = 5_000_000
RATE_MIN_RPS, RATE_MAX_RPS = 1e-6, 1e9
CV_MIN, CV_MAX = 0.001, 100.0
"""Beyond these, Gamma gaps are a clock, or nothing but rounding."""
TIME_MAX_S = 1e9
"""Thirty years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """One request to be served.

    Attributes:
        arrival_s: from the start of the workload.
        output_tokens: tokens it will really produce; only the engine may know.
        max_tokens: the client's limit, at least `output_tokens`.
    """

    arrival_s: float
    model: str
    slo_class: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int


def fitted(request: WorkloadRequest, room_tokens: int) -> WorkloadRequest:
    """The request, cut to what fits into so many tokens of prompt and output together."""
    if request.prompt_tokens + request.max_tokens <= room_tokens:
        return request
    # Token counts are estimates on both sides; a sixteenth keeps clear of the edge.
    room = room_tokens - room_tokens // 16
    output_tokens = min(request.output_tokens, room // 2)
    prompt_tokens = min(request.prompt_tokens, room - output_tokens)
    return replace(
        request,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=min(request.max_tokens, room - prompt_tokens),
    )


@dataclass(frozen=True, slots=True)
class Mix:
    """Names and their shares, e.g. of SLO classes or models; shares need not add up to 1."""

    shares: tuple[tuple[str, float], ...]
    _bounds: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if not self.shares:
            raise ConfigError("mix: it is empty. Name at least one, as in 'interactive=1'.")
        for name, share in self.shares:
            if not (isfinite(share) and share >= 0):
                raise ConfigError(f"mix: the share of {name!r} is {share}. Give a number >= 0.")
        bounds = tuple(accumulate(share for _, share in self.shares))
        if bounds[-1] <= 0:
            raise ConfigError("mix: all shares are 0. Give one of them a share above 0.")
        if bounds[-1] == inf:
            raise ConfigError("mix: the shares add up to infinity. Give smaller ones.")
        object.__setattr__(self, "_bounds", bounds)

    @classmethod
    def parse(cls, text: str) -> Mix:
        """A mix as written on the command line: `interactive=0.5,batch-1=0.3,batch-2=0.2`.

        A single name stands for all of it. Raises ConfigError for anything else.
        """
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            try:
                share = float(number) if equals else 1.0
            except ValueError:
                raise ConfigError(f"mix: {number!r} is not a number. Write {name}=0.5.") from None
            if not name:
                raise ConfigError(f"mix: a name is missing in {text!r}. Write name=share,...")
            if name in shares:
                raise ConfigError(f"mix: {name!r} is given twice. Give each name once.")
            shares[name] = share
        return cls(tuple(shares.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order given."""
        return tuple(name for name, _ in self.shares)

    def pick(self, level: float) -> str:
        """The name at a level in [0, 1)."""
        index = bisect_right(self._bounds, level * self._bounds[-1])
        return self.shares[min(index, len(self.shares) - 1)][0]


def only(name: str) -> Mix:
    """The mix of one name."""
    return Mix(((name, 1.0),))


# --------------------------------------------------------------------------- synthetic streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A stream of requests of one SLO class.

    Attributes:
        rate_rps: mean requests per second; 0 for none.
        cv: coefficient of variation of the gaps: 1 is Poisson, more is bursty (Gamma), 0 is a
            clock.
        requests: how many; None for no end (the caller takes what it needs).
        until_s: no arrivals from then on.
        max_tokens: the clients' limit; longer outputs end there.
    """

    slo_class: str
    models: Mix
    rate_rps: float
    cv: float = 1.0
    lengths: LengthsName = "sharegpt"
    requests: int | None = None
    start_s: float = 0.0
    until_s: float | None = None
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        check_rate(self.rate_rps, "rate_rps")
        if self.cv and not CV_MIN <= self.cv <= CV_MAX:
            raise ConfigError(
                f"cv: {self.cv:g} is out of range. Give {CV_MIN:g} to {CV_MAX:g}, or 0 for a clock: "
                "1 is Poisson, more is bursty."
            )
        if self.requests is not None and not 1 <= self.requests <= REQUESTS_MAX:
            raise ConfigError(
                f"requests: {self.requests} is out of range. Give 1 to {REQUESTS_MAX}, or leave it out."
            )
        if not 0 <= self.start_s <= TIME_MAX_S:
            raise ConfigError(
                f"start_s: {self.start_s:g} is out of range. Give 0 to {TIME_MAX_S:g} seconds."
            )
        if self.until_s is not None and not self.start_s < self.until_s <= TIME_MAX_S:
            raise ConfigError(
                f"until_s: {self.until_s:g} is out of range. Give more than start_s "
                f"({self.start_s:g}) and at most {TIME_MAX_S:g} seconds, or leave it out."
            )
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: {self.max_tokens} is out of range. Give at least 1.")


def check_rate(rate_rps: float, key: str) -> None:
    """Raise ConfigError, naming `key`, for a rate at which no stream can be drawn."""
    if rate_rps and not RATE_MIN_RPS <= rate_rps <= RATE_MAX_RPS:
        raise ConfigError(
            f"{key}: {rate_rps:g} is out of range. Give {RATE_MIN_RPS:g} to {RATE_MAX_RPS:g} "
            "requests per second."
        )


def arrival_gaps(rng: Random, rate_rps: float, *, cv: float = 1.0) -> Iterator[float]:
    """Endless gaps (s) of a renewal process: exponential for cv = 1, else Gamma of that variation."""
    if cv == 0:
        while True:
            yield 1 / rate_rps
    if cv == 1:
        while True:
            yield rng.expovariate(rate_rps)
    shape = 1 / cv**2
    while True:
        yield rng.gammavariate(shape, 1 / (rate_rps * shape))


def generate(
    streams: Sequence[Stream], *, seed: int, requests: int | None = None
) -> Iterator[WorkloadRequest]:
    """The streams' requests in order of arrival, at most `requests` of them.

    Raises:
        ConfigError: without an end, since neither `requests` nor every stream bounds them, or with
            one that is too far off.
    """
    if requests is None and any(one.requests is None and one.until_s is None for one in streams):
        raise ConfigError("requests: the workload has no end. Say how many, or until when.")
    if _last_s(streams, requests) > TIME_MAX_S:
        raise ConfigError(
            f"requests: they take more than {TIME_MAX_S:g} seconds to arrive. Raise the rates, or ask "
            "for fewer."
        )
    parts = [_stream(stream, f"{seed}/{index}") for index, stream in enumerate(streams)]
    return islice(merge(*parts, key=lambda request: request.arrival_s), requests)


def _last_s(streams: Sequence[Stream], requests: int | None) -> float:
    """About when the last request arrives, if not sooner."""
    ends_s = [_end_s(one, inf if one.requests is None else one.requests) for one in streams]
    if requests is None:
        return max(ends_s, default=0.0)
    # One stream that could give all of them ends the workload.
    alone_s = min(
        (
            _end_s(one, requests)
            for one in streams
            if one.rate_rps and one.until_s is None and (one.requests or inf) >= requests
        ),
        default=inf,
    )
    return min(max(ends_s, default=0.0), alone_s)


def _end_s(stream: Stream, requests: float) -> float:
    """When so many requests of a stream have arrived at its rate, or the stream is over."""
    counted_s = stream.start_s + requests / stream.rate_rps if stream.rate_rps else 0.0
    return counted_s if stream.until_s is None else min(stream.until_s, counted_s)


def _stream(stream: Stream, seed: str) -> Iterator[WorkloadRequest]:
    if not stream.rate_rps:
        return
    choices, lengths = Random(f"{seed}/choices"), Random(f"{seed}/lengths")
    at_s = stream.start_s
    gaps = arrival_gaps(Random(f"{seed}/arrivals"), stream.rate_rps, cv=stream.cv)
    for gap_s in islice(gaps, stream.requests):
        at_s += gap_s
        if stream.until_s is not None and at_s >= stream.until_s:
            return
        prompt, output = sample_lengths(stream.lengths, lengths)
        yield WorkloadRequest(
            arrival_s=at_s,
            model=stream.models.pick(choices.random()),
            slo_class=stream.slo_class,
            prompt_tokens=prompt,
            output_tokens=min(output, stream.max_tokens),
            max_tokens=stream.max_tokens,
        )


# --------------------------------------------------------------------------- the paper's workloads

# §8 names the models of W_B but not their number or shares; `-ft1` stands for a fine-tuned version.
W_B_BATCH_1 = Mix((("mistral-7b-ft1", 0.5), ("llama-2-70b-ft1", 0.5)))
W_B_BATCH_2 = Mix(
    (("vicuna-13b-ft1", 1 / 3), ("vicuna-13b-ft2", 1 / 3), ("llama-2-70b-ft2", 1 / 3))
)


def workload_a(
    *,
    interactive_rps: float,
    model: str = "vicuna-13b",
    batch_1_rps: float | None = None,
    batch_2_rps: float | None = None,
    cv: float = 1.0,
) -> tuple[Stream, ...]:
    """W_A: one model; interactive, batch-1 and batch-2 requests. The paper does not state the rates
    of the batch classes; without values they equal the interactive rate. A rate of 0 is none of them.
    """
    rates = {
        "interactive_rps": interactive_rps,
        "batch_1_rps": interactive_rps if batch_1_rps is None else batch_1_rps,
        "batch_2_rps": interactive_rps if batch_2_rps is None else batch_2_rps,
    }
    for key, rate_rps in rates.items():
        check_rate(rate_rps, key)
    return tuple(
        Stream(slo_class=name, models=only(model), rate_rps=rate_rps, cv=cv)
        for name, rate_rps in zip(
            ("interactive", "batch-1", "batch-2"), rates.values(), strict=True
        )
    )


def workload_b(
    *,
    batch_1_rps: float,
    batch_2_rps: float | None = None,
    batch_1: Mix = W_B_BATCH_1,
    batch_2: Mix = W_B_BATCH_2,
    cv: float = 1.0,
) -> tuple[Stream, ...]:
    """W_B: several models; batch-1 and batch-2 requests, at equal rates unless stated; 0 is none."""
    if batch_2_rps is None:
        batch_2_rps = batch_1_rps
    check_rate(batch_1_rps, "batch_1_rps")
    check_rate(batch_2_rps, "batch_2_rps")
    return (
        Stream(slo_class="batch-1", models=batch_1, rate_rps=batch_1_rps, cv=cv),
        Stream(slo_class="batch-2", models=batch_2, rate_rps=batch_2_rps, cv=cv),
    )


def workload_c(
    *,
    mega_rps: float,
    batch_1_rps: float,
    batch_2_rps: float | None = None,
    batch_1: Mix = W_B_BATCH_1,
    batch_2: Mix = W_B_BATCH_2,
    cv: float = 1.0,
) -> tuple[Stream, ...]:
    """W_C: W_B plus mega prompts of 3,000 to 4,000 tokens in all, of batch-1 and its models."""
    check_rate(mega_rps, "mega_rps")
    regular = workload_b(
        batch_1_rps=batch_1_rps, batch_2_rps=batch_2_rps, batch_1=batch_1, batch_2=batch_2, cv=cv
    )
    mega = Stream(slo_class="batch-1", models=batch_1, rate_rps=mega_rps, cv=cv, lengths="mega")
    return (*regular, mega)


# --------------------------------------------------------------------------- traces


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One request of a trace; model and class only where the trace names them."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    model: str | None = None
    slo_class: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWindow:
    """One client's traffic in a window of time (the ServeGen form): a renewal process.

    Attributes:
        shape: of the Gamma or Weibull gaps; their scale follows from the rate.
    """

    start_s: float
    client: str
    rate_rps: float
    family: Literal["gamma", "weibull"]
    shape: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMapping:
    """How a trace becomes a workload of this fleet.

    Attributes:
        mix: shares of the SLO classes, for rows that name none.
        models: shares of the models, for rows that name none, or for all rows with `rename`.
        rename: replace the models that the trace names.
        rate_scale: how much faster requests come than in the trace.
        limit: most requests taken.
        until_s: no arrivals from then on, as they come here.
        max_tokens: the clients' limit; a longer output has its own length for it.
        prompt_tokens_max: longer prompts are cut to this.
    """

    mix: Mix
    models: Mix
    rename: bool = True
    rate_scale: float = 1.0
    limit: int | None = None
    until_s: float | None = None
    max_tokens: int = 2048
    prompt_tokens_max: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isfinite(self.rate_scale) and self.rate_scale > 0):
            raise ConfigError(f"rate_scale: {self.rate_scale} is not positive. 2 is twice as fast.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: {self.limit} is out of range. Give at least 1.")

    def at_trace_rate(self) -> TraceMapping:
        """The same mapping for rows that come at the wanted rate already."""
        return replace(self, rate_scale=1.0)


def requests_from_trace(
    rows: Iterable[TraceRow], mapping: TraceMapping
) -> Iterator[WorkloadRequest]:
    """A trace's requests with classes and models given by the mapping; time is compressed."""
    choices = Random(f"{mapping.seed}/choices")
    for row in islice(rows, mapping.limit):
        model = mapping.models.pick(choices.random())
        slo_class = mapping.mix.pick(choices.random())
        arrival_s = row.arrival_s / mapping.rate_scale
        if mapping.until_s is not None and arrival_s >= mapping.until_s:
            return
        prompt = row.prompt_tokens
        if mapping.prompt_tokens_max is not None:
            prompt = min(prompt, mapping.prompt_tokens_max)
        yield WorkloadRequest(
            arrival_s=arrival_s,
            model=model if mapping.rename or row.model is None else row.model,
            slo_class=row.slo_class or slo_class,
            prompt_tokens=prompt,
            output_tokens=row.output_tokens,
            max_tokens=max(mapping.max_tokens, row.output_tokens),
        )


def rows_from_rate_windows(
    windows: Iterable[RateWindow],
    *,
    seed: int,
    rate_scale: float = 1.0,
    window_s: float = 600.0,
    lengths: LengthsName = "sharegpt",
) -> Iterator[TraceRow]:
    """Requests drawn from clients' rates, window after window; the windows' rates are scaled.

    Raises:
        ValueError: the windows are not in order of time.
    """
    sizes = Random(f"{seed}/lengths")
    for group in _by_start(windows):
        arrivals = sorted(
            (arrival_s, index)
            for index, window in enumerate(group)
            for arrival_s in _window_arrivals(window, rate_scale, window_s, seed)
        )
        for arrival_s, _ in arrivals:
            prompt, output = sample_lengths(lengths, sizes)
            yield TraceRow(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output)


def _by_start(windows: Iterable[RateWindow]) -> Iterator[list[RateWindow]]:
    group: list[RateWindow] = []
    for window in windows:
        if group and window.start_s != group[0].start_s:
            if window.start_s < group[0].start_s:
                raise ValueError(
                    f"start_s: {window.start_s} comes after {group[0].start_s}. "
                    "Sort the windows by time."
                )
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _window_arrivals(
    window: RateWindow, rate_scale: float, window_s: float, seed: int
) -> Iterator[float]:
    rate = window.rate_rps * rate_scale
    if rate <= 0:
        return
    rng = Random(f"{seed}/{window.start_s}/{window.client}")
    # The window opens somewhere within a gap, not at an arrival.
    at_s = -rng.random() * _gap(rng, window, rate)
    while (at_s := at_s + _gap(rng, window, rate)) < window_s:
        if at_s >= 0:
            yield window.start_s + at_s


def _gap(rng: Random, window: RateWindow, rate: float) -> float:
    if window.family == "gamma":
        return rng.gammavariate(window.shape, 1 / (rate * window.shape))
    return rng.weibullvariate(1 / (rate * gamma(1 + 1 / window.shape)), window.shape)
