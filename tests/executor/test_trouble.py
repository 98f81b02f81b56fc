"""What the executor does when engine, gateway or solver fail or leave."""

from __future__ import annotations

from qlm_core.executor import (
    Drain,
    EngineDown,
    EngineReady,
    ExecutorState,
    GatewayLost,
    GatewayUp,
    JobLost,
    JobOutput,
    JobRefused,
)
from qlm_core.messages import ReturnReason, Revoked
from qlm_core.model import GatewayId, ModelName, RequestId
from tests.executor.world import GATEWAY, group, profile, refs, world

M1 = ModelName("m1")


def test_engine_down_returns_everything_and_pulls_nothing_until_ready():
    w = world(profile(slots=2), pull_ahead=1)
    w.queue(group(1), add=refs(1, 5))
    w.grant()
    w.grant()
    w.tell(JobLost(RequestId("1-0"), 1))
    w.tell(EngineDown("crashed"))
    assert w.reasons == dict.fromkeys(("1-0", "1-1", "1-2"), ReturnReason.ENGINE_LOST)
    late = list(w.executor.batch.pulling)
    w.grant(*late)
    assert w.reasons == dict.fromkeys(w.pulled, ReturnReason.ENGINE_LOST)
    count = len(w.pulled)
    w.at(3.0)
    assert len(w.pulled) == count
    w.tell(EngineReady(M1, ()))
    assert len(w.pulled) > count


def test_revoked_in_every_state():
    w = world(profile(slots=1), pull_ahead=1)
    w.queue(group(1), add=refs(1, 3))
    w.tell(Revoked(RequestId("1-0"), 1))
    assert "1-0" in w.executor.batch.pulling
    w.grant("1-0")
    w.grant("1-1")
    w.tell(Revoked(RequestId("1-1"), 1))
    assert not w.executor.batch.held
    w.tell(Revoked(RequestId("1-0"), 0))
    assert w.running == ["1-0"]
    w.tell(Revoked(RequestId("1-0"), 1))
    assert w.aborted == ["1-0"]
    assert w.ended == []
    assert w.returned == []


def test_a_newer_grant_replaces_the_older_attempt():
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    w.grant("1-0")
    assert w.aborted == ["1-0"]
    assert w.submitted == ["1-0", "1-0"]
    w.finish("1-0")
    assert [one.attempt for one in w.ended] == [2]


def test_an_engine_refusal_ends_the_request():
    w = world()
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    w.tell(JobRefused(RequestId("1-0"), 1, 400, "too long"))
    assert w.ended[0].finish_reason == "error"
    assert w.ended[0].error_status == 400


def test_a_lost_gateways_requests_step_aside_and_come_back_in_order():
    other = GatewayId("other")
    w = world(profile(slots=1))
    w.tell(GatewayUp(other))
    w.queue(group(1), add=refs(1, 2, gateway=other))
    w.queue(group(1), group(2), add=refs(2, 1), epoch=2)
    w.tell(GatewayLost(other))
    assert w.pulled == ["1-0", "2-0"]
    w.grant("2-0")
    w.tell(GatewayUp(other))
    w.finish("2-0")
    assert w.pulled == ["1-0", "2-0", "1-0"]


def test_a_gateway_away_for_too_long_is_forgotten():
    w = world()
    w.queue(group(1), add=refs(1, 1))
    w.grant()
    w.tell(GatewayLost(GATEWAY))
    assert w.running == ["1-0"]
    w.tell(GatewayLost(GATEWAY, forget=True))
    assert w.aborted == ["1-0"]
    assert w.returned == []


def test_a_drain_finishes_what_runs_and_returns_the_rest():
    w = world(profile(slots=2), pull_ahead=1)
    w.queue(group(1), add=refs(1, 5))
    w.grant("1-0", "1-1")
    w.grant()
    w.tell(Drain(30.0))
    assert w.reasons == {"1-2": ReturnReason.DRAINING}
    w.finish("1-0")
    w.at(31.0)
    assert w.reasons == dict.fromkeys(("1-2", "1-1"), ReturnReason.DRAINING)
    assert w.drained
    assert w.executor.state is ExecutorState.GONE
    assert w.pulled == ["1-0", "1-1", "1-2"]


def test_reports_at_intervals_with_rates():
    w = world(profile(slots=2))
    w.queue(group(1), add=refs(1, 2))
    w.grant()
    w.at(1.0)
    for id in w.running:
        w.produce(id, 50)
    w.at(2.1)
    state = w.reports[-1].state
    assert state.tokens_per_s == 100.0
    assert state.prompt_tokens_per_s == 2 * 100 / 1.0
    assert state.mean_batch == 2.0
    assert [one.produced_tokens for one in state.running] == [50, 50]


def test_a_prompt_is_counted_once_whatever_comes_beside_its_first_token():
    """Chunks without a token may come before it; an answer that has none comes whole."""
    w = world(profile(slots=2))
    w.queue(group(1), add=refs(1, 2))
    w.grant()
    w.at(1.0)
    first, second = w.running
    w.produce(first, 0)
    w.produce(first, 1)
    w.tell(JobOutput(RequestId(second), w.attempts[second], b"", 0, plain=False, whole=True))
    w.at(2.1)
    assert w.reports[-1].state.prompt_tokens_per_s == 2 * 100 / 1.0
