"""Simulations as commands run them: beds read from files, runs in parallel processes, tables and plots of the results."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from qlm.traces import default_mix, read_requests
from qlm_core.config import Config
from qlm_core.errors import ConfigError, QlmError
from qlm_core.sim.policies import policy_named
from qlm_core.sim.report import report_of
from qlm_core.sim.scenario import (
    FleetPart,
    Scenario,
    SimulationConfig,
    WorkloadConfig,
    requests,
    scenario_from_mapping,
)
from qlm_core.sim.workload import Mix, TraceMapping, WorkloadRequest
from qlm_core.sim.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]
Progress = Callable[[str], None]
Result = TypeVar("Result")

LINE_S = 5.0
"""How often a run that has not ended is heard of."""

TEMPLATE = """\
# A scenario for `qlm sim`. Only name, fleet and workload are needed; unknown keys are errors.
name: example
about: one model, three SLO classes, more work than four GPUs can do as it comes

# The serving instances. A GPU and model need a profile: an error names those there are.
fleet:
  - gpu: a100                 # a10 | a40 | a100 | h100 | rtx4090 | rtxpro6000
    gpus: 1                   # GPUs of one instance (tensor parallelism)
    count: 4                  # instances; 1 if left out
    models: [vicuna-13b]      # `-ft1`, `-ft2`, ... stand for fine-tuned versions
    max_loras: 0              # different adapters in one batch; 0: any number
    awake: ""                 # the model loaded at the start; empty: dealt out in turn
    host_memory_gb: 256       # for sleeping models and the KV cache of evicted requests
adapters: {}                  # LoRA adapters among the models, each with its base: {sql: vicuna-13b}
# Profiles of your own (`qlm profile fit`), which go before the shipped ones. Files, relative to this one.
profiles: []                  # - my-gpu.json

# What is asked of it: W_A (one model), W_B (several), W_C (W_B with mega prompts), or streams of your own.
workload:
  kind: W_A
  requests: 3500
  model: vicuna-13b
  interactive_rps: 20
  batch_1_rps: 20             # left out: the first class's rate; 0: none of these
  batch_2_rps: 20
  cv: 1                       # of the gaps: 1 is Poisson, more is bursty
#  kind: streams
#  streams:
#    - {slo_class: interactive, models: {vicuna-13b: 1}, rate_rps: 5, cv: 3, until_s: 300}
  batches: []                 # files of lines beside all that, each submitted as a whole and due within its window:
#    - {slo_class: batch-2, models: {vicuna-13b: 1}, lines: 500, submitted_s: 30, window_s: 1800, output_scale: 1}

# As in config.yaml.
slo_classes:
  interactive: {ttft_s: 20, tpot_s: 0.2, weight: 4}
  batch-1: {ttft_s: 60, weight: 2}
  batch-2: {ttft_s: 3600, weight: 1}
solver: {}
executor: {}

simulation:
  link_s: 0.001               # one-way delay between two processes
  solve_work: 20000           # moves that the planner tries for one plan
  solve_s: 0.2                # simulated time that this takes
  report_interval_s: 1.0      # how often a busy agent reports
  abort_s: 0.0                # how long an engine goes on with what was aborted
  waiting_lines_max: 256      # lines of batches that wait for an engine at a time, of one model

policies: [qlm, edf, fcfs]    # what is compared unless --policy says otherwise
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bed:
    """A scenario and where its requests come from: its own workload, or a trace.

    Attributes:
        model_len: for a trace, the longest context of each model in tokens; longer requests are cut to it.
    """

    scenario: Scenario
    trace: Path | None = None
    mapping: TraceMapping | None = None
    model_len: dict[str, int] = field(default_factory=dict)

    def requests(self, seed: int) -> Iterator[WorkloadRequest]:
        """The requests of one seed, in order of arrival."""
        if self.trace is None or self.mapping is None:
            return requests(self.scenario, seed=seed)
        return self._of_trace(self.trace, replace(self.mapping, seed=seed))

    def _of_trace(self, trace: Path, mapping: TraceMapping) -> Iterator[WorkloadRequest]:
        for request in read_requests(trace, mapping):
            if request.slo_class not in self.scenario.slo_classes:
                raise ConfigError(
                    f"{trace}: the class {request.slo_class!r} is none of "
                    f"{', '.join(self.scenario.slo_classes)}. Add it to slo_classes of --fleet."
                )
            yield request


