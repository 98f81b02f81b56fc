"""Batches as a kind of workload: what a file of so many lines asks for, and the gateway that releases its lines.

A batch comes as a whole and is told to the solver as a whole. Its lines are released as in the service, by the same book: of each
model as many as may wait for an engine at a time. What is left when a window is over is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from random import Random

from qlm_core.batches import (
    Accepted,
    BatchStatus,
    Book,
    Changed,
    Drop,
    Event,
    LineEnded,
    LineTaken,
    Opened,
    Release,
    Woken,
    Write,
    Written,
)
from qlm_core.config_section import Section
from qlm_core.errors import ConfigError
from qlm_core.messages import BulkEstimate, BulkWaiting
from qlm_core.model import BatchId, ModelName, RequestId, Slo
from qlm_core.sim.agenda import Agenda
from qlm_core.sim.lengths import LengthsName, sample_lengths
from qlm_core.sim.workload import TIME_MAX_S, Mix, WorkloadRequest

LINES_MAX = 1_000_000
OUTPUT_SCALES = (0.01, 100.0)
_TELL_S = 0.1
"""How long after lines were released the solver hears how many are left."""


class BatchConfig(Section, frozen=True, kw_only=True):
    """One batch. `models` are shares by name.

    output_scale: outputs are so many times as long as those of the named lengths.
    window_s: the completion window, from when it is submitted.
    """

    slo_class: str
    models: dict[str, float]
    lines: int
    window_s: float
    submitted_s: float = 0.0
    lengths: LengthsName = "sharegpt"
    output_scale: float = 1.0
    max_tokens: int = 2048
    tenant: str = ""


def check_batch(
    one: BatchConfig, classes: Mapping[str, object], models: Mapping[str, object]
) -> None:
    """Raise ConfigError, naming the key, for a batch that cannot be drawn or is served by nobody."""
    if one.slo_class not in classes:
        known = ", ".join(classes)
        raise ConfigError(f"slo_class: {one.slo_class!r} is not one of slo_classes ({known}).")
    for model in Mix(tuple(one.models.items())).names if one.models else ():
        if model not in models:
            raise ConfigError(f"models: no instance serves {model!r}. Add it to fleet[...].models.")
    if not one.models:
        raise ConfigError("models: empty. Name at least one model, as in {vicuna-13b: 1}.")
    if not 1 <= one.lines <= LINES_MAX:
        raise ConfigError(f"lines: {one.lines} is out of range. Give 1 to {LINES_MAX}.")
    if not 0 < one.window_s <= TIME_MAX_S:
        raise ConfigError(f"window_s: {one.window_s:g}. Give above 0 and up to {TIME_MAX_S:g} s.")
    if not 0 <= one.submitted_s <= TIME_MAX_S:
        raise ConfigError(f"submitted_s: {one.submitted_s:g}. Give 0 to {TIME_MAX_S:g} seconds.")
    if not OUTPUT_SCALES[0] <= one.output_scale <= OUTPUT_SCALES[1]:
        least, most = OUTPUT_SCALES
        raise ConfigError(f"output_scale: {one.output_scale:g}. Give {least:g} to {most:g}.")
    if one.max_tokens < 1:
        raise ConfigError(f"max_tokens: {one.max_tokens} is out of range. Give at least 1.")


def draw_lines(one: BatchConfig, *, seed: str) -> Iterator[WorkloadRequest]:
    """The lines of a batch, in the order of its file."""
    choices, lengths = Random(f"{seed}/choices"), Random(f"{seed}/lengths")
    models = Mix(tuple(one.models.items()))
    for _ in range(one.lines):
        prompt, output = sample_lengths(one.lengths, lengths)
        yield WorkloadRequest(
            arrival_s=one.submitted_s,
            model=models.pick(choices.random()),
            slo_class=one.slo_class,
            prompt_tokens=prompt,
            output_tokens=min(max(1, round(output * one.output_scale)), one.max_tokens),
            max_tokens=one.max_tokens,
        )


# --------------------------------------------------------------------------- what became of them


@dataclass(frozen=True, slots=True)
class FinishTold:
    """What the solver said of a batch at one moment.

    Attributes:
        done: share of its lines that had ended by then.
        p50_s, p90_s: from then on; infinite while nobody served a model of it.
    """

    at_s: float
    done: float
    feasible: bool
    p50_s: float
    p90_s: float
    explanation: str


@dataclass(slots=True)
class BatchRun:
    """One batch of a run.

    Attributes:
        ended: lines that are over. dropped: those of them that were when the window was.
        ended_s: when the last line ended by itself; infinite if none is to.
        told: in order of time.
    """

    lines: int
    submitted_s: float
    window_s: float
    ended: int = 0
    dropped: int = 0
    ended_s: float = inf
    told: list[FinishTold] = field(default_factory=list)

    @property
    def in_time(self) -> bool:
        """Whether it ended within its window."""
        return self.ended_s <= self.submitted_s + self.window_s


# --------------------------------------------------------------------------- the gateway


class _Lines:
    """The lines of one batch.

    Attributes:
        models: that are asked for, with how many prompt tokens the lines have that wait.
    """

    __slots__ = ("lines", "models", "prompts")

    def __init__(self, lines: list[WorkloadRequest]) -> None:
        self.lines = lines
        self.models = tuple(dict.fromkeys(line.model for line in lines))
        self.prompts = dict.fromkeys(self.models, 0)
        for line in lines:
            self.prompts[line.model] += line.prompt_tokens


class BatchDesk:
    """The part of a gateway that holds batches: the book of the service, driven by the agenda.

    Args:
        batches: in the order in which they are numbered.
        waiting_max: of each model so many released lines wait for an engine at a time.
        submit: makes a line a request with those targets and returns its id. cancel: has nobody want its answer any more.
        tell: tells the solver of a bulk.
    """

    def __init__(
        self,
        batches: tuple[BatchConfig, ...],
        *,
        seed: int,
        agenda: Agenda,
        waiting_max: int,
        submit: Callable[[WorkloadRequest, BatchId, Slo], RequestId],
        cancel: Callable[[RequestId], None],
        tell: Callable[[BulkWaiting], None],
    ):
        self._batches = batches
        self._seed = seed
        self._agenda = agenda
        self._submit = submit
        self._cancel = cancel
        self._tell = tell
        self._book = Book(waiting_lines_max=waiting_max)
        self._lines: dict[BatchId, _Lines] = {}
        self._line_of: dict[RequestId, tuple[BatchId, int]] = {}
        self._id_of: dict[tuple[BatchId, int], RequestId] = {}
        self._telling: dict[BatchId, None] = {}
        self._wake_s = inf
        self.runs = [BatchRun(one.lines, one.submitted_s, one.window_s) for one in batches]

    @property
    def open(self) -> bool:
        """Whether a batch is to come, or has a line that has not ended."""
        return any(run.ended < run.lines for run in self.runs)

    def begin(self) -> None:
        """Have every batch come when it is due to."""
        for number, one in enumerate(self._batches):
            self._agenda.at(one.submitted_s, self._come, number)

    def taken(self, id: RequestId) -> None:
        """An agent holds a request now, which may be a line."""
        if id in self._line_of:
            self._handle(LineTaken(*self._line_of[id]))

    def ended(self, id: RequestId, *, finished: bool) -> None:
        """A request has ended, which may be a line."""
        if id not in self._line_of:
            return
        batch, line = self._line_of.pop(id)
        del self._id_of[batch, line]
        run = self.runs[_number(batch)]
        run.ended += 1
        run.dropped += not finished
        if run.ended == run.lines and not run.dropped:
            run.ended_s = self._agenda.now_s
        # What did not finish was dropped when the window was over: it is not run again.
        self._handle(LineEnded(batch, line, failed=not finished))

    def told(self, order: BulkEstimate) -> None:
        """The solver says when a batch will be done."""
        run = self.runs[_number(order.batch)]
        run.told.append(
            FinishTold(
                at_s=self._agenda.now_s,
                done=run.ended / run.lines,
                feasible=order.feasible,
                p50_s=inf if order.finish_p50_s is None else order.finish_p50_s,
                p90_s=inf if order.finish_p90_s is None else order.finish_p90_s,
                explanation=order.explanation,
            )
        )

    # ------------------------------------------------------------------ the book

    def _come(self, number: int) -> None:
        one, batch = self._batches[number], BatchId(f"b{number}")
        lines = _Lines(list(draw_lines(one, seed=f"{self._seed}/batch/{number}")))
        self._lines[batch] = lines
        places = {model: place for place, model in enumerate(lines.models)}
        self._handle(Opened(batch, one.tenant, one.submitted_s + one.window_s))
        self._tell_left(batch)
        models = tuple(map(ModelName, lines.models))
        self._handle(Accepted(batch, models, [places[line.model] for line in lines.lines]))

    def _handle(self, event: Event) -> None:
        for effect in self._book.handle(event, now_s=self._agenda.now_s):
            match effect:
                case Release(batch, line):
                    self._release(batch, line)
                case Drop(batch, line):
                    self._cancel(self._id_of[batch, line])
                case Write(batch, unrun):
                    if unrun is not None:
                        run = self.runs[_number(batch)]
                        run.dropped += run.lines - run.ended
                        run.ended = run.lines
                    self._agenda.after(0.0, self._handle, Written(batch))
                case Changed(batch):
                    self._tell_soon(batch)
                case _:
                    pass
        wake_s = self._book.wakeup_s
        if wake_s is not None and wake_s < self._wake_s:
            self._wake_s = wake_s
            self._agenda.at(wake_s, self._wake)

    def _wake(self) -> None:
        self._wake_s = inf
        self._handle(Woken())

    def _release(self, batch: BatchId, number: int) -> None:
        lines = self._lines[batch]
        line = lines.lines[number]
        lines.prompts[line.model] -= line.prompt_tokens
        id = self._submit(line, batch, self._slo(batch))
        self._line_of[id] = (batch, number)
        self._id_of[batch, number] = id
        self._tell_soon(batch)

    def _slo(self, batch: BatchId) -> Slo:
        window_s = self._batches[_number(batch)].window_s
        return Slo(ttft_s=window_s, e2e_s=window_s)

    # ------------------------------------------------------------------ what the solver hears

    def _tell_soon(self, batch: BatchId) -> None:
        if batch not in self._telling:
            self._telling[batch] = None
            self._agenda.after(_TELL_S, self._tell_left, batch)

    def _tell_left(self, batch: BatchId) -> None:
        self._telling.pop(batch, None)
        one, lines = self._batches[_number(batch)], self._lines[batch]
        counts = {part.model: part.lines for part in self._book.waiting(batch)}
        known = self._book.standing(batch)
        if known is not None and known.status is BatchStatus.VALIDATING:
            counts = {ModelName(model): 0 for model in lines.models}
            for line in lines.lines:
                counts[ModelName(line.model)] += 1
        for model in lines.models:
            left = counts.get(ModelName(model), 0)
            self._tell(
                BulkWaiting(
                    batch=batch,
                    model=ModelName(model),
                    slo_class=one.slo_class,
                    slo=self._slo(batch),
                    lines=left,
                    prompt_tokens_mean=lines.prompts[model] / max(1, left),
                    max_output_tokens=one.max_tokens,
                    arrival_s=one.submitted_s,
                    tenant=one.tenant,
                )
            )


def _number(batch: BatchId) -> int:
    return int(batch.removeprefix("b"))
