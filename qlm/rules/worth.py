"""What each rule is worth, by the pairs of runs with and without it.

Differences are paired: the same bed and the same requests with and without the rule. A mean beyond twice its standard error
counts as found, anything less as noise. Of some seventy rules that are worth nothing, three would be found so all the same, and a
rule that matters on few beds may not be found: a verdict is repeated with another seed before anybody acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev
from typing import Literal

from qlm.rules import RULES, rule_named
from qlm.rules.registry import Rule
from qlm.rules.runs import Pair, Pairs

Verdict = Literal["worth", "costs", "nothing beyond noise", "never at work"]

_NOTICED = 0.1
"""Points of attainment by which a bed has to change to be told as better or worse."""
_SIGNIFICANT = 2.0
_SLOWER = 1.05
"""Times the seconds without a rule of speed, from which on it is worth its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A difference over beds: positive where the rule helps.

    Attributes:
        error: standard error of the mean.
        better, worse: beds that the rule changes by more than what is noticed.
    """

    mean: float
    error: float
    better: int
    worse: int

    @property
    def sign(self) -> int:
        """1 or -1 beyond noise, else 0."""
        return 0 if abs(self.mean) <= _SIGNIFICANT * self.error else (1 if self.mean > 0 else -1)


def effect_of(differences: Sequence[float]) -> Effect:
    """The mean of paired differences with its standard error, which is taken from two beds on."""
    count = len(differences)
    error = stdev(differences) / sqrt(count) if count > 1 else inf
    return Effect(
        mean=mean(differences) if differences else 0.0,
        error=error,
        better=sum(one > _NOTICED for one in differences),
        worse=sum(one < -_NOTICED for one in differences),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What one rule is worth: effects of having it.

    Attributes:
        touched: beds on which anything at all is different without it.
        regret: weighted regret with all rules and without this one, in points: the mean and the worst.
        slower: seconds without it over seconds with it.
    """

    rule: Rule
    touched: int
    weighted: Effect
    plain: Effect
    p50: Effect
    p90: Effect
    r2: Effect
    regret: tuple[tuple[float, float], tuple[float, float]]
    slower: float

    @property
    def verdict(self) -> Verdict:
        """What is beyond noise; attainment first."""
        if self.rule.bears == "speed":
            return "worth" if self.slower > _SLOWER else "nothing beyond noise"
        if not self.touched:
            return "never at work"
        signs = [one.sign for one in (self.weighted, self.plain)]
        if not any(signs):
            signs = [one.sign for one in (self.p50, self.p90, self.r2)]
        if sum(signs) == 0:
            return "nothing beyond noise"
        return "worth" if sum(signs) > 0 else "costs"

    @property
    def found_in(self) -> str:
        """Where the verdict comes from."""
        if self.rule.bears:
            return self.rule.bears
        if self.weighted.sign or self.plain.sign:
            return "attainment"
        return "estimates" if self.p50.sign or self.p90.sign or self.r2.sign else ""


def worth_of(rule: Rule, pairs: Sequence[Pair]) -> Worth:
    """What a rule is worth."""
    both = [(pair.whole, pair.without) for pair in pairs]
    return Worth(
        rule=rule,
        touched=sum(pair.touched for pair in pairs),
        weighted=effect_of([a.weighted - b.weighted for a, b in both]),
        plain=effect_of([a.plain - b.plain for a, b in both]),
        p50=_less_off([(a.off_p50, b.off_p50) for a, b in both]),
        p90=_less_off([(a.off_p90, b.off_p90) for a, b in both]),
        r2=_less_off([(b.r2, a.r2) for a, b in both]),
        regret=(
            _regret([pair.best - pair.whole.weighted for pair in pairs]),
            _regret([pair.best - pair.without.weighted for pair in pairs]),
        ),
        slower=sum(b.cpu_s for _, b in both) / max(1e-9, sum(a.cpu_s for a, _ in both)),
    )


def worths(pairs: Pairs) -> list[Worth]:
    """What each rule is worth, the most first."""
    found = [worth_of(rule_named(name), of_rule) for name, of_rule in pairs.items()]
    return sorted(found, key=lambda one: -one.weighted.mean)


