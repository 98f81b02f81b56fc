"""Whatever the core can say survives the wire; what the wire can say wrongly is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import wire
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import types_pb2 as types_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from protos.wire import bounds
from qlm_core import messages as m
from qlm_core.endpoint import Endpoint
from qlm_core.model import (
    AgentId,
    BatchId,
    Estimate,
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    ModelTier,
    Phase,
    QueuedGroup,
    RequestId,
    RequestMeta,
    RequestRef,
    RunningRequest,
    Slo,
)
from qlm_core.outcome import PullRefusal, ShedReason
from qlm_core.resume import ResumedBy
from tests.manager.conftest import profile

text = st.text(max_size=20)
plain = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)
name = st.text(min_size=1, max_size=20)
count = st.integers(0, bounds.COUNT_MAX)
number = st.integers(0, bounds.NUMBER_MAX)
seconds = st.floats(0, 1e9)
targets = st.floats(1e-9, 1e9)
addresses = st.sampled_from(["h:1", "127.0.0.1:7402", "[::1]:65535"])
ids = name.map(RequestId)

slos = st.builds(Slo, ttft_s=targets, tpot_s=st.none() | targets, e2e_s=st.none() | targets)
estimates = st.lists(seconds, min_size=4, max_size=4).map(
    lambda values: Estimate(
        mean_s=values[0],
        p50_s=sorted(values[1:])[0],
        p90_s=sorted(values[1:])[1],
        p99_s=sorted(values[1:])[2],
    )
)
metas = st.builds(
    RequestMeta,
    id=ids,
    gateway=st.just(GatewayId("g")),
    model=name.map(ModelName),
    slo_class=text,
    slo=slos,
    prompt_tokens=count,
    max_output_tokens=count,
    arrival_s=st.just(0.0),
    tenant=text,
    produced_tokens=count,
    batch=text.map(BatchId),
)
lines = st.integers(0, bounds.LINES_MAX)
means = st.floats(0, bounds.COUNT_MAX)
bulks = st.builds(
    m.BulkWaiting,
    batch=name.map(BatchId),
    model=name.map(ModelName),
    slo_class=text,
    slo=slos,
    lines=lines,
    prompt_tokens_mean=means,
    max_output_tokens=count,
    arrival_s=st.just(0.0),
    tenant=text,
)
finishes = st.just((None, None)) | st.lists(seconds, min_size=2, max_size=2).map(sorted).map(tuple)
facts = st.one_of(
    st.builds(m.GatewayHello, st.just(GatewayId("g")), addresses),
    st.builds(m.Arrived, metas, st.booleans()),
    st.builds(m.Pulled, ids, name.map(AgentId)),
    st.builds(m.Returned, ids, count),
    st.builds(m.FirstToken, ids, seconds),
    st.builds(m.Ended, ids, st.sampled_from(Phase), count, count),
    bulks,
    st.just(m.AnnounceDone()),
)
gateway_orders = st.one_of(
    st.builds(m.EstimateGiven, ids, estimates),
    st.builds(m.ShedOrder, ids, st.sampled_from(ShedReason)),
    st.builds(
        lambda batch, feasible, finish, words: m.BulkEstimate(batch, feasible, *finish, words),
        name.map(BatchId),
        st.booleans(),
        finishes,
        text,
    ),
    st.builds(m.Fleet, st.lists(name.map(ModelName), max_size=3).map(tuple), st.booleans()),
)
states = st.builds(
    InstanceState,
    ready=st.booleans(),
    awake_model=st.none() | name.map(ModelName),
    swapping_to=st.none() | name.map(ModelName),
    tiers=st.dictionaries(name.map(ModelName), st.sampled_from(ModelTier), max_size=3).map(
        lambda tiers: tuple(sorted(tiers.items()))
    ),
    running=st.lists(
        st.builds(RunningRequest, id=ids, group=number.map(GroupId), produced_tokens=count),
        max_size=3,
    ).map(tuple),
    kv_used_tokens=number,
    tokens_per_s=seconds,
    prompt_tokens_per_s=seconds,
    resumed_tokens_per_s=seconds,
    mean_batch=seconds,
    resume_share=st.floats(0.0, 1.0),
    draining=st.booleans(),
)
hellos = st.builds(
    m.AgentHello,
    agent=name.map(AgentId),
    gpu=text,
    profiles=st.lists(st.sampled_from("mn").map(profile), max_size=2).map(tuple),
    epoch=number,
    state=states,
)
groups = st.builds(QueuedGroup, number.map(GroupId), name.map(ModelName), text)
refs = st.builds(
    RequestRef,
    id=ids,
    gateway=name.map(GatewayId),
    group=number.map(GroupId),
    prompt_tokens=count,
    max_output_tokens=count,
    expected_output_tokens=count,
    produced_tokens=count,
    due_s=st.floats(-1e6, 1e6, allow_nan=False),
)
agent_orders = st.one_of(
    st.builds(
        m.QueueUpdate,
        epoch=number,
        snapshot=st.booleans(),
        order=st.none() | st.lists(groups, max_size=3).map(tuple),
        add=st.lists(refs, max_size=3).map(tuple),
        remove=st.lists(ids, max_size=3).map(tuple),
    ),
    st.builds(
        m.Gateways, st.lists(st.tuples(name.map(GatewayId), addresses), max_size=3).map(tuple)
    ),
)
attempts = st.builds(m.Attempt, ids, count, count)
tokens = st.lists(count, max_size=5).map(tuple)
told = st.none() | st.builds(m.TokenIds, count, tokens, tokens)
work_events = st.one_of(
    st.builds(m.WorkHello, name.map(AgentId), st.lists(attempts, max_size=3).map(tuple)),
    st.builds(m.Pull, st.lists(ids, max_size=3).map(tuple)),
    st.builds(
        m.Chunk, ids, count, st.binary(max_size=20), count, st.booleans(), told, st.booleans()
    ),
    st.builds(
        m.AttemptEnded,
        ids,
        count,
        text,
        count,
        count,
        text,
        st.integers(0, 999),
        st.binary(max_size=20),
        st.sampled_from(ResumedBy),
    ),
    st.builds(m.AttemptReturned, ids, count, st.sampled_from(m.ReturnReason), text, seconds),
)
work_orders = st.one_of(
    st.builds(
        m.Payload,
        ids,
        count,
        name.map(ModelName),
        st.sampled_from(Endpoint),
        st.binary(max_size=20),
        text,
        count,
        tokens,
        count,
        st.lists(st.tuples(st.just("traceparent"), plain), max_size=2).map(tuple),
    ),
    st.builds(m.Refused, ids, st.sampled_from(PullRefusal)),
    st.builds(m.Revoked, ids, count),
)


@given(st.lists(facts, max_size=5))
def test_facts_survive(said: list[m.GatewayFact]) -> None:
    sent = gateway_pb.GatewaySessionRequest.FromString(
        wire.facts_to_wire(said, 0.0).SerializeToString()
    )
    assert list(wire.facts_from_wire(sent, GatewayId("g"), 0.0)) == said
    assert sent.ByteSize() <= sum(wire.fact_bytes(fact) for fact in said)


@given(metas, name.map(GatewayId))
def test_what_follows_a_hello_in_its_batch_is_of_that_gateway(
    request: RequestMeta, gateway: GatewayId
) -> None:
    said = [m.GatewayHello(gateway, "host:1"), m.Arrived(request)]
    sent = wire.facts_to_wire(said, 0.0)
    _, arrived = wire.facts_from_wire(sent, GatewayId(""), 0.0)
    assert isinstance(arrived, m.Arrived)
    assert arrived.request.gateway == gateway


@given(st.lists(gateway_orders, max_size=5))
def test_gateway_orders_survive(orders: list[m.GatewayOrder]) -> None:
    sent = gateway_pb.GatewaySessionResponse.FromString(
        wire.gateway_orders_to_wire(orders).SerializeToString()
    )
    assert list(wire.gateway_orders_from_wire(sent)) == orders
    assert sent.ByteSize() <= sum(wire.order_bytes(order) for order in orders)


@given(
    st.builds(
        m.BatchQuestion,
        st.lists(
            st.builds(m.BulkShape, name.map(ModelName), lines, means, count), min_size=1, max_size=3
        ).map(tuple),
        text,
        slos,
    )
)
def test_questions_about_batches_survive(question: m.BatchQuestion) -> None:
    sent = wire.batch_question_to_wire(question).SerializeToString()
    asked = wire.batch_question_from_wire(gateway_pb.EstimateBatchRequest.FromString(sent))
    assert asked == question


@given(estimates, st.booleans(), finishes, text)
def test_answers_about_batches_survive(
    wait: Estimate, feasible: bool, finish: tuple[float | None, float | None], words: str
) -> None:
    answer = m.BatchForecast(wait, feasible, *finish, words)
    sent = wire.batch_forecast_to_wire(answer).SerializeToString()
    assert (
        wire.batch_forecast_from_wire(gateway_pb.EstimateBatchResponse.FromString(sent)) == answer
    )


@given(hellos | states)
def test_agent_messages_survive(message: m.AgentMessage) -> None:
    sent = agent_pb.AgentSessionRequest.FromString(
        wire.agent_message_to_wire(message).SerializeToString()
    )
    assert wire.agent_message_from_wire(sent) == message


@given(agent_orders)
def test_agent_orders_survive(order: m.AgentOrder) -> None:
    sent = agent_pb.AgentSessionResponse.FromString(
        wire.agent_order_to_wire(order, 0.0).SerializeToString()
    )
    assert wire.agent_order_from_wire(sent, 0.0) == order


@given(st.lists(work_events, max_size=5))
def test_work_events_survive(events: list[m.WorkEvent]) -> None:
    sent = work_pb.WorkRequest.FromString(wire.work_to_wire(events).SerializeToString())
    assert list(wire.work_from_wire(sent)) == events


@given(st.lists(work_orders, max_size=5))
def test_work_orders_survive(orders: list[m.WorkOrder]) -> None:
    sent = work_pb.WorkResponse.FromString(wire.work_orders_to_wire(orders).SerializeToString())
    assert list(wire.work_orders_from_wire(sent)) == orders


@given(metas, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e5))
def test_clocks_need_not_agree(
    meta: RequestMeta, sender_s: float, receiver_s: float, waited_s: float
) -> None:
    """How long a request has waited is the same on both sides, whatever their clocks say."""
    from dataclasses import replace

    there = replace(meta, arrival_s=sender_s - waited_s)
    here = wire.meta_from_wire(wire.meta_to_wire(there, sender_s), meta.gateway, receiver_s)
    assert receiver_s - here.arrival_s == pytest.approx(waited_s, abs=1e-6)


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda: wire.phase_from_wire(types_pb.PHASE_UNSPECIFIED), "phase"),
        (
            lambda: list(
                wire.facts_from_wire(
                    gateway_pb.GatewaySessionRequest(facts=[gateway_pb.GatewayFact()]),
                    GatewayId("g"),
                    0.0,
                )
            ),
            "facts",
        ),
        (lambda: wire.agent_message_from_wire(agent_pb.AgentSessionRequest()), "kind"),
        (
            lambda: wire.agent_message_from_wire(
                agent_pb.AgentSessionRequest(
                    hello=agent_pb.AgentHello(
                        agent_id="a",
                        models=[agent_pb.ServedModel(model="m", profile_json=b'{"model": 3}')],
                    )
                )
            ),
            "profile_json",
        ),
        (
            lambda: list(
                wire.work_from_wire(
                    work_pb.WorkRequest(
                        events=[work_pb.WorkEvent(returned=work_pb.AttemptReturned(id="r"))]
                    )
                )
            ),
            "events.returned.reason",
        ),
        (
            lambda: list(
                wire.work_from_wire(
                    work_pb.WorkRequest(
                        events=[
                            work_pb.WorkEvent(ended=work_pb.AttemptEnded(id="r", resumed_by=99))  # type: ignore[arg-type]
                        ]
                    )
                )
            ),
            "events.ended.resumed_by",
        ),
        (
            lambda: list(
                wire.gateway_orders_from_wire(
                    gateway_pb.GatewaySessionResponse(
                        orders=[
                            gateway_pb.GatewayOrder(shed=gateway_pb.Shed(id="r", reason="whim"))
                        ]
                    )
                )
            ),
            "orders.shed.reason",
        ),
    ],
)
def test_what_cannot_be_read_is_named(read: Callable[[], object], named: str) -> None:
    with pytest.raises(wire.WireError, match=named):
        read()


@pytest.mark.parametrize("chat", [True, False])
def test_a_gateway_from_before_other_endpoints_is_understood(chat: bool) -> None:
    old = work_pb.Payload(id="r", attempt=1, model="m", chat=chat, body_json=b"{}")
    message = work_pb.WorkResponse(orders=[work_pb.WorkOrder(payload=old)])
    [order] = wire.work_orders_from_wire(message)
    assert isinstance(order, m.Payload)
    assert order.endpoint is (Endpoint.CHAT_COMPLETIONS if chat else Endpoint.COMPLETIONS)
    assert order.chat is chat
    # And an agent from before them knows a chat.
    [sent] = wire.work_orders_to_wire([order]).orders
    assert sent.payload.chat is chat


def test_an_endpoint_that_nobody_knows_is_refused() -> None:
    odd = work_pb.Payload(id="r", attempt=1, model="m", body_json=b"{}", endpoint=99)  # type: ignore[arg-type]
    message = work_pb.WorkResponse(orders=[work_pb.WorkOrder(payload=odd)])
    with pytest.raises(bounds.WireError, match=r"orders\.payload\.endpoint: 99"):
        list(wire.work_orders_from_wire(message))
