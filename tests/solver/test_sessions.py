"""The solver's gRPC edges, over real loopback gRPC, with a planner that runs in line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import msgspec
import pytest

from protos import pulse, wire
from protos.doors import Rejections
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from qlm_core.config import Config, SolverLimits
from qlm_core.executor.window import Window
from qlm_core.messages import (
    AgentHello,
    AnnounceDone,
    Arrived,
    BatchQuestion,
    BulkEstimate,
    BulkShape,
    BulkWaiting,
    EstimateGiven,
    Fleet,
    GatewayFact,
    GatewayHello,
    GatewayOrder,
    Gateways,
    QueueUpdate,
)
from qlm_core.model import (
    AgentId,
    BatchId,
    GatewayId,
    GroupId,
    InstanceState,
    ModelName,
    QueuedGroup,
    RequestId,
    RequestMeta,
    RequestRef,
    Slo,
)
from qlm_core.planning import Plan, PlanResult, Problem, Termination, evaluate, greedy
from solver.driver import Driver
from solver.sessions import AgentSessions, GatewaySessions, parts
from tests.manager.conftest import profile


class InlinePlanner:
    """Plans greedily on the spot."""

    async def solve(
        self,
        problem: Problem,
        *,
        warm: Plan,
        prove: bool,
        duals: Sequence[float],
        on_improvement: Callable[[Plan, float], None],
    ) -> PlanResult:
        """One greedy plan."""
        plan = greedy(problem)
        return PlanResult(
            plan=plan,
            objective=evaluate(problem, plan).objective,
            lower_bound=None,
            termination=Termination.LIMIT,
            backend="greedy",
        )


@pytest.fixture
async def solver() -> AsyncIterator[grpc.aio.Channel]:
    """A solver on an ephemeral port, as a channel to it."""
    limits = SolverLimits(agents_max=2, gateways_max=1)
    config = Config.from_mapping({"solver": {"agent_lease_s": 1.5}})
    driver = Driver(config, InlinePlanner(), clock=time.monotonic)
    server = grpc.aio.server()
    gateway_grpc.add_GatewaySessionServiceServicer_to_server(
        GatewaySessions(driver, limits, Rejections()), server
    )
    agent_grpc.add_AgentSessionServiceServicer_to_server(
        AgentSessions(driver, limits, Rejections()), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)
    await driver.close()


def hello(name: str = "a", model: str = "m") -> agent_pb.AgentSessionRequest:
    """An agent's first message."""
    return wire.agent_message_to_wire(
        AgentHello(
            agent=AgentId(name),
            gpu="test",
            profiles=(profile(model),),
            epoch=0,
            state=InstanceState(ready=True, awake_model=ModelName(model)),
        )
    )


def request(id: str, model: str = "m") -> RequestMeta:
    """A request that arrives now."""
    return RequestMeta(
        id=RequestId(id),
        gateway=GatewayId("g"),
        model=ModelName(model),
        slo_class="interactive",
        slo=Slo(ttft_s=20.0),
        prompt_tokens=100,
        max_output_tokens=100,
        arrival_s=0.0,
    )


def facts(*said: GatewayFact) -> gateway_pb.GatewaySessionRequest:
    """A gateway's message."""
    return wire.facts_to_wire(said, 0.0)


async def test_a_request_travels_from_gateway_to_agent(solver: grpc.aio.Channel) -> None:
    agent = agent_grpc.AgentSessionServiceStub(solver).AgentSession()
    await agent.write(hello())
    gateway = gateway_grpc.GatewaySessionServiceStub(solver).GatewaySession()
    await gateway.write(facts(GatewayHello(GatewayId("g"), "127.0.0.1:9"), AnnounceDone()))
    await gateway.write(facts(Arrived(request("r1"))))
    told = []
    while not any(isinstance(order, QueueUpdate) and order.add for order in told):
        told.append(wire.agent_order_from_wire(await asyncio.wait_for(agent.read(), 5.0), 0.0))
    assert Gateways((("g", "127.0.0.1:9"),)) in told  # type: ignore[arg-type]
    update = next(order for order in told if isinstance(order, QueueUpdate) and order.add)
    assert [ref.id for ref in update.add] == ["r1"]
    heard = []
    while not any(isinstance(order, EstimateGiven) for order in heard):
        heard.extend(wire.gateway_orders_from_wire(await asyncio.wait_for(gateway.read(), 5.0)))
    assert Fleet((ModelName("m"),)) in heard
    agent.cancel()
    gateway.cancel()


