"""One try: how it is signed, what counts as taken, and that nobody leads it anywhere else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.webhooks.rows import Row, event_id
from gateway.webhooks.sending import Lookups, Outcome, Sender, signed
from qlm_core.config_webhooks import WebhookConfig
from qlm_core.secret import Secret
from qlm_core.webhooks import EVENT_TYPES
from tests.doors.beds import make_certificates
from tests.webhooks.beds import KEY, LOOPBACK, SECRET, receiver


def row(type: str = "batch.completed", subject: str = "batch_1") -> Row:
    event = event_id(type, subject)
    return Row(event, "there", type, subject, 1_700_000_000, told_at=0.0, tries=0, due_at=0.0)


@contextlib.asynccontextmanager
async def sending(
    url: str, *, networks: list[str] = LOOPBACK, lookups: Lookups | None = None, s: float = 5.0
) -> AsyncIterator[Sender]:
    config = WebhookConfig(url=url, secret=Secret(SECRET), networks=tuple(networks))
    lookups = lookups or Lookups()
    sender = Sender(config, lookups, try_s_max=s)
    try:
        yield sender
    finally:
        await sender.close()
        await lookups.close()


async def once(url: str, **how: Any) -> Outcome:
    async with sending(url, **how) as sender:
        return await sender.send(row())


class Led(Lookups):
    """DNS that says what it likes, another thing each time."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = list(addresses)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> Any:
        self.asked.append(host)
        return await super().resolve(self.addresses.pop(0), port, family)


@pytest.mark.parametrize("type", EVENT_TYPES)
async def test_openais_client_verifies_and_reads_it(type: str) -> None:
    async with receiver() as there, sending(there.url) as sender:
        assert await sender.send(row(type)) == Outcome("delivered")
        (got,) = there.got
    event = got.unwrap()
    assert (event.type, event.created_at) == (type, 1_700_000_000)
    assert event.id == got.id == event_id(type, "batch_1")
    assert event.data.id == "batch_1"  # type: ignore[union-attr]
    assert json.loads(got.body)["object"] == "event"
    assert got.headers["content-type"] == "application/json"
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 5
    with pytest.raises(openai.InvalidWebhookSignatureError):
        got.unwrap("whsec_" + "A" * 43 + "=")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        got._replace(body=got.body.replace(b"batch_1", b"batch_2")).unwrap()


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's libraries."""
    import base64

    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_success_is_success(status: int) -> None:
    async with receiver() as there:
        there.answer = status
        assert (await once(there.url)).delivered


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 404, 410, 500, 503])
async def test_nothing_else_is_and_nobody_is_followed(status: int) -> None:
    async with receiver() as there, receiver() as elsewhere:
        there.answer = (status, {"location": elsewhere.url, "retry-after": "7"})
        outcome = await once(there.url)
        busy = 7.0 if status == 503 else 0.0
        assert outcome == Outcome("answered", f"it answered {status}", busy)
        assert len(there.got) == 1
        assert elsewhere.got == []


@pytest.mark.parametrize(
    ("said", "seconds"), [("30", 30.0), ("0.5", 0.5), ("-3", 0.0), ("nan", 0.0), ("inf", 0.0)]
)
async def test_a_receiver_asks_for_rest_in_seconds(said: str, seconds: float) -> None:
    async with receiver() as there:
        there.answer = (429, {"retry-after": said})
        assert (await once(there.url)).retry_after_s == seconds


async def test_a_receiver_that_does_not_answer_is_given_up_in_time() -> None:
    async with receiver() as there:
        there.gate.clear()
        assert await once(there.url, s=0.2) == Outcome("unreachable", "no answer in time")


async def test_one_that_answers_without_end_is_not_read() -> None:
    read = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                read += 65536
                await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await once(f"http://127.0.0.1:{port}/")).delivered
    assert read < 64 * 1024 * 1024


@pytest.mark.parametrize(
    "said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"]
)
async def test_what_is_no_answer_is_none(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await once(f"http://127.0.0.1:{port}/")).kind == "unreachable"


async def test_what_nobody_listens_at_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        outcome = await once(f"http://127.0.0.1:{taken.getsockname()[1]}/secret?key=hidden")
    assert outcome.kind == "unreachable"
    assert "secret" not in outcome.said
    assert "hidden" not in outcome.said


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'x' * 64}.invalid"])
async def test_a_name_that_is_none_is_unreachable(host: str) -> None:
    outcome = await once(f"http://{host}/hidden")
    assert outcome.kind == "unreachable"
    assert "hidden" not in outcome.said


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_what_is_not_public_is_told_only_if_the_configuration_says_so(host: str) -> None:
    async with receiver() as there:
        url = there.url.replace("127.0.0.1", host)
        for networks in ([], ["10.0.0.0/8"]):
            refused = await once(url, networks=networks)
            assert refused == Outcome("forbidden", "its address is none that it may have")
        assert there.got == []
        assert (await once(url, networks=["127.0.0.1", "::1"])).delivered


async def test_dns_that_leads_elsewhere_leads_nowhere() -> None:
    """A name that was public, or is at first, and then that of the gateway's own neighbour."""
    async with receiver() as there:
        url = there.url.replace("127.0.0.1", "hooks.example.com")
        led = Led("127.0.0.1", "169.254.169.254", "127.0.0.1", "::ffff:127.0.0.1")
        async with sending(url, networks=["127.0.0.1"], lookups=led) as sender:
            assert (await sender.send(row())).delivered
            assert (await sender.send(row())).kind == "forbidden"
            # No connection is kept, and no name remembered, that a later answer could not take back.
            assert (await sender.send(row())).delivered
        assert led.asked == ["hooks.example.com"] * 3
        assert len(there.got) == 2
        assert {got.headers["connection"] for got in there.got} == {"close"}
        led = Led("::ffff:127.0.0.1", "127.0.0.1")
        async with sending(url, networks=[], lookups=led) as sender:
            for _ in range(2):
                assert not (await sender.send(row())).delivered
        assert len(there.got) == 2


async def test_of_several_addresses_only_those_are_called_that_may_be() -> None:
    class Both(Lookups):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> Any:
            found = [await super(Both, self).resolve(at, port) for at in ("127.0.0.2", "127.0.0.1")]
            return [one for part in found for one in part]

    async with receiver() as there:
        url = there.url.replace("127.0.0.1", "hooks.example.com")
        assert (await once(url, networks=["127.0.0.1"], lookups=Both())).delivered
        assert (await once(url, networks=[], lookups=Both())).kind == "forbidden"
        assert len(there.got) == 1


async def test_no_proxy_of_the_environment_stands_between(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as there, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await once(there.url)).delivered
        assert proxy.got == []


async def test_the_receivers_certificate_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "certs"
    make_certificates(folder, "new", "--host", "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "clients.crt", folder / "clients.key")
    async with receiver(tls=tls) as there:
        assert (await once(there.url)).kind == "unreachable"
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
        assert (await once(there.url)).delivered
        # Somebody else's certificate, at the address that DNS says.
        other = there.url.replace("127.0.0.1", "hooks.example.com")
        assert (await once(other, lookups=Led("127.0.0.1"))).kind == "unreachable"
        (got,) = there.got
    assert got.unwrap().type == "batch.completed"
    assert KEY not in got.body
