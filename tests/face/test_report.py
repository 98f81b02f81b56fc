"""The statistics of a run, against values worked out by hand and against NumPy."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm.report import (
    AccountingError,
    Fate,
    Interruption,
    Outcome,
    Report,
    quantile,
    summarise,
    to_json,
)
from qlm_core.model import Estimate, Slo

SLOS = {"interactive": Slo(ttft_s=1.0, tpot_s=0.5), "batch": Slo(ttft_s=60.0, e2e_s=100.0)}


def finished(slo_class: str, ttft_s: float, e2e_s: float, tokens: int = 11) -> Outcome:
    return Outcome(
        model="m",
        slo_class=slo_class,
        sent_s=0.0,
        fate=Fate.FINISHED,
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        output_tokens=tokens,
    )


def ended(slo_class: str, fate: Fate) -> Outcome:
    return Outcome(model="m", slo_class=slo_class, sent_s=0.0, fate=fate)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: list[float], share: float) -> None:
    assert quantile(sorted(values), share) == pytest.approx(np.quantile(values, share), abs=1e-6)


def test_each_class_is_judged_by_its_own_targets() -> None:
    outcomes = [
        finished("interactive", 0.5, 3.0),
        finished("interactive", 1.5, 3.0),  # first token late
        finished("interactive", 0.5, 9.0),  # 0.85 s a token
        finished("batch", 59.0, 99.0),
        finished("batch", 59.0, 101.0),  # end late
        ended("batch", Fate.SHED),
        ended("batch", Fate.CANCELLED),
    ]
    report = summarise(outcomes, SLOS, sent=7, elapsed_s=10.0)
    interactive, batch = report.classes
    assert (interactive.attained, interactive.attainment_ratio) == (1, pytest.approx(1 / 3))
    # A shed request is a miss; a cancelled one is nobody's.
    assert (batch.attained, batch.attainment_ratio) == (1, pytest.approx(1 / 3))
    assert report.attainment_ratio == pytest.approx(2 / 6)
    assert report.fates == {"finished": 5, "shed": 1, "failed": 0, "cancelled": 1, "lost": 0}
    assert report.requests_per_s == pytest.approx(0.5)
    assert report.output_tokens_per_s == pytest.approx(5.5)
    assert interactive.tpot_s.p50 == pytest.approx(0.25)


def test_what_did_not_finish_is_told_by_reason_most_frequent_first() -> None:
    outcomes = [ended("batch", Fate.FAILED) for _ in range(3)] + [ended("batch", Fate.SHED)]
    outcomes[0].reason, outcomes[3].reason = "HTTP 404", "ttl"
    report = summarise([*outcomes, finished("batch", 1, 2)], SLOS, sent=5, elapsed_s=1.0)
    found = [(one.requests, one.fate, one.reason) for one in report.problems]
    assert found == [(2, "failed", ""), (1, "failed", "HTTP 404"), (1, "shed", "ttl")]


def test_a_single_token_has_no_time_per_output_token() -> None:
    assert finished("interactive", 0.5, 0.5, tokens=1).tpot_s is None


@pytest.mark.parametrize("outcomes", [0, 1, 3])
def test_a_request_without_an_outcome_is_an_error(outcomes: int) -> None:
    with pytest.raises(AccountingError):
        summarise([finished("batch", 1, 2)] * outcomes, SLOS, sent=2, elapsed_s=1.0)


def test_what_is_in_flight_after_an_interruption_needs_no_outcome() -> None:
    cut = Interruption(in_flight=2, not_sent=4)
    report = summarise([finished("batch", 1, 2)], SLOS, sent=3, elapsed_s=1.0, interrupted=cut)
    assert (report.requests, report.attainment_ratio) == (1, 1.0)
    with pytest.raises(AccountingError):
        summarise([finished("batch", 1, 2)], SLOS, sent=4, elapsed_s=1.0, interrupted=cut)


def test_estimates_are_compared_with_what_came() -> None:
    outcomes = []
    for realised_s, mean_s, p90_s in [(1.0, 1.5, 2.0), (2.0, 2.0, 3.0), (3.0, 2.5, 2.9)]:
        outcome = finished("batch", realised_s, 10.0)
        outcome.estimate = Estimate(mean_s=mean_s, p50_s=mean_s, p90_s=p90_s, p99_s=9.0)
        outcomes.append(outcome)
    estimate = summarise(outcomes, SLOS, sent=3, elapsed_s=1.0).estimate
    assert estimate is not None
    assert estimate.requests == 3
    assert estimate.mean_absolute_error_s == pytest.approx(1 / 3)
    assert estimate.r2 == pytest.approx(1 - 0.5 / 2.0)
    assert estimate.within_p90_ratio == pytest.approx(2 / 3)


def test_a_report_survives_json() -> None:
    report = summarise([finished("batch", 1, 2)], SLOS, sent=1, elapsed_s=1.0, evictions=3)
    assert msgspec.json.decode(to_json(report), type=Report) == report


def test_the_longest_time_between_two_tokens_is_a_pause() -> None:
    outcomes = [finished("interactive", 0.5, 3.0, tokens=4) for _ in range(2)]
    for outcome, pause_s in zip(outcomes, (1.5, 0.1), strict=True):
        outcome.ttft_s = None
        for at_s in (0.5, 0.6, 0.6 + pause_s):
            outcome.token_came(at_s)
        assert outcome.ttft_s == 0.5
    outcomes[0].stretch(2.0)
    [interactive] = summarise(outcomes, SLOS, sent=2, elapsed_s=10.0).classes
    assert interactive.pause_s.p99 == pytest.approx(3.0, abs=0.05)
    assert interactive.pause_s.p50 == pytest.approx(1.55)