def _less_off(pairs: Sequence[tuple[float | None, float | None]]) -> Effect:
    """How much less the first is than the second, over beds on which both are known."""
    return effect_of([b - a for a, b in pairs if a is not None and b is not None])


def _regret(regrets: Sequence[float]) -> tuple[float, float]:
    return mean(regrets), max(regrets)


# --------------------------------------------------------------------------- for people and programs


def report(found: Sequence[Worth]) -> str:
    """A table as Markdown."""
    head = [
        "rule",
        "verdict",
        "weighted, points",
        "plain",
        "better/worse beds",
        "regret without it",
    ]
    head += ["p50 off", "p90 off", "R²", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in found:
        (was, worst), (is_now, worst_now) = one.regret
        verdict = f"{one.verdict} ({one.found_in})" if one.found_in else one.verdict
        cells = [one.rule.name, verdict, _said(one.weighted), _said(one.plain)]
        cells += [f"{one.weighted.better}/{one.weighted.worse} of {one.touched}"]
        cells += [
            f"{is_now:.1f} ({is_now - was:+.1f}), worst {worst_now:.1f} ({worst_now - worst:+.1f})"
        ]
        cells += [_said(one.p50), _said(one.p90), _said(one.r2, 2), f"× {one.slower:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    told = "What having the rule changes, mean ± standard error over beds; above 0 it helps."
    return "\n".join([told, "", *lines])


def _said(effect: Effect, digits: int = 1) -> str:
    return f"{effect.mean:+.{digits}f} ± {effect.error:.{digits}f}"


PAGE = """\
# Rules

What planner, estimator and executor do beyond the paper by rule of thumb, why, and what it is worth. Each rule is a function,
a property or a constant with a name of its own, or a setting; `qlm/rules` lists them. `qlm bench rules` takes each out in turn on
random beds ([what is drawn](simulator.md#beds-that-nobody-tuned-to), cut after some hundred requests), tells what changes, and
writes this page:

    qlm bench rules --beds 16 --seed 21 --json rules.json --page docs/rules.md
    qlm bench rules --beds 16 --seed 22 --add rules.json --json rules.json --page docs/rules.md   # more beds

Worth is what having the rule changes: in weighted attainment, in points, mean ± standard error over {beds} beds, and on how
many of them it is better and worse; then how much nearer the shares of waits within p50 and p90 are to their claims, in points. A
mean within twice its error is noise. *Never at work* says that nothing was different on any bed: such a rule is there for beds
unlike these, or for nothing. Rules that meet failures (trust in an engine, fullness, leases) are no matter of attainment and not
here. Those of batches are at work on beds with batches alone, which `qlm bench finish` draws; here they are taken out only where
`--rule` names them.
"""


def page(pairs: Pairs) -> str:
    """docs/rules.md: all rules by part, with what they are worth where that is known."""
    beds = max((len(of_rule) for of_rule in pairs.values()), default=0)
    lines = [PAGE.format(beds=beds)]
    for part in dict.fromkeys(rule.part for rule in RULES):
        lines += [f"## {part.capitalize()}", "", "| rule | what it does, and why | where | worth |"]
        lines.append("|---|---|---|---|")
        for rule in RULES:
            if rule.part == part:
                where = rule.where.rpartition(".")[2] if not rule.is_setting else rule.where
                worth = _worth_said(rule, pairs.get(rule.name, ()))
                lines.append(f"| `{rule.name}` | {rule.reason} | `{where}` | {worth} |")
        lines.append("")
    return "\n".join(lines)


def _worth_said(rule: Rule, pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "not measured"
    one = worth_of(rule, pairs)
    if rule.bears == "speed":
        return f"{one.verdict}: without it × {one.slower:.2f} seconds"
    if not one.touched:
        return one.verdict
    beds = f"{one.weighted.better} better, {one.weighted.worse} worse"
    near = f"p50 {_said(one.p50)}, p90 {_said(one.p90)}"
    return f"{one.verdict}: {_said(one.weighted)} ({beds}); {near}"
