"""Rules of thumb: each stands where the registry says, does something, and is judged by paired differences."""

from __future__ import annotations

import contextlib
import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm.__main__ import main
from qlm.rules import RULES, rule_named, runs
from qlm.rules import worth as judged
from qlm.rules.batching import BATCHES
from qlm.rules.registry import Rule, owners_of, scenario_without, taken_out
from qlm_core.errors import ConfigError
from qlm_core.manager import planner
from qlm_core.sim.beds import draw_bed
from qlm_core.sim.policies import policy_named
from qlm_core.sim.scenario import requests
from qlm_core.sim.world import World
from tests.simulator.beds import SIMULATION, crowded, one_model, popular, scenario, two_models

Told = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]
BY_NAME = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


# --------------------------------------------------------------------------- the registry is true


def slots(
    *, rate: float = 3, cv: float = 2, batch: int = 40, span_s: float = 15, tools: bool = True
) -> dict[str, Any]:
    """Chats at a rate, in bursts, and tool calls on an engine whose few slots lax work fills."""
    profile = {
        "model": "mistral-7b",
        "gpu": "a10",
        "iteration": {
            "base_ms": 30.0,
            "per_token_ms": 0.2,
            "per_sequence_ms": 0.0,
            "per_context_token_ms": 3e-4,
            "knee_tokens": 48,
            "per_attention_pair_ms": 1e-5,
        },
        "kv_cache_tokens": 30_000,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 2048,
        "weights_bytes": 14_482_931_712,
        "kv_bytes_per_token": 131_072,
        "cold_s": 34.0,
        "wake_s": 0.9,
        "sleep_s": 0.9,
    }
    only = {"models": {"mistral-7b": 1}}
    lax = {"slo_class": "batch", "rate_rps": 50, "requests": batch, "max_tokens": 1024}
    tool = {"slo_class": "tool", "rate_rps": 1, "until_s": span_s, "max_tokens": 256}
    chat = {"slo_class": "chat", "rate_rps": rate, "cv": cv, "until_s": span_s, "lengths": "brief"}
    return {
        "name": "slots",
        "fleet": [{"gpu": "a10", "models": ["mistral-7b"]}],
        "profiles": [profile],
        "slo_classes": {
            "chat": {"ttft_s": 0.4, "tpot_s": 0.2, "weight": 4},
            "tool": {"ttft_s": 6, "e2e_s": 40, "weight": 2},
            "batch": {"ttft_s": 900},
        },
        "workload": {
            "kind": "streams",
            "streams": [
                lax | only,
                *([tool | only] if tools else []),
                chat | only | {"max_tokens": 100},
            ],
        },
        "simulation": SIMULATION,
    }


def idle() -> dict[str, Any]:
    """Four instances alike with nothing to do, and now and then a request for the model that sleeps on all of them."""
    data = two_models(requests=20, rate=0.5)
    data["fleet"][0] |= {"count": 4, "awake": "mistral-7b-ft1"}
    return data


def drawn(index: int) -> tuple[dict[str, Any], int]:
    """A random bed, cut short, and the seed of its requests."""
    bed = runs.cut_bed(draw_bed(31, index), 200)
    return bed.scenario | {"simulation": SIMULATION}, bed.run_seed


def batches() -> dict[str, Any]:
    """Two models on two instances, with three batches beside their requests, of which two end."""
    data = two_models(requests=250, rate=2.5)
    batch = {"slo_class": "batch-2", "models": {"mistral-7b-ft1": 1}, "lengths": "brief"}
    both = {"models": {"mistral-7b-ft1": 1, "vicuna-13b-ft1": 1}}
    data["workload"]["batches"] = [
        batch | {"lines": 120, "submitted_s": 4.0, "window_s": 900.0},
        batch | both | {"lines": 150, "submitted_s": 45.0, "window_s": 600.0},
        batch | {"lines": 400, "submitted_s": 60.0, "window_s": 40.0, "output_scale": 0.5},
    ]
    return data


def batches_in_turn() -> dict[str, Any]:
    """One instance that runs one batch after the other; the window of the second is a close thing."""
    data = one_model(requests=110, rate=0.5, count=1)
    data["workload"] |= {"batch_1_rps": 0, "batch_2_rps": 0}
    batch = {"slo_class": "batch-2", "models": {"mistral-7b": 1}, "lengths": "brief", "lines": 330}
    data["workload"]["batches"] = [
        batch | {"submitted_s": 4.0, "window_s": 900.0},
        batch | {"submitted_s": 120.0, "window_s": 88.0},
    ]
    return data


