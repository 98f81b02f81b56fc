"""The load: bodies that fit their model, a pace that follows the workload, an outcome for each request."""

import asyncio
from types import TracebackType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm import load, scrape
from qlm.report import Fate, Outcome
from qlm_core.model import Estimate
from qlm_core.sim.workload import WorkloadRequest


def request(arrival_s: float = 0.0, prompt: int = 100, output: int = 50) -> WorkloadRequest:
    return WorkloadRequest(
        arrival_s=arrival_s,
        model="m",
        slo_class="batch-1",
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=max(2048, output),
    )


@given(st.integers(1, 200_000), st.integers(1, 4_096), st.integers(64, 32_768))
def test_a_request_is_cut_to_what_its_model_holds(prompt: int, output: int, room: int) -> None:
    fitted = load.Bodies(model_len={"m": room}).fitted(request(prompt=prompt, output=output))
    assert 1 <= fitted.output_tokens <= fitted.max_tokens
    assert fitted.prompt_tokens >= 1
    assert fitted.prompt_tokens + fitted.max_tokens <= room


def test_prompts_have_the_length_asked_for_and_no_common_beginning() -> None:
    texts = [load.prompt_text(number, 5_000) for number in range(50)]
    assert {len(text) for text in texts} == {5_000 * load.BYTES_PER_TOKEN}
    assert len({text[:8] for text in texts}) == 50


def test_the_true_length_is_hidden_from_planning_unless_exact() -> None:
    hidden = msgspec.json.decode(load.Bodies().body(0, request(output=50)))
    assert (hidden["max_tokens"], hidden["qlm_sim"]) == (2048, {"output_tokens": 50})
    exact = msgspec.json.decode(load.Bodies(exact_lengths=True).body(0, request(output=50)))
    assert (exact["max_tokens"], exact["ignore_eos"]) == (50, True)
    assert "qlm_sim" not in exact


class Recorder:
    """A transport that finishes every request at once, except the numbers in `failing`."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.numbers: list[int] = []
        self.together = 0
        self.most_together = 0
        self._failing = failing

    async def __aenter__(self) -> "Recorder":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    async def send(self, shot: load.Shot, outcome: Outcome) -> None:
        self.numbers.append(shot.number)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        await asyncio.sleep(0)
        self.together -= 1
        outcome.fate = Fate.FAILED if shot.number in self._failing else Fate.FINISHED
        outcome.ttft_s, outcome.e2e_s, outcome.output_tokens = 0.25, 0.5, 3
        outcome.estimate = Estimate(mean_s=0.1, p50_s=0.2, p90_s=0.3, p99_s=0.4)


async def test_every_request_is_sent_once_and_counted() -> None:
    recorder, counts = Recorder(failing=(3,)), load.Counts()
    outcomes, _ = await load.run(
        [request() for _ in range(20)], recorder, bodies=load.Bodies(), counts=counts
    )
    assert sorted(recorder.numbers) == list(range(20))
    assert [outcome.fate for outcome in outcomes].count(Fate.FAILED) == 1
    assert (counts.sent, counts.in_flight, counts.output_tokens) == (20, 0, 60)


async def test_no_more_requests_are_open_than_allowed() -> None:
    recorder = Recorder()
    await load.run(
        [request() for _ in range(20)],
        recorder,
        bodies=load.Bodies(),
        counts=load.Counts(),
        concurrency_limit=4,
    )
    assert recorder.most_together <= 4


async def test_a_stopped_run_has_the_outcomes_of_what_ended() -> None:
    class Slow(Recorder):
        async def send(self, shot: load.Shot, outcome: Outcome) -> None:
            await super().send(shot, outcome)
            if shot.number == 1:
                stop.set()
            if shot.number >= 1:
                await asyncio.Event().wait()

    counts, stop = load.Counts(), asyncio.Event()
    outcomes, _ = await load.run(
        [request(), request(), request(), request(3600.0)],
        Slow(),
        bodies=load.Bodies(),
        counts=counts,
        stop=stop,
    )
    assert [outcome.fate for outcome in outcomes] == [Fate.FINISHED]
    assert (counts.sent, counts.in_flight, counts.fates[Fate.FINISHED]) == (3, 2, 1)


async def test_times_are_on_the_clock_of_the_fleet() -> None:
    outcomes, elapsed_s = await load.run(
        [request(0.0), request(1.0)],
        Recorder(),
        bodies=load.Bodies(),
        counts=load.Counts(),
        time_scale=100.0,
    )
    assert outcomes[0].ttft_s == pytest.approx(25.0)
    assert outcomes[0].estimate is not None
    assert outcomes[0].estimate.mean_s == pytest.approx(10.0)
    assert outcomes[1].sent_s >= 1.0
    assert elapsed_s >= 1.0


def test_metrics_are_summed_over_their_labels() -> None:
    found = scrape.samples(
        "# HELP a_total x\n# TYPE a_total counter\n"
        'a_total{from="m{1}",to="b c"} 2.0\na_total{from="x"} 3\nb 1.5 1700000000\nc NaN-ish\n'
    )
    assert scrape.total(found, "a_total") == 5.0
    assert scrape.total(found, "a_total", 'from="x"') == 3.0
    assert scrape.total(found, "b") == 1.5
    assert scrape.total(found, "c") is None
    assert scrape.by_label(found, "a_total", "to") == {"b c": 2.0}
    assert scrape.by_label(found, "a_total", "from") == {"m{1}": 2.0, "x": 3.0}
