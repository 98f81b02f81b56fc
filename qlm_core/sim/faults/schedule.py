"""What a run consists of: a small fleet, what clients ask of it, and the faults that befall it.

A schedule is plain data. It can be written down, cut down and run again.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from qlm_core.errors import ConfigError
from qlm_core.model import ModelName


class FaultKind(Enum):
    """What goes wrong. A fault begins at `at_s` and is over after `for_s`.

    CRASH: a process dies, its kernel ends its streams, and it starts again when the fault is over. VANISH: its host
    dies without a word. PAUSE: it handles nothing, then everything at once, its own timers late. DRAIN: an agent leaves
    in good order and comes back. CUT: what is on its way between two processes stays there and is lost, then their
    streams break. PARTITION: nothing passes between two, HALF_OPEN: nothing in one direction; what waits comes
    afterwards if its stream still stands. SLOW_LINK: messages take `amount` times as long. STALE_ORDER: an order that
    the solver gave an agent under an earlier epoch arrives once more.

    Engines: ENGINE_CRASH: it loses its jobs and starts again. ENGINE_SLOW: it takes `amount` times as long. ENGINE_STUCK: it
    accepts and says nothing. ENGINE_FULL: it turns requests away. ENGINE_ERRORS: it answers some with errors. ENGINE_LIES:
    what it says is wrong in the way of `lie`. SWAP_FAILS: models cannot be made awake.

    Gateways: DISK_FULL: no commit succeeds. TORN_COMMIT: the commit at hand fails after a while. SLOW_DISK: commits take
    `amount` times as long. CLOCK_JUMP: the wall clock moves by `amount` seconds and stays there.
    """

    CRASH = "crash"
    VANISH = "vanish"
    PAUSE = "pause"
    DRAIN = "drain"
    CUT = "cut"
    PARTITION = "partition"
    HALF_OPEN = "half-open"
    SLOW_LINK = "slow-link"
    STALE_ORDER = "stale-order"
    ENGINE_CRASH = "engine-crash"
    ENGINE_SLOW = "engine-slow"
    ENGINE_STUCK = "engine-stuck"
    ENGINE_FULL = "engine-full"
    ENGINE_ERRORS = "engine-errors"
    ENGINE_LIES = "engine-lies"
    SWAP_FAILS = "swap-fails"
    DISK_FULL = "disk-full"
    TORN_COMMIT = "torn-commit"
    SLOW_DISK = "slow-disk"
    CLOCK_JUMP = "clock-jump"


class Lie(Enum):
    """What a lying engine says that is not so.

    ENDS_TWICE: a job ends, and ends again. OUTPUT_AFTER_END: more output comes for a job that has ended. NO_OUTPUT: a job
    ends at once without any. NEGATIVE_COUNTS, ABSURD_COUNTS, WRONG_COUNTS: of tokens, at the end. GAUGES: its KV cache
    holds an absurd number of tokens. STRANGERS: output and ends of jobs that it was never given.
    """

    NONE = ""
    ENDS_TWICE = "ends-twice"
    OUTPUT_AFTER_END = "output-after-end"
    NO_OUTPUT = "no-output"
    NEGATIVE_COUNTS = "negative-counts"
    ABSURD_COUNTS = "absurd-counts"
    WRONG_COUNTS = "wrong-counts"
    GAUGES = "gauges"
    STRANGERS = "strangers"


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="fault"):
    """One fault. `target` and `other` are names of processes; `other` is for faults between two."""

    at_s: float
    kind: FaultKind
    target: str
    other: str = ""
    for_s: float = 0.0
    amount: float = 0.0
    lie: Lie = Lie.NONE

    @property
    def over_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ask"):
    """What one client does.

    Attributes:
        number: names the client, and salts the random numbers about it.
        output_tokens: how long an engine makes the answer.
        durable: it is stored before it is acknowledged, and its client comes back for it.
        watched: its client follows the output from the start; else it comes for the end.
        resumable: it can be continued from its text.
        key: its idempotency key; "" for none. `variant` tells the bodies apart that come under one.
        cancel_after_s, leave_after_s: when its client cancels, or hangs up and forgets it; 0 for never.
    """

    number: int
    at_s: float
    gateway: str
    model: str
    slo_class: str
    prompt_tokens: int
    output_tokens: int
    max_output_tokens: int
    ttl_s: float
    durable: bool = False
    watched: bool = True
    resumable: bool = True
    key: str = ""
    variant: int = 0
    cancel_after_s: float = 0.0
    leave_after_s: float = 0.0


LINES_MAX = 1000
"""Of a batch; the lines of the first have numbers from here on."""


class BatchAsk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="batch"):
    """What one client has done as a batch. Its lines are alike, but ask for its models in turn.

    Attributes:
        number: names the client.
        cancel_after_s: when its client cancels; 0 for never.
    """

    number: int
    at_s: float
    gateway: str
    models: tuple[str, ...]
    lines: int
    window_s: float
    prompt_tokens: int
    output_tokens: int
    max_output_tokens: int
    slo_class: str = "batch-2"
    cancel_after_s: float = 0.0

    @property
    def model_of(self) -> tuple[int, ...]:
        """For each line the place of its model."""
        return tuple(line % len(self.models) for line in range(self.lines))

    @property
    def model_names(self) -> tuple[ModelName, ...]:
        """The models that its lines ask for."""
        return tuple(map(ModelName, self.models[: self.lines]))

    def line(self, line: int) -> Ask:
        """What a line asks for."""
        return Ask(
            number=(self.number + 1) * LINES_MAX + line,
            at_s=self.at_s,
            gateway=self.gateway,
            model=self.models[line % len(self.models)],
            slo_class=self.slo_class,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            max_output_tokens=self.max_output_tokens,
            ttl_s=self.window_s,
            durable=True,
            watched=False,
        )


class Bed(msgspec.Struct, frozen=True, kw_only=True, tag="bed"):
    """The fleet of a run.

    Attributes:
        models: what each agent can serve, the first of them awake at the start.
        slots: requests that an engine runs at once.
        token_s: time between two tokens of a request.
    """

    gateways: tuple[str, ...]
    models: dict[str, tuple[str, ...]]
    slots: int
    kv_tokens: int
    token_s: float

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of the agents."""
        return tuple(self.models)

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of all processes that faults may befall."""
        return ("solver", *self.gateways, *self.models)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run: its seed names the random numbers that are drawn while it goes on."""

    seed: int
    bed: Bed
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    batches: tuple[BatchAsk, ...] = ()

    @property
    def lines(self) -> list[Ask]:
        """What all lines of batches ask for."""
        return [batch.line(line) for batch in self.batches for line in range(batch.lines)]

    @property
    def calm_s(self) -> float:
        """When the last fault is over and the last client has come."""
        instants = [fault.over_s for fault in self.faults]
        instants += [ask.at_s for ask in self.asks] + [batch.at_s for batch in self.batches]
        return max(instants, default=0.0)

    @property
    def work_s(self) -> float:
        """How long one engine alone would take for everything."""
        tokens = sum(
            min(ask.output_tokens, ask.max_output_tokens) for ask in (*self.asks, *self.lines)
        )
        return tokens * self.bed.token_s / self.bed.slots


