"""Certificates in files, read anew when the files change, so that renewing them needs no restart.

gRPC asks before each handshake, and so does the TLS of HTTP. What does not fit together (a certificate that is replaced
and a key that is not yet) is passed over with a log line, and what was read before goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import grpc

from qlm_core.errors import QlmError

log = logging.getLogger("qlm.doors")

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

_Stamp = tuple[tuple[int, int, int], ...]


class Pem(NamedTuple):
    """What the files hold. `ca` is empty where nobody else's certificate is looked at."""

    ca: bytes
    cert: bytes
    key: bytes


class Certificates:
    """A certificate with its key, and who signs those of others.

    Args:
        where: the section of the configuration, for messages.

    Raises:
        QlmError: a file cannot be read, or they do not fit together.
    """

    def __init__(self, where: str, *, cert: str, key: str, ca: str = "") -> None:
        self._where = where
        self._paths = {"ca": ca, "cert": cert, "key": key}
        self._stamp = self._stamped()
        self._told: _Stamp = ()
        self._version = 0
        self.pem = self._read()
        self._context = self._server_context()

    def refreshed(self) -> int:
        """Read the files again if they have changed; returns how often that was done."""
        try:
            stamp = self._stamped()
            if stamp == self._stamp:
                return self._version
            pem, context = self._read(), self._server_context()
        except QlmError as error:
            stamp = self._stamped_or_none()
            if stamp != self._told:
                self._told = stamp
                log.error("certificates cannot be renewed", extra={"reason": str(error)})
            return self._version
        self._stamp, self.pem, self._context = stamp, pem, context
        self._version += 1
        log.info("certificates renewed", extra={"cert": self._paths["cert"]})
        return self._version

    # ---------------------------------------------------------------- what is made of them

    def grpc_server(self) -> grpc.ServerCredentials:
        """For a listener of gRPC; with a `ca` it asks for a certificate that this has signed."""

        used = self._version

        def fetch() -> Any:
            nonlocal used
            held, used = used, self.refreshed()
            return self._configuration() if used != held else None

        asks = bool(self._paths["ca"])
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, asks)

    def grpc_channel(self) -> grpc.ChannelCredentials:
        """For one channel, with what the files hold now."""
        self.refreshed()
        ca, cert, key = self.pem
        return grpc.ssl_channel_credentials(ca or None, key, cert)

    def http_server(self) -> ssl.SSLContext:
        """For a listener of HTTP."""

        def choose(connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
            self.refreshed()
            connection.context = self._context

        context = self._server_context()
        # It is called in each handshake, whether or not the client names a server.
        context.sni_callback = choose
        return context

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        ca, cert, key = self.pem
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca or None)

    def _server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        paths = self._paths
        try:
            # Without a password for it OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(paths["cert"], paths["key"], password=lambda: "")
            if paths["ca"]:
                context.load_verify_locations(paths["ca"])
        except (ssl.SSLError, ValueError, OSError) as error:
            raise QlmError(
                f"{self._where}: {', '.join(filter(None, paths.values()))} do not fit together "
                f"({error}). Give a certificate in PEM, its key without a password, and its CA."
            ) from None
        return context

    # ---------------------------------------------------------------- files

    def _read(self) -> Pem:
        return Pem(*(self._file(name) for name in Pem._fields))

    def _file(self, name: str) -> bytes:
        path = self._paths[name]
        if not path:
            return b""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise self._unread(name, error) from None

    def _stamped(self) -> _Stamp:
        return tuple(self._stamp_of(name) for name, path in self._paths.items() if path)

    def _stamped_or_none(self) -> _Stamp:
        try:
            return self._stamped()
        except QlmError:
            return ((0, 0, 0),)

    def _stamp_of(self, name: str) -> tuple[int, int, int]:
        try:
            return stamp_of(self._paths[name])
        except OSError as error:
            raise self._unread(name, error) from None

    def _unread(self, name: str, error: OSError) -> QlmError:
        return QlmError(
            f"{self._where}.{name}: {self._paths[name]} cannot be read: {error.strerror}. "
            "`qlm certs new` makes certificates."
        )


class Revoked:
    """The certificates that count no more: a file with one SHA-256 fingerprint a line, read again when it changes.

    While the file cannot be read nobody is let in. Raises QlmError where that is so at the start.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp = (0, 0, 0)
        self._fingerprints: tuple[str, ...] = ()
        if path and not self._current():
            raise QlmError(
                f"tls.revoked: {path} cannot be read. Create it, empty if nothing is revoked."
            )

    def __contains__(self, pem: bytes) -> bool:
        if not self._path:
            return False
        return not self._current() or fingerprint_of(pem) in self._fingerprints

    def _current(self) -> bool:
        try:
            stamp = stamp_of(self._path)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._fingerprints = tuple(self._fingerprints_in(file))
                self._stamp = stamp
        except OSError as error:
            log.error("nobody is let in", extra={"revoked": self._path, "reason": error.strerror})
            return False
        return True

    def _fingerprints_in(self, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            # OpenSSL says what it is before an equals sign, and puts colons between bytes.
            fingerprint = text.rpartition("=")[2].replace(":", "").lower()
            if _FINGERPRINT.fullmatch(fingerprint):
                yield fingerprint
            elif text:
                told = {"revoked": self._path, "line": number}
                log.error("no SHA-256 fingerprint; this line revokes nothing", extra=told)


def stamp_of(path: str) -> tuple[int, int, int]:
    """What changes whenever a file is written or replaced. Raises OSError."""
    known = os.stat(path)
    return known.st_mtime_ns, known.st_size, known.st_ino


def fingerprint_of(pem: bytes) -> str:
    """The SHA-256 of a certificate, in hexadecimal."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()