def read_scenario(path: Path) -> Scenario:
    """A scenario file.

    Raises:
        ConfigError: it cannot be read, or is not a scenario; names the file, the key and the remedy.
    """
    from qlm.config_file import strict_yaml

    try:
        data = strict_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. Write one with `qlm sim new {path}`."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: {error}. Write it in UTF-8.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("profiles"), list):
        data["profiles"] = [
            _profile(path.parent / one) if isinstance(one, str) else one for one in data["profiles"]
        ]
    return scenario_from_mapping(data, str(path))


def _profile(path: Path) -> object:
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Name a file of `qlm profile fit`.") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}. Name a file of `qlm profile fit`.") from None


def bed_of_scenario(path: Path) -> Bed:
    """The bed that a scenario file describes."""
    return Bed(scenario=read_scenario(path))


def bed_of_trace(
    trace: Path,
    *,
    fleet: Path | None,
    mix: str | None,
    models: str | None,
    rate_scale: float,
    limit: int | None,
) -> Bed:
    """A trace on a fleet: a scenario file's, or the default configuration's, which `qlm demo` starts.

    Without a mix, classes have the shares of `traces.DEFAULT_MIX`, as far as the fleet has them.

    Raises:
        ConfigError: a class or model that the fleet does not know, or a share out of range.
    """
    config = Config()
    scenario = read_scenario(fleet) if fleet is not None else demo_scenario(config)
    lengths = {} if fleet else {name: one.max_model_len for name, one in config.models.items()}
    served = list(dict.fromkeys(model for part in scenario.fleet for model in part.models))
    mapping = TraceMapping(
        mix=Mix.parse(mix) if mix else default_mix(scenario.slo_classes),
        models=Mix.parse(models) if models else Mix(tuple((model, 1.0) for model in served)),
        rate_scale=rate_scale,
        limit=limit,
    )
    for name in mapping.mix.names:
        if name not in scenario.slo_classes:
            known = ", ".join(scenario.slo_classes)
            raise ConfigError(f"--mix: {name!r} is no class of the fleet. Use some of {known}.")
    for name in mapping.models.names:
        if name not in served:
            known = ", ".join(served)
            raise ConfigError(f"--models: {name!r} is no model of the fleet. Use some of {known}.")
    scenario = msgspec.structs.replace(scenario, name=trace.name)
    return Bed(scenario=scenario, trace=trace, mapping=mapping, model_len=lengths)


def demo_scenario(config: Config) -> Scenario:
    """The fleet of a configuration; of the default one, that of `qlm demo`."""
    parts = tuple(
        FleetPart(gpu=one.gpu, models=one.models, host_memory_gb=one.host_memory_bytes / 1e9)
        for one in config.agents
    )
    report_interval_s = min([one.report_interval_s for one in config.agents])
    return Scenario(
        name="demo",
        fleet=parts,
        adapters={name: model.base for name, model in config.models.items() if model.base},
        workload=WorkloadConfig(kind="streams"),
        slo_classes=config.slo_classes,
        solver=config.solver,
        executor=config.agents[0].executor,
        simulation=SimulationConfig(report_interval_s=report_interval_s),
    )


