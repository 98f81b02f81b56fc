"""The section of the configuration that says who is told of what has happened, and its rules."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from qlm_core.config_section import Section
from qlm_core.errors import ConfigError
from qlm_core.reach import is_address, may_reach, networks_of
from qlm_core.secret import Secret
from qlm_core.webhooks import EVENT_TYPES

SECRET_PREFIX = "whsec_"  # noqa: S105
_SECRET_BYTES = range(16, 65)
_URL_MAX = 2048


class WebhookConfig(Section, frozen=True, kw_only=True):
    """A receiver of webhooks.

    url: where it is told. secret: with which that is signed, as Standard Webhooks have it: whsec_ and base64.
    events: of which types it is told; empty: of all.
    networks: addresses that are not public and may be its own, as CIDR. Without https it is told within them only.
    """

    url: str
    secret: Secret
    events: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


def check_webhooks(webhooks: Sequence[WebhookConfig]) -> None:
    """Raise ConfigError for the first rule that is broken."""
    urls: dict[str, int] = {}
    for index, webhook in enumerate(webhooks):
        where = f"gateway.webhooks[{index}]"
        for at, text in enumerate(webhook.networks):
            _check_network(text, f"{where}.networks[{at}]")
        _check_url(webhook, f"{where}.url")
        if urls.setdefault(webhook.url, index) != index:
            raise ConfigError(
                f"{where}.url: the same as gateway.webhooks[{urls[webhook.url]}]. Name each once."
            )
        if secret_key(webhook.secret) is None:
            raise ConfigError(
                f"{where}.secret: no secret of Standard Webhooks. Write whsec_ and the base64 of 16 to "
                '64 random bytes, for example "whsec_$(openssl rand -base64 32)".'
            )
        for event in webhook.events:
            if event not in EVENT_TYPES:
                known = ", ".join(EVENT_TYPES)
                raise ConfigError(f"{where}.events: {event!r} is no event. Use some of {known}.")


def secret_key(secret: Secret) -> bytes | None:
    """The key that a webhook's secret stands for; None if it is none."""
    text = secret.reveal()
    if not text.startswith(SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) in _SECRET_BYTES else None


def _check_network(text: str, where: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ConfigError(
            f"{where}: {text!r} is no network. Write it as 10.1.0.0/16 or fd00::/8, or as one address."
        ) from None


def _check_url(webhook: WebhookConfig, where: str) -> None:
    # What a URL says beyond its host may be somebody's key, so it is not repeated.
    text = webhook.url
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    plain = text.isascii() and text.isprintable() and " " not in text and len(text) <= _URL_MAX
    if not (
        plain and parts.scheme in ("http", "https") and host and port != 0 and not parts.fragment
    ):
        raise ConfigError(f"{where}: no address. Write it as https://hooks.example.com/qlm.")
    if "@" in parts.netloc:
        raise ConfigError(f"{where}: has a user name. Leave it out: what is sent is signed.")
    if parts.scheme == "http" and not webhook.networks:
        raise ConfigError(
            f"{where}: is not encrypted. Use https, or name the receiver's `networks` if they are yours."
        )
    networks, public = networks_of(webhook.networks), parts.scheme == "https"
    if is_address(host) and not may_reach(host, networks, public=public):
        raise ConfigError(
            f"{where}: {host} is not in its `networks`{' and not public' if public else ''}. "
            "If it is meant, add it there."
        )
