"""Whatever comes to the gateway's HTTP port: an answer below 500, a closed connection at worst, and nothing remembered of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.endpoint import Endpoint
from tests.fuzz.bodies import CANARY, MODEL, WORDS, asked
from tests.fuzz.effort import fuzzed
from tests.fuzz.served import KEY, Fleet, secrets_in, serving

PATHS = tuple(endpoint.path for endpoint in Endpoint)
HEADERS = [
    "x-qlm-slo-class", "x-qlm-tenant", "x-llm-d-slo-ttft-ms", "x-slo-tpot-ms", "x-qlm-slo-e2e-ms", "x-llm-d-inference-ttl",
    "x-qlm-durable", "idempotency-key", "x-request-id", "traceparent", "tracestate", "content-type", "content-encoding",
    "x-stainless-read-timeout", "x-tenant-id", "origin", "accept",
]  # fmt: skip
VALUES = [
    "", "0", "-1", "1", "nan", "inf", "-inf", "1e-320", "1e309", "1_0", "9" * 5000, "5s", "1h1h", "9" * 400 + "h", "0.0001ms",
    "true", "yes", "a" * 8000, "interactive", "gzip", "text/plain", "\xff\xfe", "\t", "${HOME}", "1m30s", "0x10", "٣", "²",
]  # fmt: skip
values = st.sampled_from(VALUES) | st.text(
    st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=8
)
odd_headers = st.dictionaries(st.sampled_from(HEADERS), values, max_size=3)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with serving() as made:
        yield made


def sent(headers: dict[str, str]) -> dict[str, str]:
    """Headers as `http.client` lets them through: what is beyond Latin-1 goes as UTF-8."""
    return {name: value.encode().decode("latin-1") for name, value in headers.items()}


@fuzzed
@given(asked)
def test_no_body_does_harm(fleet: Fleet, asked: tuple[Endpoint, bytes]) -> None:
    endpoint, body = asked
    status, answer = fleet.ask("POST", endpoint.path, body)
    assert status < 500, answer
    # The client's own prompt may come back to it, as an echo or in an error about it; the key never.
    assert KEY.encode() not in answer
    fleet.check()


@fuzzed
@given(st.sampled_from(PATHS), odd_headers)
def test_no_header_does_harm(fleet: Fleet, path: str, headers: dict[str, str]) -> None:
    body = json.dumps(
        {"model": MODEL, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
        | {"input": "a", "text_1": "a", "text_2": "a", "query": "a", "documents": ["a"]}
    ).encode()
    status, answer = fleet.ask("POST", path, body, sent(headers))
    # 503: the estimate of a client's patience; it is ours to say when.
    assert status < 500, (headers, answer)
    fleet.check()


pieces = st.one_of(
    st.sampled_from(WORDS).map(lambda word: word.encode("utf-8", "surrogatepass")),
    st.binary(max_size=6),
    st.sampled_from([b"..", b"%00", b"%ff", b"%2e%2e", b"/", b"//", b"?a=b", b"9" * 5000, b"v1", b"requests"]),
)  # fmt: skip
paths = st.tuples(
    st.sampled_from(
        [
            b"/",
            b"/v1/requests/",
            b"/v1/models/",
            b"/v1/queue/",
            b"/v1/responses/",
            b"/v1/requests/x/",
            b"/v1/",
            b"/metrics/",
            b"/health/",
        ]
    ),
    st.lists(pieces, max_size=3).map(b"".join),
).map(b"".join)


@fuzzed
@given(st.sampled_from([b"GET", b"POST", b"DELETE", b"PUT", b"HEAD", b"OPTIONS", b"BREW"]), paths)
def test_no_path_does_harm(fleet: Fleet, method: bytes, path: bytes) -> None:
    line = b"%b %b HTTP/1.1\r\n" % (method, path.translate(None, b"\r\n"))
    answer = exchange(fleet, line + HOST + AUTHORIZED + b"\r\n")
    assert_fit(answer)
    fleet.check()


HOST = b"host: x\r\n"
AUTHORIZED = b"authorization: Bearer %b\r\n" % KEY.encode()
BODY = b'{"model": "mistral-7b", "prompt": "%b", "max_tokens": 1}' % CANARY.encode()
LINES = [
    b"POST /v1/completions HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.0\r\n", b"GET /health HTTP/1.1\r\n",
    b"GET / HTTP/9.9\r\n", b"GET\r\n", b"GET /\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\r\n", b"",
    b"POST http://x/v1/completions HTTP/1.1\r\n", b"CONNECT x:1 HTTP/1.1\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n", b"\x00\x00\x00", b"GET /\xff\xfe HTTP/1.1\r\n",
]  # fmt: skip
HEADS = [
    HOST, AUTHORIZED, b"content-length: 5\r\n", b"content-length: -1\r\n", b"content-length: 99999999999999999999999\r\n",
    b"content-length: %d\r\n" % len(BODY), b"content-length: 0x10\r\n", b"content-length: 2000000\r\n", b"content-length: \r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: identity\r\n",
    b"expect: 100-continue\r\n", b"expect: miracles\r\n", b"connection: close\r\n", b"connection: upgrade\r\n",
    b"upgrade: websocket\r\n", b"upgrade: h2c\r\n", b"authorization: Bearer wrong\r\n", b"authorization: \xff\xff\r\n",
    b" folded: x\r\n", b"no colon\r\n", b": no name\r\n", b"x: " + b"y" * 100_000 + b"\r\n", b"x:\x00\r\n", b"x: \n", b"\r\n",
    b"cookie: a\r\n" * 200,
]  # fmt: skip
TAILS = [
    b"", b"\r\n", b"\r\n" + BODY, b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), b"\r\nzz\r\n", b"\r\n-1\r\nx\r\n",
    b"\r\nffffffffffffffffff\r\n", b"\r\n5;x=y\r\nhello\r\n0\r\ntrailer: x\r\n\r\n", b"\r\n5\r\nhel", b"\r\n0\r\n\r\n",
    b"\r\n" + BODY[:10],
]  # fmt: skip
requests = st.tuples(
    st.sampled_from(LINES),
    st.lists(st.sampled_from(HEADS), max_size=5).map(b"".join),
    st.sampled_from(TAILS) | st.binary(max_size=12),
).map(b"".join)


class Framed(bytes):
    """What is sent, which is shown in short."""

    def __repr__(self) -> str:
        return f"{bytes(self[:300])!r} and {max(0, len(self) - 300)} bytes"


framed = st.lists(requests, min_size=1, max_size=3).map(lambda parts: Framed(b"".join(parts)))


@fuzzed
@given(framed, st.booleans())
def test_no_framing_does_harm(fleet: Fleet, data: bytes, early: bool) -> None:
    assert_fit(exchange(fleet, data, early=early))
    fleet.check()


def exchange(fleet: Fleet, data: bytes, *, early: bool = False) -> bytes:
    """Send bytes, and read until the gateway closes; `early` hangs up at once instead."""
    host, _, port = fleet.addresses.http.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        try:
            connection.sendall(data)
            if early:
                return b""
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        except TimeoutError:
            raise
        except OSError:
            return answer  # it has hung up already
    return answer


def assert_fit(answer: bytes) -> None:
    """HTTP or nothing, no fault of ours, no secret. Some paths need a solver's word, which may take a moment: 503."""
    if not answer:
        return
    assert answer.startswith(b"HTTP/1.1 ")
    assert answer[9:12].isdigit()
    status = int(answer[9:12])
    assert status < 500 or status == 503, answer[:500]
    assert secrets_in(answer.decode("latin-1")) != KEY


def test_metrics_do_not_grow_with_what_clients_name(fleet: Fleet) -> None:
    before = fleet.check_metrics()
    for index in range(200):
        named = f"name-{index}"
        headers = {"x-qlm-tenant": named, "x-qlm-slo-class": named, "idempotency-key": named}
        for tenant in (
            headers,
            {"x-qlm-tenant": named * 100},
            {"x-llm-d-slo-ttft-ms": f"{index + 1}"},
        ):
            for model in (MODEL, named):
                body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1, "user": named})
                assert fleet.ask("POST", PATHS[0], body.encode(), tenant)[0] < 500
    assert fleet.check_metrics() - before < 200
