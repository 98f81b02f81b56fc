"""The client without a gateway: both kinds offer the same, and each call says what it is told to say."""

import inspect

import msgspec
import pytest

from protos.qlm.v1 import client_service_pb2 as pb
from protos.qlm.v1 import client_service_pb2_grpc as rpc
from protos.qlm.v1 import types_pb2
from qlm import calls
from qlm.client import AsyncClient, Client
from qlm_core.model import Slo

CALLS = [
    calls.submit({"prompt": "x"}, {}),
    calls.enqueue({"prompt": "x"}, {}),
    calls.watch("id"),
    calls.get("id"),
    calls.cancel("id"),
    calls.estimate("m", {}),
    calls.open_requests(""),
    calls.queues(),
    calls.explain("id"),
    calls.what_if({"a100": 1}),
]


def offered(kind: type) -> dict[str, list[str]]:
    """The public methods of a class and the names of their parameters."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in found
        if not name.startswith("_")
    }


def test_both_clients_offer_the_same() -> None:
    assert offered(Client) == offered(AsyncClient)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.method)
def test_each_call_is_one_of_the_service(call: calls.Call[object]) -> None:
    [method] = [
        one
        for one in pb.DESCRIPTOR.services_by_name["ClientService"].methods
        if one.name == call.method
    ]
    assert call.request.DESCRIPTOR is method.input_type
    assert hasattr(rpc.ClientServiceServicer, call.method)


def test_what_is_said_of_a_request_is_in_the_call() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    said = calls.Submission(slo_class="batch-1", slo=Slo(ttft_s=4.0), tenant="t", key="k")
    request = calls.enqueue(body, said).request.request  # type: ignore[attr-defined]
    assert (request.model, request.slo_class, request.tenant) == ("m", "batch-1", "t")
    assert (request.idempotency_key, request.slo.ttft_s) == ("k", 4.0)
    assert request.endpoint == types_pb2.ENDPOINT_CHAT_COMPLETIONS
    assert msgspec.json.decode(request.body_json) == body
    question = calls.estimate("m", {"prompt_tokens": 7}).request
    assert question == pb.EstimateWaitRequest(model="m", prompt_tokens=7)


async def test_a_word_that_is_unknown_is_an_error_of_the_caller() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(TypeError, match="priority"):
        client.enqueue({"prompt": "x"}, priority=3)  # type: ignore[call-arg]
    async with AsyncClient("127.0.0.1:1") as other:
        with pytest.raises(TypeError, match="priority"):
            await other.enqueue({"prompt": "x"}, priority=3)  # type: ignore[call-arg]