def run_one(
    bed: Bed,
    policy: str,
    seed: int,
    without: tuple[str, ...] = (),
    watch: Callable[[int], None] | None = None,
) -> Run:
    """One policy with one seed; the figures of `qlm_core.sim.report`. `watch` is told how many requests have arrived.

    Raises:
        ConfigError: bad input that shows as it is read, such as a row of a trace; also that there are no requests.
    """
    begin_s = time.perf_counter()
    removed = without if policy == "qlm" else ()
    arrivals = bed.requests(seed)
    if watch is not None:
        arrivals = _watched(arrivals, watch)
    made = policy_named(policy, without=removed)
    world = World(bed.scenario, made, arrivals, seed=seed, model_len=bed.model_len)
    record = world.run()
    if not len(record.arrival_s):
        raise ConfigError(f"{bed.trace or bed.scenario.name}: no requests. Give it some to serve.")
    name = name_of_run(policy, without)
    return report_of(record, policy=name, seed=seed, wall_s=time.perf_counter() - begin_s)


def name_of_run(policy: str, without: tuple[str, ...]) -> str:
    """The policy's name, and what was taken out of ours."""
    return policy + "".join(f" -{lso}" for lso in without if policy == "qlm")


def _watched(
    arrivals: Iterator[WorkloadRequest], watch: Callable[[int], None]
) -> Iterator[WorkloadRequest]:
    for number, request in enumerate(arrivals, start=1):
        yield request
        if number % 256 == 0:
            watch(number)


def run_all(
    bed: Bed,
    policies: Sequence[str],
    seeds: Iterable[int],
    *,
    without: tuple[str, ...] = (),
    jobs: int = 1,
    progress: Progress = lambda _: None,
) -> list[Run]:
    """Every policy with every seed, several at once, in the order asked for.

    Raises:
        ConfigError: an unknown policy or LSO.
    """
    for policy in policies:
        policy_named(policy, without=without if policy == "qlm" else ())
    wanted = [(policy, seed) for policy in policies for seed in seeds]
    return in_processes(
        [(bed, *key, without) for key in wanted],
        run_one,
        [f"{policy}, seed {seed}" for policy, seed in wanted],
        jobs=jobs,
        progress=progress,
    )


def in_processes(
    calls: Sequence[tuple[Any, ...]],
    function: Callable[..., Result],
    names: Sequence[str],
    *,
    jobs: int,
    progress: Progress,
) -> list[Result]:
    """`function(*call, watch=...)` for every call, `jobs` at once; tells every few seconds how far each is.

    Raises:
        QlmError: what a call raises; also when a process was killed.
    """
    counts: Any = multiprocessing.RawArray("q", len(calls))
    results: dict[int, Result] = {}
    with _pool(min(jobs, len(calls)), counts) as pool:
        futures = {
            pool.submit(_counted, number, function, call): number
            for number, call in enumerate(calls)
        }
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=LINE_S, return_when=FIRST_COMPLETED)
            for future in done:
                number = futures[future]
                try:
                    results[number] = future.result()
                except BrokenProcessPool:
                    raise QlmError(
                        f"{names[number]}: its process was killed. Is there memory for --jobs runs at once?"
                    ) from None
                progress(f"{len(results)}/{len(calls)} done: {names[number]}")
            if not done:
                running = [
                    f"{names[number]}: {counts[number]:,} requests"
                    for number in range(len(calls))
                    if counts[number] and number not in results
                ]
                progress(f"{len(results)}/{len(calls)} done; " + "; ".join(running))
    return [results[number] for number in range(len(calls))]