def to_text(schedule: Schedule) -> str:
    """A schedule as lines of JSON: its seed, its bed, then asks, batches and faults in order of time, each on its own line."""
    head = [{"seed": schedule.seed}, schedule.bed]
    events: list[Ask | BatchAsk | Fault] = [
        *schedule.asks,
        *schedule.batches,
        *schedule.faults,
    ]
    events.sort(key=lambda one: one.at_s)
    return "".join(msgspec.json.encode(one).decode() + "\n" for one in (*head, *events))


def from_text(text: str, name: str) -> Schedule:
    """A schedule that `to_text` wrote; lines may have been taken out. Raises ConfigError, naming file and line."""
    lines = [line for line in text.splitlines() if line.strip()]
    number = 0
    try:
        seed = msgspec.json.decode(lines[0], type=dict[str, int])["seed"]
        number = 1
        bed = msgspec.json.decode(lines[1], type=Bed)
        events: list[Ask | BatchAsk | Fault] = []
        for number in range(2, len(lines)):
            events.append(msgspec.json.decode(lines[number], type=Ask | BatchAsk | Fault))
    except (msgspec.MsgspecError, KeyError, IndexError) as error:
        raise ConfigError(
            f"{name}: line {number + 1}: {error}. Give a file that qlm sim faults wrote."
        ) from None
    return Schedule(
        seed=seed,
        bed=bed,
        asks=tuple(one for one in events if isinstance(one, Ask)),
        faults=tuple(one for one in events if isinstance(one, Fault)),
        batches=tuple(one for one in events if isinstance(one, BatchAsk)),
    )
