"""The contract between the simulated world and whoever decides in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from qlm_core.config import ExecutorConfig, SolverConfig
from qlm_core.manager.events import Effect, Event
from qlm_core.model import RequestMeta, SloClass
from qlm_core.sim.instance import EngineOptions


class Brain(Protocol):
    """Decides for the fleet: the Manager's contract."""

    def handle(self, event: Event, *, now_s: float) -> list[Effect]:
        """Take one event and say what to do."""

    @property
    def wakeup_s(self) -> float | None:
        """When `handle(Wakeup())` is due; None while nothing is awaited."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A request before it arrives, and how many tokens it will produce."""

    request: RequestMeta
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a brain is made from.

    Attributes:
        foresee: all requests of the run in order of arrival. For clairvoyance only: they are drawn as they arrive unless
            somebody asks, and kept from then on.
    """

    config: SolverConfig
    classes: tuple[SloClass, ...]
    foresee: Callable[[], Sequence[Foreseen]]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A brain and what engines and executors under it can do.

    Attributes:
        about: one line for people.
        takes_all: requests go to the engine's own queue at once.
        executor_changes: settings of the executor that the policy implies.
    """

    name: str
    about: str
    build: Callable[[Context], Brain]
    engine: EngineOptions = field(default_factory=EngineOptions)
    takes_all: bool = False
    executor_changes: dict[str, Any] = field(default_factory=dict)

    def executor(self, config: ExecutorConfig) -> ExecutorConfig:
        """The executor's settings under this policy."""
        return msgspec.structs.replace(config, **self.executor_changes)
