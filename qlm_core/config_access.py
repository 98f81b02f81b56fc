"""The sections of the configuration that say who may come in; `qlm_core.config_doors` has their rules."""

from __future__ import annotations

from qlm_core.config_section import Section
from qlm_core.secret import Secret


class AuthConfig(Section, frozen=True, kw_only=True):
    """What solver, gateways and agents show each other: one secret that all of them know; empty: none."""

    secret: Secret = Secret()


class TlsConfig(Section, frozen=True, kw_only=True):
    """Mutual TLS between solver, gateways and agents: paths of PEM files, read again when they change.

    ca: who signs the certificates of this fleet; empty: no TLS.
    cert, key: this part's own; `{part}` stands for its file name (docs/security.md), so that parts may share a file.
    revoked: a file of certificates that count no more, one SHA-256 fingerprint a line; empty: none.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    revoked: str = ""


class TenantConfig(Section, frozen=True, kw_only=True):
    """A tenant: a key, and what who brings it may do.

    models, classes: those that it may ask for; empty: all.
    requests_max: most open requests at a time; None: no limit of its own.
    operator: whether it sees and ends everybody's requests, and reads the queues and the metrics.
    """

    key: Secret
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    requests_max: int | None = None
    operator: bool = False


class ServerTlsConfig(Section, frozen=True, kw_only=True):
    """The certificate that clients see, and its key: paths of PEM files. Both empty: no TLS."""

    cert: str = ""
    key: str = ""