def ref(id: str) -> RequestRef:
    return RequestRef(RequestId(id), GatewayId("g"), GroupId(1), 10, 100, 50, 0, 60.0)


def test_a_large_update_is_told_in_parts() -> None:
    order = (QueuedGroup(GroupId(1), ModelName("m"), "batch-1"),)
    gone = tuple(RequestId(f"g{index}") for index in range(5))
    new = tuple(ref(f"n{index}") for index in range(7))
    update = QueueUpdate(epoch=3, snapshot=True, order=order, add=new, remove=gone)
    assert parts(update, 12) == [update]
    told = parts(update, 3)
    assert all(isinstance(one, QueueUpdate) and one.epoch == 3 for one in told)
    updates = [one for one in told if isinstance(one, QueueUpdate)]
    assert [(len(one.remove), len(one.add)) for one in updates] == [
        (3, 0),
        (2, 0),
        (0, 3),
        (0, 3),
        (0, 1),
    ]
    assert [(one.snapshot, one.order) for one in updates[:2]] == [(True, order), (False, None)]
    assert sum((one.remove for one in updates), ()) == gone
    assert sum((one.add for one in updates), ()) == new
    # One after the other they leave what the whole one leaves.
    windows = [Window(), Window()]
    for window, orders in zip(windows, ([update], updates), strict=True):
        window.set_reachable(GatewayId("g"), True)
        for one in orders:
            window.apply(one, {})
    assert [len(window) for window in windows] == [7, 7]
    assert windows[0].first(GroupId(1)) == windows[1].first(GroupId(1)) == ref("n0")


