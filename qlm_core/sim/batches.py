"""Batches as a kind of workload: what a file of so many lines asks for, and the gateway that releases its lines.

A batch comes as a whole and is told to the solver as a whole. As in the service, of each model so many lines are released as
wait for an engine at a time, of the batch that is due first, and whenever an agent takes one the next follows. What is left when
a window is over is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from random import Random

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


class _Part:
    """The lines of one batch and model that are not released."""

    __slots__ = ("batch", "lines", "next", "prompts")

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.lines: list[WorkloadRequest] = []
        self.next = 0
        self.prompts = 0

    @property
    def left(self) -> int:
        return len(self.lines) - self.next


class BatchDesk:
    """The part of a gateway that holds batches.

    Args:
        batches: in the order in which they are numbered.
        waiting_max: of each model so many released lines wait for an engine at a time.
        slo_of: the targets of a line of a class with that window.
        submit: makes a line a request and returns its id. cancel: has nobody want its answer any more.
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
        self._waiting_max = waiting_max
        self._submit = submit
        self._cancel = cancel
        self._tell = tell
        self.runs = [BatchRun(one.lines, one.submitted_s, one.window_s) for one in batches]
        self._parts: dict[str, list[_Part]] = {}
        self._waiting: dict[str, int] = {}
        self._of_line: dict[RequestId, tuple[int, str, bool]] = {}
        self._telling: dict[tuple[int, str], None] = {}

    @property
    def open(self) -> bool:
        """Whether a batch is to come, or has a line that has not ended."""
        return any(run.ended < run.lines for run in self.runs)

    def begin(self) -> None:
        """Have every batch come when it is due to."""
        for number, one in enumerate(self._batches):
            self._agenda.at(one.submitted_s, self._come, number)

    def taken(self, id: RequestId) -> None:
        """An agent holds a line now."""
        self._hold(id, held=True)

    def returned(self, id: RequestId) -> None:
        """A line waits for an engine again."""
        self._hold(id, held=False)

    def ended(self, id: RequestId) -> bool:
        """A request has ended; says whether it was a line."""
        if id not in self._of_line:
            return False
        self._hold(id, held=True)
        number, _, _ = self._of_line.pop(id)
        run = self.runs[number]
        run.ended += 1
        run.dropped += self._over(number)
        if run.ended == run.lines and not run.dropped:
            run.ended_s = self._agenda.now_s
        return True

    def told(self, order: BulkEstimate) -> None:
        """The solver says when a batch will be done."""
        run = self.runs[int(order.batch.removeprefix("b"))]
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

    # ------------------------------------------------------------------ the window

    def _over(self, number: int) -> bool:
        run = self.runs[number]
        return self._agenda.now_s >= run.submitted_s + run.window_s

    def _expire(self, number: int) -> None:
        """Drop what is left of a batch."""
        run = self.runs[number]
        for model, parts in self._parts.items():
            for part in [one for one in parts if one.batch == number]:
                run.ended += part.left
                run.dropped += part.left
                parts.remove(part)
                self._tell_left(number, model)
        for id in [id for id, (of, _, _) in self._of_line.items() if of == number]:
            self._cancel(id)

    # ------------------------------------------------------------------ release

    def _come(self, number: int) -> None:
        self._agenda.after(self._batches[number].window_s, self._expire, number)
        parts: dict[str, _Part] = {}
        for line in draw_lines(self._batches[number], seed=f"{self._seed}/batch/{number}"):
            part = parts.setdefault(line.model, _Part(number))
            part.lines.append(line)
            part.prompts += line.prompt_tokens
        for model, part in parts.items():
            waiting = self._parts.setdefault(model, [])
            waiting.append(part)
            waiting.sort(key=self._order)
            self._tell_left(number, model)
            self._release(model)

    def _order(self, part: _Part) -> tuple[float, int]:
        one = self._batches[part.batch]
        return one.submitted_s + one.window_s, part.batch

    def _release(self, model: str) -> None:
        parts = self._parts.get(model, [])
        while parts and self._waiting.get(model, 0) < self._waiting_max:
            part = parts[0]
            line = part.lines[part.next]
            part.next += 1
            part.prompts -= line.prompt_tokens
            self._waiting[model] = self._waiting.get(model, 0) + 1
            id = self._submit(line, BatchId(f"b{part.batch}"), self._slo(part.batch))
            self._of_line[id] = (part.batch, model, False)
            self._tell_soon(part.batch, model)
            if not part.left:
                parts.pop(0)

    def _hold(self, id: RequestId, *, held: bool) -> None:
        found = self._of_line.get(id)
        if found is None or found[2] is held:
            return
        number, model, _ = found
        self._of_line[id] = (number, model, held)
        self._waiting[model] += -1 if held else 1
        if held:
            self._release(model)

    def _slo(self, number: int) -> Slo:
        window_s = self._batches[number].window_s
        return Slo(ttft_s=window_s, e2e_s=window_s)

    # ------------------------------------------------------------------ what the solver hears

    def _tell_soon(self, number: int, model: str) -> None:
        if (number, model) not in self._telling:
            self._telling[number, model] = None
            self._agenda.after(_TELL_S, self._tell_left, number, model)

    def _tell_left(self, number: int, model: str) -> None:
        self._telling.pop((number, model), None)
        one = self._batches[number]
        part = next((one for one in self._parts[model] if one.batch == number), None)
        lines = part.left if part is not None else 0
        self._tell(
            BulkWaiting(
                batch=BatchId(f"b{number}"),
                model=ModelName(model),
                slo_class=one.slo_class,
                slo=self._slo(number),
                lines=lines,
                prompt_tokens_mean=part.prompts / lines if part is not None and lines else 0.0,
                max_output_tokens=one.max_tokens,
                arrival_s=one.submitted_s,
                tenant=one.tenant,
            )
        )
