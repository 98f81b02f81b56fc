"""The doors between parts: what a part shows when it dials another, and what it asks of whoever dials it.

Solver, gateways and agents show each other a shared secret (`auth.secret`), a certificate (`tls`), or both, as
configured. A `Guard` stands before every method of a listener: a service without a check of its own is closed,
and nothing that a stranger sends is as much as parsed. docs/security.md describes roles and doors.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc

from protos.certificates import Certificates, Revoked
from protos.identity import Part, Role, part_of
from protos.keyring import KeyRing
from protos.readable import Messages, reading
from protos.wire import WireError
from qlm_core.config import Config
from qlm_core.config_doors import PART, open_doors
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError
from qlm_core.secret import Secret

log = logging.getLogger("qlm.doors")

# The name of the metadata that carries the secret.
CARRIER = "x-qlm-secret"
# Whoever is turned away is counted; at most one of them within this time is worth a line.
LOG_PERIOD_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]
Options = Sequence[tuple[str, Any]]


class Refusal(NamedTuple):
    """Why somebody may not come in.

    Attributes:
        reason: one word of a fixed list, for counting.
        said: what they are told.
    """

    code: grpc.StatusCode
    reason: str
    said: str


Check = Callable[[Context], Refusal | None]


class Rejections:
    """Counts whom doors turned away, and logs some of it.

    Attributes:
        counts: by door and reason.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._unsaid = 0
        self._next_s = 0.0

    def note(self, door: str, reason: str, *, peer: str, asked: str) -> None:
        """Somebody was turned away.

        Args:
            peer: where from.
            asked: what for: a method or a path.
        """
        key = (door, reason)
        self.counts[key] = self.counts.get(key, 0) + 1
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_s:
            self._unsaid += 1
            return
        # It comes from outside: no line of the log is to be of their making.
        shown = asked[:128].encode("unicode_escape").decode()
        said = {"door": door, "reason": reason, "peer": peer, "asked": shown}
        log.warning("turned away", extra=said | {"others": self._unsaid})
        self._unsaid, self._next_s = 0, now_s + LOG_PERIOD_S


class Doors:
    """What one part shows to others, and asks of them.

    Raises:
        QlmError: its certificate cannot be read.
    """

    def __init__(self, config: Config, part: Part) -> None:
        secret = config.auth.secret
        self._secret = KeyRing([secret] if secret else [])
        self._tls: Certificates | None = None
        tls = config.tls
        if tls.ca:
            mine = {name: getattr(tls, name).replace(PART, part.file) for name in ("cert", "key")}
            self._tls = Certificates("tls", ca=tls.ca, **mine)
        self._revoked = Revoked(tls.revoked)
        self.metadata = _shown(secret)

    # ---------------------------------------------------------------- dialling

    def channel(self, address: str, to: Part, options: Options) -> grpc.aio.Channel:
        """A channel to another part, which must prove to be that one where certificates are used.

        It goes on with the certificate of now; a channel made after a renewal has the new one.
        """
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=list(options))
        named = ("grpc.ssl_target_name_override", to.host)
        credentials = self._tls.grpc_channel()
        return grpc.aio.secure_channel(address, credentials, options=[*options, named])

    @property
    def version(self) -> int:
        """Grows with each renewal of this part's certificate."""
        return 0 if self._tls is None else self._tls.refreshed()

    # ---------------------------------------------------------------- being dialled

    def listen(self, server: grpc.aio.Server, key: str, address: str) -> str:
        """Have a server listen, as `listen` does."""
        return listen(server, key, address, self._tls)

    def http_server(self) -> ssl.SSLContext | None:
        """TLS for a listener of HTTP; None where there are no certificates."""
        return None if self._tls is None else self._tls.http_server()

    def parts(self, *roles: Role) -> Check:
        """A check that lets in parts of these roles; a secret alone does not tell roles apart."""

        def check(context: Context) -> Refusal | None:
            if self._secret and not self._is_secret(context):
                return Refusal(
                    grpc.StatusCode.UNAUTHENTICATED, "secret", "auth.secret: missing or another"
                )
            if self._tls is None:
                return None
            part = certified(context)
            if part is None or part.role not in roles:
                return Refusal(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "role",
                    f"tls.cert: names no {' or '.join(roles)}; it may not call this",
                )
            if _pem_of(context) in self._revoked:
                return Refusal(
                    grpc.StatusCode.PERMISSION_DENIED, "revoked", "tls.cert: it was revoked"
                )
            return None

        return check

    def _is_secret(self, context: Context) -> bool:
        said = dict(context.invocation_metadata() or ()).get(CARRIER, "")
        given = said if isinstance(said, bytes) else said.encode()
        return self._secret.place(given) is not None


