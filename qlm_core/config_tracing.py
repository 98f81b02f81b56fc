"""The section of the configuration that says where traces of requests go, and its rules."""

from __future__ import annotations

from urllib.parse import urlsplit

from qlm_core.config_section import Section
from qlm_core.errors import ConfigError


class TracingConfig(Section, frozen=True, kw_only=True):
    """Traces for OpenTelemetry.

    endpoint: of a collector that takes OTLP over gRPC, as http://HOST:4317; empty: no traces.
    sample_ratio: of the traces that begin here; whether one is taken that a client began is for the client to say.
    """

    endpoint: str = ""
    sample_ratio: float = 1.0


def check_tracing(section: TracingConfig) -> None:
    """Raise ConfigError for the first rule that is broken."""
    parts = urlsplit(section.endpoint)
    if section.endpoint and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ConfigError(
            f"gateway.tracing.endpoint: {section.endpoint[:64]!r} is no address of a collector. "
            "Write it as http://127.0.0.1:4317, or https:// for one with TLS."
        )
    if not 0.0 <= section.sample_ratio <= 1.0:
        raise ConfigError(
            f"gateway.tracing.sample_ratio: {section.sample_ratio:g} is not between 0 and 1."
        )
