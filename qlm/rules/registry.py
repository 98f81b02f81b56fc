"""A rule of thumb as a value: why it is there, where it stands in the code or in the settings, and what stands there without it.

Nothing in the code knows of this. A rule is a function, a method, a property or a constant with a name of its own; whoever wants
to know what it is worth puts something else in its place for one simulated run, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import msgspec

from qlm_core.errors import ConfigError
from qlm_core.sim.scenario import Scenario

Part = Literal["grouping", "planner", "estimator", "executor", "batches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of thumb.

    Attributes:
        reason: why it is there, in a sentence that begins with what it does.
        where: `module:attribute`, the attribute with dots within a class; or a setting, the path of a key in a scenario.
        also: other modules that know a constant by the same name.
        without: what stands there without the rule.
        bears: what it is there for, if that is neither attainment nor estimates: `speed` of the planner.
    """

    name: str
    part: Part
    reason: str
    where: str
    without: Any
    also: tuple[str, ...] = ()
    bears: Literal["", "speed"] = ""

    @property
    def is_setting(self) -> bool:
        """Whether it is a number of the configuration."""
        return ":" not in self.where


def owners_of(rule: Rule) -> tuple[list[Any], str]:
    """The module or class that holds a rule, other modules that do, and the name under which they do.

    Raises:
        AttributeError, ModuleNotFoundError: the registry is behind the code.
    """
    module, _, path = rule.where.partition(":")
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    owners = [owner, *map(import_module, rule.also)]
    for one in owners:
        if name not in vars(one):
            raise AttributeError(f"{rule.name}: {one.__name__} has no {name} any more")
    return owners, name


@contextmanager
def taken_out(rule: Rule | None) -> Iterator[None]:
    """A rule of the code is out within this block; None and settings change nothing here."""
    if rule is None or rule.is_setting:
        yield
        return
    owners, name = owners_of(rule)
    kept = [vars(owner)[name] for owner in owners]
    for owner in owners:
        setattr(owner, name, rule.without)
    try:
        yield
    finally:
        for owner, value in zip(owners, kept, strict=True):
            setattr(owner, name, value)


def scenario_without(scenario: Scenario, rule: Rule | None) -> Scenario:
    """The scenario with the rule's setting changed; as it is for None and rules of the code."""
    if rule is None or not rule.is_setting:
        return scenario
    changed: Scenario = _changed(scenario, rule.where.split("."), rule)
    return changed


def _changed(section: Any, path: list[str], rule: Rule) -> Any:
    head, *rest = path
    if head not in section.__struct_fields__:
        raise ConfigError(f"{rule.name}: {rule.where}: there is no {head}.")
    value = _changed(getattr(section, head), rest, rule) if rest else rule.without
    return msgspec.structs.replace(section, **{head: value})