def _pem_of(context: Context) -> bytes:
    return next(iter(context.auth_context()["x509_pem_cert"]))


def certified(context: Context) -> Part | None:
    """The part that the caller's certificate names; None without a certificate, or where it names none."""
    for uri in context.auth_context().get("peer_uri", ()):
        part = part_of(uri.decode("utf-8", "replace"))
        if part is not None:
            return part
    return None


class Claims:
    """Judges the name that one caller claims, whose role is checked.

    Without certificates every name is believed: who has the secret may be any part.
    """

    def __init__(self, context: Context, door: str, rejections: Rejections) -> None:
        self._context = context
        self._door = door
        self._rejections = rejections

    def note(self, reason: str, asked: str) -> None:
        """Something that the caller said was turned away; `reason` and `asked` as of `Rejections.note`."""
        peer = str(self._context.peer())
        self._rejections.note(self._door, reason, peer=peer, asked=asked)

    def wrong(self, name: str) -> str:
        """What is wrong with a name: "" if nothing is."""
        part = certified(self._context)
        if part is None or part.name == name:
            return ""
        self.note("name", name)
        return f"the certificate is that of {part.name!r}, not of {name[:64]!r}"


def listen(
    server: grpc.aio.Server, key: str, address: str, certificates: Certificates | None
) -> str:
    """Have a server listen, with TLS where there are certificates; returns host:port as it really is.

    Args:
        key: where the address stands in the configuration.

    Raises:
        QlmError: it cannot be listened on.
    """
    host, _ = parse_address(address, key)
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.grpc_server())
    except RuntimeError:
        port = 0
    if port == 0:
        raise QlmError(f"{key}: cannot listen on {address}; it may be in use. Choose another port.")
    return f"{host}:{port}"


def warn_of_open_doors(config: Config, of: str) -> None:
    """Log which listeners of a part, whose keys begin with `of`, ask nothing although other machines reach them."""
    if config.insecure:
        for door in open_doors(config):
            if door.key.startswith(of):
                said = {"key": door.key, "listen": door.address}
                log.warning("open to the network, as insecure: true has it", extra=said)


def anyone(_: Context) -> Refusal | None:
    """A check that lets everybody in."""
    return None


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Stands before every method of one listener.

    Args:
        door: its name, for counting.
        checks: who may call a service, by the service's full name; what is not named is closed.
    """

    def __init__(self, door: str, checks: Mapping[str, Check], rejections: Rejections) -> None:
        self._door = door
        self._checks = checks
        self._rejections = rejections

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the check of its service before a method."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        check = self._checks.get(method.rpartition("/")[0].lstrip("/"), _closed)

        async def admit(context: Context) -> None:
            refusal = check(context)
            if refusal is not None:
                self._rejections.note(
                    self._door, refusal.reason, peer=str(context.peer()), asked=method
                )
                await context.abort(refusal.code, refusal.said)

        return handler if handler is None else _guarded(handler, admit)


def _closed(_: Context) -> Refusal | None:
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "closed", "nobody may call this here")


def _guarded(handler: Any, admit: Callable[[Context], Awaitable[None]]) -> Any:
    """The same method, behind a check. A single request stays bytes until its sender is admitted."""
    decode = handler.request_deserializer

    async def read(data: bytes, context: Context) -> Any:
        await admit(context)
        try:
            return decode(data) if decode else data
        except Exception:  # whatever a decoder raises, only the caller can mend it
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be read")

    async def one_to_one(data: bytes, context: Context) -> Any:
        request = await read(data, context)
        return await handler.unary_unary(request, context)

    async def one_to_many(data: bytes, context: Context) -> AsyncIterator[Any]:
        request = await read(data, context)
        async with aclosing(handler.unary_stream(request, context)) as replies:
            async for reply in replies:
                yield reply

    async def one_to_many_written(data: bytes, context: Context) -> None:
        request = await read(data, context)
        await handler.unary_stream(request, context)

    async def many_to_many(requests: Any, context: Context) -> AsyncIterator[Any]:
        await admit(context)
        try:
            async with aclosing(handler.stream_stream(Messages(requests), context)) as replies:
                async for reply in replies:
                    yield reply
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    encode = handler.response_serializer
    assert handler.response_streaming or not handler.request_streaming, (
        "no method of this protocol takes a stream and gives one answer"
    )
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(many_to_many, reading(decode), encode)
    if handler.response_streaming:
        yields = inspect.isasyncgenfunction(handler.unary_stream)
        answering = one_to_many if yields else one_to_many_written
        return grpc.unary_stream_rpc_method_handler(answering, None, encode)
    return grpc.unary_unary_rpc_method_handler(one_to_one, None, encode)


def _shown(secret: Secret) -> tuple[tuple[str, str], ...]:
    return ((CARRIER, secret.reveal()),) if secret else ()