BEDS = {
    "asleep": (idle(), 1),
    "drawn 5": drawn(5),
    "crowded": (crowded(), 1),
    "drawn 10": drawn(10),
    "drawn 11": drawn(11),
    "slots": (slots(), 1),
    "many chats at once": (slots(rate=4, cv=4, batch=200, span_s=40, tools=False), 1),
    "batches": (batches(), 1),
    "popular": (popular(), 1),
    "batches in turn": (batches_in_turn(), 1),
    **{f"drawn {index}": drawn(index) for index in (2, 8, 9, 17, 50)},
}
"""The quick ones first: most rules show on one of them."""

SHOWN_ON = {
    "a-quarter-kept-at-most": "many chats at once",
    "kept-slots-stay-kept": "many chats at once",
    "early-ramp": "drawn 8",
    "turns-before-paces": "drawn 9",
    "halving": "drawn 9",
    "cool-start": "drawn 8",
    "early-starts": "drawn 8",
    "warm-hints": "drawn 8",
    "cut-drains": "drawn 9",
    "levelling": "drawn 2",
    "longer-than-expected": "drawn 9",
    "no-rate-from-a-burst": "popular",
    "patience": "drawn 9",
    "spread-popular-models": "popular",
    "worth-staying": "drawn 9",
    "started-groups-stay": "drawn 17",
    "turn-is-kept": "drawn 50",
} | {rule.name: "batches" for rule in BATCHES}
SHOWN_ON |= dict.fromkeys(
    ("slowness-is-seen", "slowness-stays", "verdict-beyond-the-middle"), "batches in turn"
)
"""The bed to try first for rules that show on few."""


def decisions(bed_name: str, rule: Rule | None) -> str:
    """A digest of all that happens in a run, of every estimate, and of what was looked at to plan."""
    data, seed = BEDS[bed_name]
    bed = scenario_without(scenario(data), rule)
    said: list[str] = []
    sizes: list[int] = []
    take_snapshot = planner.take_snapshot

    def counting(groups: Any, agents: Any, **options: Any) -> Any:
        sizes.append(len(agents))
        return take_snapshot(groups, agents, **options)

    with pytest.MonkeyPatch.context() as patch, taken_out(rule):
        patch.setattr(planner, "take_snapshot", counting)
        arriving = requests(bed, seed=seed)
        record = World(bed, policy_named("qlm"), arriving, seed=seed, trace=said.append).run()
    told = (record.solves, list(record.mean_s), list(record.p50_s), list(record.p90_s), sizes)
    told += ([run.told for run in record.batches],)
    return hashlib.sha256(("\n".join(said) + repr(told)).encode()).hexdigest()


@cache
def with_all_rules(bed_name: str) -> str:
    return decisions(bed_name, None)


@BY_NAME
def test_a_rule_stands_where_the_registry_says(rule: Rule) -> None:
    if rule.is_setting:
        bed = scenario(one_model())
        assert scenario_without(bed, rule) != bed
    else:
        owners, name = owners_of(rule)
        assert all(vars(owner)[name] is not rule.without for owner in owners)


NEVER_SEEN = (
    "finish-what-was-started",
    "planned-before-stays",
    "regret-insertion",
    "rests-let-first-tokens-pass",
)
"""No bed was found on which anything is different without these; only the tests of their own modules show them."""


@BY_NAME
def test_without_a_rule_something_is_decided_otherwise(rule: Rule) -> None:
    beds = dict.fromkeys([SHOWN_ON.get(rule.name, "asleep"), *BEDS])
    if rule.name in NEVER_SEEN:
        beds = dict.fromkeys(["crowded", "drawn 11", "slots"])
    differs = any(decisions(bed, rule) != with_all_rules(bed) for bed in beds)
    assert differs != (rule.name in NEVER_SEEN)


def test_names_are_unique_and_reasons_are_sentences() -> None:
    assert len(dict.fromkeys(rule.name for rule in RULES)) == len(RULES)
    for rule in RULES:
        assert rule.reason[0].isupper(), rule.name
        assert rule.reason.endswith("."), rule.name


