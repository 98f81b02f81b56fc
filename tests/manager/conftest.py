"""A bare Manager with small builders: no event loop, no network, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from qlm_core.config import ReplanConfig, SolverConfig
from qlm_core.manager import Manager
from qlm_core.manager.events import (
    AgentJoined,
    Effect,
    Event,
    GatewayJoined,
    GatewaySaid,
    TellAgent,
    TellGateway,
)
from qlm_core.messages import (
    AgentHello,
    AgentOrder,
    AnnounceDone,
    Arrived,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
    QueueUpdate,
)
from qlm_core.model import (
    AgentId,
    GatewayId,
    InstanceState,
    ModelName,
    ModelTier,
    RequestId,
    RequestMeta,
    Slo,
    SloClass,
)
from qlm_core.profile import EngineProfile, IterationTime

CLASSES = (
    SloClass(name="interactive", slo=Slo(ttft_s=20.0), weight=4.0),
    SloClass(name="batch-1", slo=Slo(ttft_s=60.0), weight=2.0),
    SloClass(name="batch-2", slo=Slo(ttft_s=3600.0), weight=1.0),
)
GATEWAY = GatewayId("g")


def profile(
    model: str, *, speed: float = 1.0, kv_cache_tokens: int = 100_000, slots: int = 64
) -> EngineProfile:
    """A profile with round numbers: about 20 ms an iteration for a batch of 64."""
    return EngineProfile(
        model=model,
        gpu="test",
        iteration=IterationTime(
            base_ms=10.0 / speed,
            per_token_ms=0.05 / speed,
            per_sequence_ms=0.1 / speed,
            per_context_token_ms=1e-4 / speed,
        ),
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=slots,
        cold_s=30.0,
        wake_s=3.0,
        sleep_s=1.0,
    )


@dataclass
class Bench:
    """A Manager, its clock, and what it has said."""

    manager: Manager
    now_s: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    ids: int = 0

    def post(self, event: Event, *, after_s: float = 0.0) -> list[Effect]:
        """Hand an event over, `after_s` later than the last one."""
        self.now_s += after_s
        effects = self.manager.handle(event, now_s=self.now_s)
        self.effects.extend(effects)
        return effects

    def fact(self, fact: GatewayFact, *, after_s: float = 0.0) -> list[Effect]:
        """Post a fact of the one gateway."""
        return self.post(GatewaySaid(GATEWAY, fact), after_s=after_s)

    def gateway(self) -> None:
        """The gateway joins and has nothing to announce."""
        self.post(GatewayJoined(GatewayHello(GATEWAY, "127.0.0.1:1")))
        self.fact(AnnounceDone())

    def agent(
        self,
        name: str,
        *models: str,
        awake: str | None = None,
        speed: float = 1.0,
        slots: int = 64,
    ) -> AgentId:
        """An agent joins that serves `models` and has the first of them awake."""
        id = AgentId(name)
        hello = AgentHello(
            agent=id,
            gpu="test",
            profiles=tuple(profile(model, speed=speed, slots=slots) for model in models),
            epoch=0,
            state=InstanceState(
                ready=True,
                awake_model=ModelName(awake or models[0]),
                tiers=tuple((ModelName(model), ModelTier.ASLEEP) for model in models),
            ),
        )
        self.post(AgentJoined(hello))
        return id

    def request(
        self, model: str = "m", slo_class: str = "interactive", *, prompt_tokens: int = 100
    ) -> RequestMeta:
        """A fresh request that arrives now."""
        self.ids += 1
        slo = next(known.slo for known in CLASSES if known.name == slo_class)
        return RequestMeta(
            id=RequestId(f"r{self.ids}"),
            gateway=GATEWAY,
            model=ModelName(model),
            slo_class=slo_class,
            slo=slo,
            prompt_tokens=prompt_tokens,
            max_output_tokens=1000,
            arrival_s=self.now_s,
        )

    def arrive(
        self, model: str = "m", slo_class: str = "interactive", count: int = 1
    ) -> list[RequestId]:
        """So many requests arrive at once."""
        requests = [self.request(model, slo_class) for _ in range(count)]
        for request in requests:
            self.fact(Arrived(request))
        return [request.id for request in requests]

    def to_agent(self, id: AgentId) -> list[AgentOrder]:
        """Everything an agent was told."""
        return [
            effect.order
            for effect in self.effects
            if isinstance(effect, TellAgent) and effect.agent == id
        ]

    def to_gateway(self) -> list[GatewayOrder]:
        """Everything the gateway was told."""
        return [effect.order for effect in self.effects if isinstance(effect, TellGateway)]

    def window(self, id: AgentId) -> dict[RequestId, int]:
        """What an agent's window holds after all updates: request → group."""
        window: dict[RequestId, int] = {}
        for order in self.to_agent(id):
            if isinstance(order, QueueUpdate):
                for gone in order.remove:
                    window.pop(gone, None)
                for ref in order.add:
                    window[ref.id] = ref.group
        return window


@pytest.fixture
def bench() -> Bench:
    """A settled Manager with one gateway and no agent."""
    config = SolverConfig(replan=ReplanConfig(min_interval_s=0.1))
    made = Bench(Manager(config, CLASSES, now_s=0.0))
    made.gateway()
    return made
