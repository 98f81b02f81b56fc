"""Whatever comes to a gRPC method, from client, agent or gateway: an answer or a status that says what is wrong, and no harm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import client_service_pb2 as client_pb
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import work_service_pb2 as work_pb
from tests.fuzz.effort import fuzzed
from tests.fuzz.messages import sent
from tests.fuzz.served import KEY, Fleet, secrets_in, serving

SERVICES = {
    "client": client_pb.DESCRIPTOR.services_by_name["ClientService"],
    "work": work_pb.DESCRIPTOR.services_by_name["WorkService"],
    "gateway": gateway_pb.DESCRIPTOR.services_by_name["GatewaySessionService"],
    "agent": agent_pb.DESCRIPTOR.services_by_name["AgentSessionService"],
}
# What a method may say. INTERNAL, UNKNOWN and UNIMPLEMENTED are faults of ours.
FIT = (
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
)
METHODS = [
    (name, method.name)
    for name, service in SERVICES.items()
    for method in service.methods
]  # fmt: skip
CALL_S = 10.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def channels(fleet: Fleet) -> Iterator[dict[str, grpc.Channel]]:
    at = {"client": fleet.addresses.grpc, "work": fleet.addresses.agents}
    opened = {name: grpc.insecure_channel(at.get(name, fleet.solver)) for name in SERVICES}
    yield opened
    for channel in opened.values():
        channel.close()


def call(
    channel: grpc.Channel, method: MethodDescriptor, data: list[bytes], metadata: Any
) -> tuple[grpc.StatusCode, str]:
    """Call a method with raw messages; status and details."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path)(iter(data), metadata=metadata, timeout=CALL_S)
            for _ in stream:
                pass
        elif method.server_streaming:
            for _ in channel.unary_stream(path)(data[0], metadata=metadata, timeout=CALL_S):
                pass
        else:
            channel.unary_unary(path)(data[0], metadata=metadata, timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def assert_fit(status: grpc.StatusCode, details: str) -> None:
    assert status in FIT, details
    assert len(details) < 2_000
    assert secrets_in(details) != KEY


@pytest.mark.parametrize(("service", "name"), METHODS)
@fuzzed
@given(data=st.data(), known=st.sampled_from([True, True, True, False]))
def test_no_message_does_harm(
    fleet: Fleet,
    channels: dict[str, grpc.Channel],
    service: str,
    name: str,
    data: st.DataObject,
    known: bool,
) -> None:
    method = SERVICES[service].methods_by_name[name]
    messages = data.draw(st.lists(sent(method.input_type), min_size=1, max_size=4))
    if not method.client_streaming:
        del messages[1:]
    metadata = (("authorization", f"Bearer {KEY}"),) if known else ()
    assert_fit(*call(channels[service], method, messages, metadata))
    fleet.check()