def test_the_document_lists_every_rule_with_its_reason_and_no_other() -> None:
    lines = (ROOT / "docs" / "rules.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    told = {cells[0].strip("|` "): cells[1] for cells in rows}
    assert told == {rule.name: rule.reason for rule in RULES}


# --------------------------------------------------------------------------- taking one out


class Owner:
    limit = 3

    @property
    def double(self) -> int:
        return 2 * self.limit

    @staticmethod
    def plain(value: int) -> int:
        return value


def rule_of(attribute: str, without: Any) -> Rule:
    where = f"{__name__}:Owner.{attribute}"
    return Rule(name="a-rule", part="planner", reason="Is a rule.", where=where, without=without)


@pytest.mark.parametrize(
    ("attribute", "without", "then"),
    [
        ("limit", 5, (5, 10, 1)),
        ("double", property(lambda owner: owner.limit), (3, 3, 1)),
        ("plain", staticmethod(lambda value: -value), (3, 6, -1)),
    ],
)
def test_a_rule_is_out_within_the_block_alone(
    attribute: str, without: Any, then: tuple[int, int, int]
) -> None:
    before = vars(Owner)[attribute]
    with taken_out(rule_of(attribute, without)):
        assert (Owner.limit, Owner().double, Owner.plain(1)) == then
    assert vars(Owner)[attribute] is before


def test_a_rule_comes_back_after_a_run_that_failed() -> None:
    def fail() -> None:
        with taken_out(rule_of("limit", 5)):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert Owner.limit == 3


def test_a_rule_that_is_gone_from_the_code_is_missed() -> None:
    with pytest.raises(AttributeError, match="a-rule"):
        owners_of(rule_of("other", 1))


def test_a_setting_is_changed_in_the_scenario_alone() -> None:
    bed = scenario(one_model())
    assert scenario_without(bed, None) is bed
    assert scenario_without(bed, rule_of("limit", 5)) is bed
    found = scenario_without(bed, rule_named("aim"))
    assert (bed.solver.objective.aim, found.solver.objective.aim) == (0.9, 1.0)
    gone = Rule(name="gone", part="planner", reason="", where="solver.luck", without=1)
    with pytest.raises(ConfigError, match=r"solver\.luck"):
        scenario_without(bed, gone)


# --------------------------------------------------------------------------- judging


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30))
def test_an_effect_turns_with_its_sign(differences: list[float]) -> None:
    one = judged.effect_of(differences)
    other = judged.effect_of([-value for value in differences])
    assert one.mean == pytest.approx(-other.mean)
    assert one.error == pytest.approx(other.error)
    assert (one.better, one.worse, one.sign) == (other.worse, other.better, -other.sign)


def test_an_effect_is_found_beyond_twice_its_standard_error() -> None:
    found = judged.effect_of([1.0, 2.0, 3.0])
    assert (found.mean, found.error) == (2.0, pytest.approx(3**-0.5))
    assert found.sign == 1
    assert judged.effect_of([-1.0, 2.0, 3.0]).sign == 0
    assert judged.effect_of([5.0]).sign == 0
    assert judged.effect_of([]).sign == 0


def outcome(*, weighted: float = 90.0, off_p90: float = 5.0, cpu_s: float = 1.0) -> runs.Outcome:
    return runs.Outcome(
        weighted=weighted, plain=90.0, off_p50=5.0, off_p90=off_p90, r2=None, cpu_s=cpu_s
    )


def worth(
    *without: runs.Outcome, rule: str = "aim", touched: bool = True, seed: int = 0
) -> judged.Worth:
    """Of a rule without which beds end like this, and with which all are alike."""
    return judged.worth_of(rule_named(rule), pairs(*without, touched=touched, seed=seed))


def pairs(*without: runs.Outcome, touched: bool = True, seed: int = 0) -> list[runs.Pair]:
    return [
        runs.Pair(seed=seed, bed=bed, whole=outcome(), without=one, best=92.0, touched=touched)
        for bed, one in enumerate(without)
    ]


@pytest.mark.parametrize(
    ("found", "verdict", "where"),
    [
        (worth(outcome(weighted=88.0), outcome(weighted=87.9)), "worth", "attainment"),
        (
            worth(outcome(weighted=92, off_p90=9), outcome(weighted=92.1, off_p90=9.1)),
            "costs",
            "attainment",
        ),
        (
            worth(outcome(weighted=92, off_p90=9), outcome(weighted=88, off_p90=9.1)),
            "worth",
            "estimates",
        ),
        (worth(outcome(off_p90=1.0), outcome(off_p90=1.1)), "costs", "estimates"),
        (worth(outcome(weighted=92.0), outcome(weighted=88.0)), "nothing beyond noise", ""),
        (worth(outcome(), outcome(), touched=False), "never at work", ""),
        (worth(outcome(cpu_s=2.0), outcome(), rule="contenders"), "worth", "speed"),
        (worth(outcome(), outcome(), rule="contenders"), "nothing beyond noise", "speed"),
    ],
)
def test_a_verdict_says_what_it_was_found_in(found: judged.Worth, verdict: str, where: str) -> None:
    assert (found.verdict, found.found_in) == (verdict, where)


def test_regret_is_told_with_and_without_the_rule() -> None:
    found = worth(outcome(weighted=88.0), outcome(weighted=90.0))
    assert found.regret == ((2.0, 2.0), (3.0, 4.0))
    assert (found.weighted.better, found.weighted.worse, found.touched) == (1, 0, 2)


def test_two_runs_count_as_one_and_a_bed_once() -> None:
    first = {"aim": pairs(outcome(), outcome()), "was-a-rule": pairs(outcome())}
    second = {"aim": pairs(outcome(weighted=50.0)), "search": pairs(outcome(), seed=1)}
    both = runs.together(first, second)
    assert list(both) == ["aim", "search"]
    assert [pair.without.weighted for pair in both["aim"]] == [50.0, 90.0]
    other = runs.together(both, {"aim": pairs(outcome(), seed=1)})
    assert [(pair.seed, pair.bed) for pair in other["aim"]] == [(0, 0), (0, 1), (1, 0)]


def test_what_is_written_is_read_again() -> None:
    found = {"aim": pairs(outcome(), outcome(weighted=1.0))}
    assert runs.from_json(runs.to_json(found), "a.json") == found
    with pytest.raises(ConfigError, match=r"a\.json"):
        runs.from_json('{"pairs": 1}', "a.json")


def test_the_page_tells_what_was_measured_and_what_was_not() -> None:
    text = judged.page({"aim": pairs(outcome(weighted=80.0), outcome(weighted=80.2))})
    [row] = [line for line in text.splitlines() if line.startswith("| `aim` |")]
    assert "worth: +9.9 ± 0.1 (2 better, 0 worse)" in row
    assert text.count("not measured") == len(RULES) - 1


def test_a_cut_bed_has_the_same_first_requests() -> None:
    bed = draw_bed(3, 1)
    shorter = runs.cut_bed(bed, 50)
    whole, cut = (
        list(requests(scenario(one.scenario), seed=one.run_seed)) for one in (bed, shorter)
    )
    assert cut == whole[:50]
    assert runs.cut_bed(bed, 10_000).scenario == bed.scenario


Measured = tuple[runs.Pairs, str]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The figures and the table of two rules on two beds."""
    folder = tmp_path_factory.mktemp("rules")
    figures = folder / "rules.json"
    told = io.StringIO()
    page = folder / "rules.md"
    options = ["--beds", "2", "--requests", "60", "--seed", "4", "--jobs", "1"]
    words = ["bench", "rules", *options, "--rule", "calibration,contenders", "--json", str(figures)]
    with contextlib.redirect_stdout(told):
        assert main([*words, "--page", str(page)]) == 0
    assert "| `calibration` |" in page.read_text()
    return runs.from_json(figures.read_text(), "rules.json"), told.getvalue()


def test_a_user_gets_a_table_with_a_verdict_for_each_rule(measured: Measured) -> None:
    _, told = measured
    rows = [line for line in told.splitlines() if line.startswith("| c")]
    assert sorted(row.split()[1] for row in rows) == ["calibration", "contenders"]


def test_what_has_no_effect_has_none(measured: Measured) -> None:
    found, _ = measured
    assert all(pair.touched for pair in found["calibration"])
    assert any(pair.whole.off_p50 != pair.without.off_p50 for pair in found["calibration"])
    for pair in found["contenders"]:
        assert not pair.touched
        assert pair.whole.weighted == pair.without.weighted
        assert 0.0 < pair.best <= 100.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rule", "luck"], ("'luck'", "docs/rules.md")),
        (["--beds", "1"], ("--beds", "at least 2")),
        (["--requests", "0"], ("--requests", "at least 1")),
        (["--json", "/nowhere/x.json"], ("--json", "/nowhere")),
        (["--page", "/nowhere/x.md"], ("--page", "/nowhere")),
        (["--add", "/nowhere/x.json"], ("--add", "/nowhere/x.json")),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: tuple[str, ...], capsys: Told
) -> None:
    assert main(["bench", "rules", *arguments]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