async def test_view_explain_and_estimate_answer(solver: grpc.aio.Channel) -> None:
    stub = gateway_grpc.GatewaySessionServiceStub(solver)
    gateway = stub.GatewaySession()
    await gateway.write(facts(GatewayHello(GatewayId("g"), "127.0.0.1:9"), AnnounceDone()))
    await gateway.write(facts(Arrived(request("r1"))))
    await asyncio.wait_for(gateway.read(), 5.0)
    answer = await _until_known(stub, "r1")
    assert answer["state"] == "unplaced"
    view = msgspec.json.decode((await stub.View(gateway_pb.ViewRequest())).view_json)
    assert view["waiting"] == 1
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await stub.Explain(gateway_pb.ExplainRequest(id="nobody"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    probe = gateway_pb.EstimateRequest(request=wire.meta_to_wire(request("x"), 0.0))
    with pytest.raises(grpc.aio.AioRpcError) as unserved:
        await stub.Estimate(probe)
    assert unserved.value.code() is grpc.StatusCode.NOT_FOUND
    agent = agent_grpc.AgentSessionServiceStub(solver).AgentSession()
    await agent.write(hello())
    await asyncio.wait_for(agent.read(), 5.0)
    estimate = (await stub.Estimate(probe)).estimate
    assert 0.0 <= estimate.p50_s <= estimate.p90_s <= estimate.p99_s
    agent.cancel()
    gateway.cancel()


async def test_what_other_instances_would_change_is_answered(solver: grpc.aio.Channel) -> None:
    stub = gateway_grpc.GatewaySessionServiceStub(solver)
    agent = agent_grpc.AgentSessionServiceStub(solver).AgentSession()
    await agent.write(hello())
    await asyncio.wait_for(agent.read(), 5.0)
    gateway = stub.GatewaySession()
    await gateway.write(facts(GatewayHello(GatewayId("g"), "127.0.0.1:9"), AnnounceDone()))
    await gateway.write(facts(Arrived(request("r1"))))
    await _until_known(stub, "r1")
    asked = gateway_pb.WhatIfRequest(changes={"test": 2})
    # At once and side by side: one waits for the other.
    replies = await asyncio.gather(*(stub.WhatIf(asked) for _ in range(3)))
    answers = [msgspec.json.decode(reply.answer_json) for reply in replies]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["before"]["instances"] == {"test": 1}
    assert answers[0]["after"]["instances"] == {"test": 3}
    assert answers[0]["before"]["classes"]["interactive"]["waiting"] == 1
    with pytest.raises(grpc.aio.AioRpcError, match="Use one of test") as refused:
        await stub.WhatIf(gateway_pb.WhatIfRequest(changes={"h9000": 1}))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    agent.cancel()
    gateway.cancel()


async def test_a_batch_is_told_when_it_will_be_done_and_asked_about(
    solver: grpc.aio.Channel,
) -> None:
    stub = gateway_grpc.GatewaySessionServiceStub(solver)
    shape = BulkShape(ModelName("m"), 1_000, 100.0, 200)
    slo = Slo(ttft_s=3600.0, e2e_s=3600.0)
    question = wire.batch_question_to_wire(BatchQuestion((shape,), "batch-2", slo))
    with pytest.raises(grpc.aio.AioRpcError, match="'m'") as unserved:
        await stub.EstimateBatch(question)
    assert unserved.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError, match="parts") as wrong:
        await stub.EstimateBatch(gateway_pb.EstimateBatchRequest())
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    agent = agent_grpc.AgentSessionServiceStub(solver).AgentSession()
    await agent.write(hello())
    await asyncio.wait_for(agent.read(), 5.0)
    answer = wire.batch_forecast_from_wire(await stub.EstimateBatch(question))
    assert answer.finish_p50_s is not None
    assert 0.0 < answer.wait.p50_s < answer.finish_p50_s
    bulk = BulkWaiting(
        batch=BatchId("b"),
        model=ModelName("m"),
        slo_class="batch-2",
        slo=slo,
        lines=1_000,
        prompt_tokens_mean=100.0,
        max_output_tokens=200,
        arrival_s=0.0,
    )
    gateway = stub.GatewaySession()
    await gateway.write(facts(GatewayHello(GatewayId("g"), "127.0.0.1:9"), bulk, AnnounceDone()))
    heard: list[GatewayOrder] = []
    while not any(isinstance(order, BulkEstimate) for order in heard):
        heard.extend(wire.gateway_orders_from_wire(await asyncio.wait_for(gateway.read(), 5.0)))
    [said] = [order for order in heard if isinstance(order, BulkEstimate)]
    assert said.batch == "b"
    assert said.finish_p50_s == pytest.approx(answer.finish_p50_s, rel=0.2)
    view = msgspec.json.decode((await stub.View(gateway_pb.ViewRequest())).view_json)
    assert view["waiting_lines"] == 1_000
    assert view["batches"][0]["explanation"] == said.explanation
    agent.cancel()
    gateway.cancel()


async def _until_known(stub: gateway_grpc.GatewaySessionServiceStub, id: str) -> dict[str, object]:
    """The explanation of a request as soon as the solver has heard of it."""
    for _ in range(200):
        try:
            answer = await stub.Explain(gateway_pb.ExplainRequest(id=id))
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.01)
            continue
        known: dict[str, object] = msgspec.json.decode(answer.explanation_json)
        return known
    raise AssertionError(f"{id} never became known")


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([facts(AnnounceDone())], grpc.StatusCode.FAILED_PRECONDITION),
        (
            [
                facts(GatewayHello(GatewayId("g"), "x:1")),
                facts(GatewayHello(GatewayId("g"), "x:1")),
            ],
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        ([facts(GatewayHello(GatewayId(""), "x:1"))], grpc.StatusCode.INVALID_ARGUMENT),
        (
            [gateway_pb.GatewaySessionRequest(facts=[gateway_pb.GatewayFact()])],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_a_gateway_that_breaks_the_rules_is_told(
    solver: grpc.aio.Channel,
    messages: list[gateway_pb.GatewaySessionRequest],
    code: grpc.StatusCode,
) -> None:
    stream = gateway_grpc.GatewaySessionServiceStub(solver).GatewaySession(iter(messages))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in stream:
            pass
    assert error.value.code() is code


async def test_above_the_limit_of_agents_a_session_is_refused(solver: grpc.aio.Channel) -> None:
    stub = agent_grpc.AgentSessionServiceStub(solver)
    streams = []
    for name in ("a", "b"):
        stream = stub.AgentSession()
        await stream.write(hello(name))
        await asyncio.wait_for(stream.read(), 5.0)
        streams.append(stream)
    third = stub.AgentSession()
    await third.write(hello("c"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(third.read(), 5.0)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.cancel()


async def test_a_question_out_of_range_is_refused_by_name(solver: grpc.aio.Channel) -> None:
    stub = gateway_grpc.GatewaySessionServiceStub(solver)
    asked = wire.meta_to_wire(request("r"), 0.0)
    asked.slo.ttft_s = -1.0
    with pytest.raises(grpc.aio.AioRpcError, match=r"request\.slo\.ttft_s") as refused:
        await stub.Estimate(gateway_pb.EstimateRequest(request=asked))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_absurd_epoch_ends_its_own_session_and_stops_nobody(
    solver: grpc.aio.Channel,
) -> None:
    stub = agent_grpc.AgentSessionServiceStub(solver)
    rogue = stub.AgentSession()
    absurd = hello("rogue")
    absurd.hello.epoch = 2**64 - 1
    await rogue.write(absurd)
    assert await _rest_of(rogue) is grpc.StatusCode.INVALID_ARGUMENT
    agent = stub.AgentSession()
    await agent.write(hello())
    assert await asyncio.wait_for(agent.read(), 5.0) is not grpc.aio.EOF
    agent.cancel()


async def test_a_newer_session_of_the_same_agent_takes_over(solver: grpc.aio.Channel) -> None:
    stub = agent_grpc.AgentSessionServiceStub(solver)
    older = stub.AgentSession()
    await older.write(hello())
    await asyncio.wait_for(older.read(), 5.0)
    newer = stub.AgentSession()
    await newer.write(hello())
    await asyncio.wait_for(newer.read(), 5.0)
    assert await _rest_of(older) is grpc.StatusCode.ABORTED
    newer.cancel()


async def test_an_agent_whose_lease_ran_out_is_told_and_joins_again(
    solver: grpc.aio.Channel,
) -> None:
    stub = agent_grpc.AgentSessionServiceStub(solver)
    silent = stub.AgentSession()
    await silent.write(hello())
    assert await _rest_of(silent) is grpc.StatusCode.UNAVAILABLE
    again = stub.AgentSession()
    await again.write(hello())
    assert await asyncio.wait_for(again.read(), 5.0) is not grpc.aio.EOF
    again.cancel()


async def test_a_silent_gateway_is_left_and_may_come_back(
    solver: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "PULSE_S", 0.02)
    stub = gateway_grpc.GatewaySessionServiceStub(solver)
    silent = stub.GatewaySession()
    await silent.write(facts(GatewayHello(GatewayId("g"), "x:1"), AnnounceDone()))
    assert await _rest_of(silent) is grpc.StatusCode.UNAVAILABLE
    again = stub.GatewaySession()
    await again.write(facts(GatewayHello(GatewayId("g"), "x:1"), AnnounceDone()))
    beats = 0
    while beats < 8:
        message = await asyncio.wait_for(again.read(), 5.0)
        beats += not message.orders  # type: ignore[union-attr]
        # A message without content is enough to stay.
        await again.write(facts())
    again.cancel()


async def test_a_gateway_does_not_get_the_address_of_one_that_is_connected(
    solver: grpc.aio.Channel,
) -> None:
    stub = gateway_grpc.GatewaySessionServiceStub(solver)

    def announced(name: str) -> gateway_pb.GatewaySessionRequest:
        return facts(GatewayHello(GatewayId(name), "x:1"), AnnounceDone())

    first = stub.GatewaySession()
    await first.write(announced("first"))
    assert await asyncio.wait_for(first.read(), 5.0) is not grpc.aio.EOF
    other = stub.GatewaySession()
    await other.write(announced("other"))
    assert await _rest_of(other) is grpc.StatusCode.FAILED_PRECONDITION
    # The first itself may come again, and once it has gone its address is free.
    again = stub.GatewaySession()
    await again.write(announced("first"))
    assert await asyncio.wait_for(again.read(), 5.0) is not grpc.aio.EOF
    assert await _rest_of(first) is grpc.StatusCode.ABORTED
    await again.done_writing()
    await _rest_of(again)
    other = stub.GatewaySession()
    await other.write(announced("other"))
    assert await asyncio.wait_for(other.read(), 5.0) is not grpc.aio.EOF
    other.cancel()


async def _rest_of(stream: object) -> grpc.StatusCode:
    """Read a stream to its end; the status it ended with."""
    try:
        while await asyncio.wait_for(stream.read(), 5.0) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await stream.code()  # type: ignore[attr-defined, no-any-return]
