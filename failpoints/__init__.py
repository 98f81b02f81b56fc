"""Named moments at which a process can be made to die, stop, fail or be late, so that tests reach what chance does not.

Off unless the environment variable `QLM_FAILPOINTS` was set when the process started; then it holds rules such as

    gateway.store.before_commit=kill@3;agents.gateway_link.after_pull=pause:7

each a moment, what happens there, and at which pass of this process (the first without one). A moment is marked in the code by
`failpoints.at(NAME)`, which does nothing while they are off. The core has none, since it decides and does not act.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from failpoints.moments import MOMENTS as MOMENTS
from qlm_core.errors import ConfigError, QlmError

# Says whose package this is to `qlm.overwritten`, since others may have the same name.
DISTRIBUTION = "qlm-serving"
VARIABLE = "QLM_FAILPOINTS"
ACTIONS = ("kill", "pause", "error", "delay")

_RULE = re.compile(
    r"(?P<name>[^=@:]+)=(?P<action>[a-z]+)(:(?P<seconds>[0-9]+(\.[0-9]+)?))?(@(?P<nth>[1-9][0-9]*))?"
)


class FailpointError(QlmError):
    """What the action `error` raises where the moment names no kind of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What happens at a moment.

    Attributes:
        action: `kill` (SIGKILL to itself), `pause` (SIGSTOP to itself), `error` (raises), `delay` (blocks the thread).
        seconds: of a delay; of a pause, after which it goes on. 0 for a pause that somebody else ends.
        nth: the pass of this process at which it happens, from 1; it happens once.
    """

    action: str
    seconds: float = 0.0
    nth: int = 1


def parse(text: str) -> dict[str, Rule]:
    """The rules of the environment variable by moment. Raises ConfigError naming the rule and the remedy."""
    rules = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        found = _RULE.fullmatch(part)
        if found is None or found["action"] not in ACTIONS:
            form = f"NAME=ACTION[:SECONDS][@NTH], with an action of {', '.join(ACTIONS)}"
            raise ConfigError(f"{VARIABLE}: {part!r} is no rule. Write {form}.")
        if found["name"] not in MOMENTS:
            raise ConfigError(
                f"{VARIABLE}: there is no moment {found['name']!r}. docs/guarantees.md lists them."
            )
        rules[found["name"]] = Rule(
            action=found["action"],
            seconds=float(found["seconds"] or 0.0),
            nth=int(found["nth"] or 1),
        )
    return rules


class Armed:
    """Counts the passes of each moment and does what the rules say."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)
        self._passes = dict.fromkeys(rules, 0)

    def at(self, name: str, raises: type[Exception] = FailpointError) -> None:
        """A moment is passed."""
        rule = self._rules.get(name)
        if rule is None:
            return
        self._passes[name] += 1
        if self._passes[name] != rule.nth:
            return
        # Not by way of logging, which might still hold the line back when the process dies.
        os.write(2, f"failpoint {name}: {rule.action}\n".encode())
        self._act(rule, name, raises)

    def _act(self, rule: Rule, name: str, raises: type[Exception]) -> None:
        match rule.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "pause":
                if rule.seconds:
                    _continue_after(rule.seconds)
                os.kill(os.getpid(), signal.SIGSTOP)
            case "delay":
                time.sleep(rule.seconds)
            case "error":
                raise raises(f"failpoint {name}")


def _continue_after(seconds: float) -> None:
    """Have somebody else end our pause."""
    script = f"sleep {seconds:g}; kill -CONT {os.getpid()}"
    subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)  # noqa: S603


def _off(name: str, raises: type[Exception] = FailpointError) -> None:
    """A moment is passed and nothing happens."""


at: Callable[..., None] = _off


def arm(text: str) -> None:
    """Let the rules count from now on; none if it is empty. Raises ConfigError."""
    global at  # noqa: PLW0603  # one switch for the process, as the environment is
    rules = parse(text)
    at = Armed(rules).at if rules else _off


arm(os.environ.get(VARIABLE, ""))