@contextmanager
def _pool(size: int, counts: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that end when nobody waits for their results any more, be it in the middle of a run."""
    pool = ProcessPoolExecutor(size, initializer=_share, initargs=(counts,))
    others = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()


_counts: Any = None
"""In a process of the pool: how many requests each run has seen, shared with the one who waits."""


def _share(counts: Any) -> None:
    global _counts  # noqa: PLW0603 - a pool hands shared memory over in its initializer only
    _counts = counts
    # Ctrl-C reaches every process of the terminal; the one who waits has the last word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _counted(number: int, function: Callable[..., Result], call: tuple[Any, ...]) -> Result:
    def watch(requests: int) -> None:
        _counts[number] = requests

    return function(*call, watch=watch)


def write_template(path: Path) -> None:
    """Write a commented scenario. Raises ConfigError if the file exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give a new file's name.") from None


# --------------------------------------------------------------------------- results


def to_json(runs: list[Run]) -> str:
    """`{"runs": [...]}`."""
    return json.dumps({"runs": runs}, indent=1)


def by_policy(runs: list[Run], *path: str) -> dict[str, float]:
    """Medians over the seeds of one figure."""
    values: dict[str, list[float]] = {}
    for figures in runs:
        value: Any = figures
        for key in path:
            value = value.get(key) if value is not None else None
        if value is not None:
            values.setdefault(figures["policy"], []).append(float(value))
    return {policy: median(of_seeds) for policy, of_seeds in values.items()}


def table(runs: list[Run]) -> str:
    """Medians over the seeds, a line for each policy, as Markdown."""
    classes = list(dict.fromkeys(name for one in runs for name in one["classes"]))
    head = ["policy", "SLOs met", *classes, "req/s", "tokens/s", "evictions", "swaps", "wall s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    columns = [
        *((("classes", name, "attainment"), "{:.1%}") for name in classes),
        (("throughput_rps",), "{:.2f}"),
        (("output_tokens_per_s",), "{:.0f}"),
        (("evictions",), "{:.0f}"),
        (("swaps",), "{:.0f}"),
        (("wall_s",), "{:.1f}"),
    ]
    for policy, attainment in by_policy(runs, "slo_attainment").items():
        cells = [policy, f"{attainment:.1%}"]
        for path, form in columns:
            value = by_policy(runs, *path).get(policy)
            cells.append("" if value is None else form.format(value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def batch_table(runs: list[Run]) -> str:
    """What was said of each batch first and what came, a line for each and policy and seed; empty if there was none."""
    lines = [
        "| policy | seed | batch | lines | window s | said, p50 s | p90 s | in time | took s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        for number, one in enumerate(run["batches"]):
            said = ["", "", ""]
            if one["p50_s"] is not None:
                in_time = "yes" if one["feasible"] else "no"
                said = [f"{one['p50_s']:.1f}", f"{one['p90_s']:.1f}", in_time]
            took = "not in time" if one["took_s"] is None else f"{one['took_s']:.1f}"
            head = [run["policy"], str(run["seed"]), str(number), str(one["lines"])]
            cells = [*head, f"{one['window_s']:.0f}", *said, took]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def cut_note(runs: list[Run]) -> str:
    """How many requests were too long for the fleet; empty if none was."""
    cut = max([one["cut"] for one in runs], default=0)
    return f"{cut} requests were longer than the fleet takes, and were cut." if cut else ""


def plot_attainment(runs: list[Run], path: Path, *, title: str) -> None:
    """SLOs met by policy and class, medians over the seeds."""
    classes = list(dict.fromkeys(name for one in runs for name in one["classes"]))
    series = {"all": by_policy(runs, "slo_attainment")}
    series |= {name: by_policy(runs, "classes", name, "attainment") for name in classes}
    policies = list(series["all"])

    def draw(axes: Axes) -> None:
        width = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            at = [index + number * width for index in range(len(policies))]
            axes.bar(at, [100 * values.get(one, 0.0) for one in policies], width, label=name)
        axes.set_xticks([index + 0.4 for index in range(len(policies))], policies, rotation=20)
        axes.set_ylabel("SLOs met (%)")
        axes.legend(fontsize="small")

    draw_to(path, draw, title=title)


def draw_to(path: Path, draw: Callable[[Axes], None], *, title: str) -> None:
    """One pair of axes as a picture; the name's ending gives its form. Raises as `save`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture.

    Raises:
        ConfigError: the file cannot be written, or its form is unknown.
    """
    metadata = {"Software": None} if path.suffix == ".png" else None
    try:
        figure.savefig(path, dpi=120, metadata=metadata)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}. Give a name that ends in .png or .svg.") from None
