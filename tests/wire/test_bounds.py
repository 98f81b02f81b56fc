"""What is out of range on the wire is refused by the name of its field, and an honest peer sends nothing that is."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from protos import wire
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.wire import bounds
from qlm_core import messages as m
from qlm_core.model import (
    BatchId,
    Estimate,
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    Phase,
    RequestId,
    RequestMeta,
    RequestRef,
    RunningRequest,
    Slo,
)
from tests.manager.conftest import profile

LONG = "x" * (bounds.NAME_CHARS_MAX + 1)
SLO = {"ttft_s": 1.0}
META = {"id": "r", "model": "m", "slo": SLO}
BULK = {"batch_id": "b", "model": "m", "slo": SLO}

wild = st.integers(-(2**70), 2**70)
odd = st.floats() | st.sampled_from([nan, inf, -inf, 1e300, -1e300, 5e-324])
words = st.text(st.characters(), max_size=8) | st.just("\ud800" * 20_000)
ids = st.just(RequestId("r"))
facts = st.one_of(
    st.builds(
        m.Arrived,
        st.builds(
            RequestMeta,
            id=ids,
            gateway=st.just(GatewayId("g")),
            model=st.just(ModelName("m")),
            slo_class=st.just("c"),
            slo=st.just(Slo(ttft_s=1.0)),
            prompt_tokens=wild,
            max_output_tokens=wild,
            arrival_s=odd,
            produced_tokens=wild,
        ),
    ),
    st.builds(m.FirstToken, ids, odd),
    st.builds(m.Ended, ids, st.sampled_from(Phase), wild, wild),
    st.builds(m.Returned, ids, wild),
    st.builds(
        m.BulkWaiting,
        batch=st.just(BatchId("b")),
        model=st.just(ModelName("m")),
        slo_class=st.just("c"),
        slo=st.just(Slo(ttft_s=1.0)),
        lines=wild,
        prompt_tokens_mean=odd,
        max_output_tokens=wild,
        arrival_s=odd,
    ),
)
finishes = st.builds(
    lambda spans, words: m.BulkEstimate(BatchId("b"), True, *sorted(spans), words),
    st.lists(st.floats(allow_nan=False), min_size=2, max_size=2),
    words,
)
estimates = st.lists(st.floats(allow_nan=False), min_size=4, max_size=4).map(
    lambda some: Estimate(
        mean_s=some[0], **dict(zip(("p50_s", "p90_s", "p99_s"), sorted(some[1:]), strict=True))
    )
)
states = st.builds(
    InstanceState,
    ready=st.booleans(),
    awake_model=st.just(ModelName("m")),
    running=st.lists(
        st.builds(RunningRequest, id=ids, group=st.just(GroupId(1)), produced_tokens=wild),
        max_size=2,
    ).map(tuple),
    kv_used_tokens=wild,
    tokens_per_s=odd,
    prompt_tokens_per_s=odd,
    resumed_tokens_per_s=odd,
    mean_batch=odd,
    resume_share=odd,
)
refs = st.builds(
    RequestRef,
    id=ids,
    gateway=st.just(GatewayId("g")),
    group=st.just(GroupId(1)),
    prompt_tokens=wild,
    max_output_tokens=wild,
    expected_output_tokens=wild,
    produced_tokens=wild,
    due_s=odd,
)
work = st.one_of(
    st.builds(m.Chunk, ids, st.just(1), st.just(b"{}"), wild),
    st.builds(
        m.AttemptEnded,
        id=ids,
        attempt=st.just(1),
        finish_reason=words,
        prompt_tokens=wild,
        output_tokens=wild,
        error=words,
        error_status=wild,
    ),
    st.builds(m.AttemptReturned, ids, st.just(1), st.sampled_from(m.ReturnReason), words, odd),
)


@given(st.lists(facts, max_size=3), st.lists(estimates, max_size=3), st.lists(finishes, max_size=2))
def test_whatever_was_counted_between_gateway_and_solver_arrives(
    said: list[m.GatewayFact], guesses: list[Estimate], ends: list[m.BulkEstimate]
) -> None:
    sent = wire.facts_to_wire(said, 0.0)
    assert len(list(wire.facts_from_wire(sent, GatewayId("g"), 0.0))) == len(said)
    waits = [m.EstimateGiven(RequestId("r"), one) for one in guesses]
    orders = wire.gateway_orders_to_wire([*waits, *ends])
    assert len(list(wire.gateway_orders_from_wire(orders))) == len(guesses) + len(ends)


@given(states, st.lists(refs, max_size=3), odd)
def test_whatever_was_counted_between_solver_and_agent_arrives(
    state: InstanceState, window: list[RequestRef], now_s: float
) -> None:
    wire.agent_message_from_wire(wire.agent_message_to_wire(state))
    update = m.QueueUpdate(epoch=1, add=tuple(window))
    sent = wire.agent_order_to_wire(update, now_s)
    got = wire.agent_order_from_wire(sent, 0.0)
    assert isinstance(got, m.QueueUpdate)
    assert len(got.add) == len(window)


@given(st.lists(work, max_size=3))
def test_whatever_an_engine_said_arrives(events: list[m.WorkEvent]) -> None:
    assert len(list(wire.work_from_wire(wire.work_to_wire(events)))) == len(events)


def read(message: Message) -> None:
    """Everything that a message of any conversation says."""
    match message:
        case gateway_pb.GatewaySessionRequest():
            list(wire.facts_from_wire(message, GatewayId("g"), 0.0))
        case gateway_pb.GatewaySessionResponse():
            list(wire.gateway_orders_from_wire(message))
        case agent_pb.AgentSessionRequest():
            wire.agent_message_from_wire(message)
        case agent_pb.AgentSessionResponse():
            wire.agent_order_from_wire(message, 0.0)
        case work_pb.WorkRequest():
            list(wire.work_from_wire(message))
        case work_pb.WorkResponse():
            list(wire.work_orders_from_wire(message))
        case gateway_pb.EstimateBatchRequest():
            wire.batch_question_from_wire(message)
        case gateway_pb.EstimateBatchResponse():
            wire.batch_forecast_from_wire(message)


def fact(**said: Any) -> Message:
    return ParseDict({"facts": [said]}, gateway_pb.GatewaySessionRequest())


def order(**said: Any) -> Message:
    return ParseDict({"orders": [said]}, gateway_pb.GatewaySessionResponse())


def question(**said: Any) -> Message:
    part = {"model": "m", "lines": 1}
    return ParseDict({"parts": [part], "slo": SLO} | said, gateway_pb.EstimateBatchRequest())


def forecast(**said: Any) -> Message:
    return ParseDict(said, gateway_pb.EstimateBatchResponse())


def report(**said: Any) -> Message:
    return ParseDict({"report": said}, agent_pb.AgentSessionRequest())


def hello(**said: Any) -> Message:
    return ParseDict({"hello": {"agent_id": "a"} | said}, agent_pb.AgentSessionRequest())


def with_profile(data: bytes) -> Message:
    served = agent_pb.ServedModel(model="m", profile_json=data)
    return agent_pb.AgentSessionRequest(hello=agent_pb.AgentHello(agent_id="a", models=[served]))


def queue(**said: Any) -> Message:
    return ParseDict({"queue": said}, agent_pb.AgentSessionResponse())


def event(**said: Any) -> Message:
    return ParseDict({"events": [said]}, work_pb.WorkRequest())


def payload(**said: Any) -> Message:
    whole = {"id": "r", "model": "m"} | said
    return ParseDict({"orders": [{"payload": whole}]}, work_pb.WorkResponse())


PROFILE = msgspec.to_builtins(profile("m"))
REFUSED = {
    "request.id: empty": fact(arrived=META | {"id": ""}),
    "request.model": fact(arrived=META | {"model": LONG}),
    "request.tenant": fact(arrived=META | {"tenant": LONG}),
    "request.prompt_tokens": fact(arrived=META | {"prompt_tokens": 2**31}),
    "request.waited_s: -1": fact(arrived=META | {"waited_s": -1.0}),
    "request.waited_s: nan": fact(arrived=META | {"waited_s": "NaN"}),
    "request.slo.ttft_s: 0": fact(arrived=META | {"slo": {}}),
    "request.slo.tpot_s: inf": fact(arrived=META | {"slo": SLO | {"tpot_s": "Infinity"}}),
    "request.slo.e2e_s: -1": fact(arrived=META | {"slo": SLO | {"e2e_s": -1.0}}),
    "pulled.agent_id": fact(pulled={"id": "r"}),
    "first_token.ttft_s": fact(first_token={"id": "r", "ttft_s": 1e10}),
    "ended.usage.output_tokens": fact(
        ended={"id": "r", "phase": "PHASE_FAILED", "usage": {"output_tokens": 2**32 - 1}}
    ),
    "returned.produced_tokens": fact(returned={"id": "r", "produced_tokens": 2**31}),
    "hello.gateway_id": fact(hello={"work_address": "h:1"}),
    "hello.work_address": fact(hello={"gateway_id": "g", "work_address": "h:²"}),
    "request.batch_id": fact(arrived=META | {"batch_id": LONG}),
    "bulk_waiting.batch_id": fact(bulk_waiting=BULK | {"batch_id": ""}),
    "bulk_waiting.model": fact(bulk_waiting=BULK | {"model": ""}),
    "bulk_waiting.tenant": fact(bulk_waiting=BULK | {"tenant": LONG}),
    "bulk_waiting.lines": fact(bulk_waiting=BULK | {"lines": bounds.LINES_MAX + 1}),
    "bulk_waiting.slo.ttft_s": fact(bulk_waiting=BULK | {"slo": {}}),
    "bulk_waiting.prompt_tokens_mean: nan": fact(bulk_waiting=BULK | {"prompt_tokens_mean": "NaN"}),
    "bulk_waiting.max_output_tokens": fact(bulk_waiting=BULK | {"max_output_tokens": 2**31}),
    "bulk_waiting.waited_s: -1": fact(bulk_waiting=BULK | {"waited_s": -1.0}),
    "bulk_estimate.batch_id": order(bulk_estimate={}),
    "finish: its quantiles": order(
        bulk_estimate={"batch_id": "b", "finish": {"finish_p50_s": 2.0, "finish_p90_s": 1.0}}
    ),
    "finish.explanation": order(
        bulk_estimate={"batch_id": "b", "finish": {"explanation": "x" * 16_385}}
    ),
    "parts: empty": question(parts=[]),
    "parts: 1001": question(parts=[{"model": "m"}] * (bounds.BATCH_MODELS_MAX + 1)),
    "parts.model": question(parts=[{}]),
    "parts.lines": question(parts=[{"model": "m", "lines": 2**31}]),
    "parts.prompt_tokens_mean": question(parts=[{"model": "m", "prompt_tokens_mean": -1.0}]),
    "slo.ttft_s": question(slo={}),
    "finish: its quantiles nan": forecast(finish={"finish_p50_s": "NaN", "finish_p90_s": 1.0}),
    "estimate: its quantiles": order(estimate={"id": "r", "estimate": {"p50_s": 1.0}}),
    "estimate.mean_s": order(estimate={"id": "r", "estimate": {"mean_s": "NaN"}}),
    "fleet.models": order(fleet={"models": ["m", ""]}),
    "shed.id": order(shed={"reason": "rejected-other"}),
    "hello.agent_id: empty": hello(agent_id=""),
    "hello.agent_id: 1025": hello(agent_id=LONG),
    "hello.epoch": hello(epoch=2**64 - 1),
    "hello.models: empty": hello(models=[{}]),
    "hello.models: 10001": hello(models=[{"model": "m"}] * (bounds.MODELS_MAX + 1)),
    "profile_json: Input data was truncated": with_profile(b"{"),
    "profile_json: Expected `object`": with_profile(b"[" * 100_000),
    "profile_json: maximum recursion": with_profile(b'{"x":' * 100_000),
    "kv_cache_tokens": with_profile(msgspec.json.encode(PROFILE | {"kv_cache_tokens": 2**62})),
    "cold_s": with_profile(msgspec.json.encode(PROFILE | {"cold_s": 1e300})),
    "base_ms": with_profile(
        msgspec.json.encode(PROFILE | {"iteration": PROFILE["iteration"] | {"base_ms": 1e300}})
    ),
    "report.tokens_per_s: nan": report(tokens_per_s="NaN"),
    "report.mean_batch: -1": report(mean_batch=-1),
    "report.resume_share: 1.5": report(resume_share=1.5),
    "report.kv_used_tokens": report(kv_used_tokens=2**63),
    "report.running.id": report(running=[{}]),
    "report.running.group_id": report(running=[{"id": "r", "group_id": 2**64 - 1}]),
    "queue.epoch": queue(epoch=2**63),
    "queue.add.due_in_s: nan": queue(add=[{"id": "r", "gateway_id": "g", "due_in_s": "NaN"}]),
    "queue.order.model": queue(order_changed=True, order=[{}]),
    "queue.remove": queue(remove=[""]),
    "gateways.address": ParseDict(
        {"gateways": {"gateways": [{"gateway_id": "g", "address": "dns:///x"}]}},
        agent_pb.AgentSessionResponse(),
    ),
    "events.chunk.tokens": event(chunk={"id": "r", "tokens": 2**32 - 1}),
    "events.chunk.ids.output": event(chunk={"id": "r", "ids": {"output": [1, 2**31]}}),
    "events.ended.usage.prompt_tokens": event(
        ended={"id": "r", "usage": {"prompt_tokens": 2**31}}
    ),
    "events.ended.error_status": event(ended={"id": "r", "error_status": 1000}),
    "events.ended.error: 16385": event(ended={"id": "r", "error": "x" * 16_385}),
    "events.returned.rest_s": event(
        returned={"id": "r", "reason": "RETURN_REASON_EVICTED", "rest_s": "NaN"}
    ),
    "events.pull.ids: empty": event(pull={"ids": [""]}),
    "orders.payload.model": payload(model=""),
    "orders.payload.resume_ids": payload(resume_ids=[2**32 - 1]),
    "orders.payload.headers": payload(headers=[{"name": "a", "value": "b\r\nc: d"}]),
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_out_of_range_is_refused_by_name(named: str) -> None:
    with pytest.raises(wire.WireError) as refused:
        read(REFUSED[named])
    assert named in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_list_without_end_is_refused() -> None:
    ids = ["r"] * (bounds.ITEMS_MAX + 1)
    with pytest.raises(wire.WireError, match=r"events\.pull\.ids: 1000001 entries"):
        read(work_pb.WorkRequest(events=[work_pb.WorkEvent(pull=work_pb.Pull(ids=ids))]))


@pytest.mark.parametrize(
    "orders",
    [
        lambda: list(wire.gateway_orders_from_wire(None)),  # type: ignore[arg-type]
        lambda: list(wire.work_orders_from_wire(None)),  # type: ignore[arg-type]
        lambda: wire.agent_order_from_wire(None, 0.0),  # type: ignore[arg-type]
    ],
)
def test_what_was_no_message_is_refused(orders: Callable[[], object]) -> None:
    with pytest.raises(wire.WireError, match="message: not of this stream's type"):
        orders()
