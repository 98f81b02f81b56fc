"""Where webhooks may go, and which configurations of them are refused with what words."""

from __future__ import annotations

import base64
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm import config_file
from qlm_core.config import Config
from qlm_core.config_webhooks import secret_key
from qlm_core.errors import ConfigError
from qlm_core.reach import may_reach
from qlm_core.secret import Secret

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
URL = "https://hooks.example.com/qlm"

PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]
OTHERS = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "3fff::1",
    "5f00::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "localhost",
    "2130706433",
    "127.1",
    "0x7f000001",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_told(address: str) -> None:
    assert may_reach(address, ())


@pytest.mark.parametrize("address", OTHERS)
def test_others_are_not(address: str) -> None:
    assert not may_reach(address, ())


@pytest.mark.parametrize(
    ("address", "network", "may"),
    [
        ("127.0.0.1", "127.0.0.0/8", True),
        ("::ffff:127.0.0.1", "127.0.0.0/8", True),
        ("64:ff9b::7f00:1", "127.0.0.0/8", True),
        ("64:ff9b::7f00:1", "64:ff9b::/96", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.4", "10.1.2.3", False),
        ("10.1.2.3", "fd00::/8", False),
        ("fd00::1", "fd00::/8", True),
        ("fe80::1%eth0", "fe80::/10", True),
        ("::1", "127.0.0.0/8", False),
    ],
)
def test_networks_of_the_configuration_are_told_too(address: str, network: str, may: bool) -> None:
    assert may_reach(address, (ipaddress.ip_network(network),)) is may


def test_without_https_only_networks_of_the_configuration_are_told() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    assert may_reach("10.1.2.3", networks, public=False)
    assert may_reach("64:ff9b::a01:203", networks, public=False)
    for address in PUBLIC:
        assert not may_reach(address, networks, public=False)


@given(st.ip_addresses(v=4))
def test_an_address_of_ipv4_may_be_reached_however_it_is_written(
    address: ipaddress.IPv4Address,
) -> None:
    may = may_reach(str(address), ())
    assert may_reach(f"::ffff:{address}", ()) is may
    assert may_reach(f"64:ff9b::{int(address) >> 16:x}:{int(address) & 0xFFFF:x}", ()) is may
    assert not may or (address.is_global and not address.is_private)


@given(st.ip_addresses())
def test_nothing_that_python_knows_to_be_private_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    inner = getattr(address, "ipv4_mapped", None) or address
    if may_reach(str(address), ()) and not str(address).startswith("64:ff9b:"):
        for trait in ("private", "loopback", "link_local", "multicast", "unspecified", "reserved"):
            assert not getattr(inner, f"is_{trait}")


def configured(**webhook: Any) -> Config:
    return Config.from_mapping(
        {"gateway": {"webhooks": [{"url": URL, "secret": SECRET} | webhook]}}
    )


@pytest.mark.parametrize(
    "webhook",
    [
        {},
        {"events": ["batch.completed", "response.failed"]},
        {"url": "https://[2606:4700::1111]:8443/x?y=z"},
        {"url": "http://10.1.2.3/", "networks": ["10.0.0.0/8"]},
        {"url": "https://hooks", "networks": ["fd00::1"]},
        {"secret": "whsec_" + base64.b64encode(bytes(24)).decode()},
    ],
)
def test_what_is_well_written_is_taken(webhook: dict[str, Any]) -> None:
    assert len(configured(**webhook).gateway.webhooks) == 1


@pytest.mark.parametrize(
    ("webhook", "at", "words"),
    [
        ({"url": ""}, "url", "no address"),
        ({"url": "hooks.example.com"}, "url", "no address"),
        ({"url": "ftp://hooks.example.com"}, "url", "no address"),
        ({"url": "https://"}, "url", "no address"),
        ({"url": "https://hooks.example.com:0/"}, "url", "no address"),
        ({"url": "https://hooks.example.com:99999/"}, "url", "no address"),
        ({"url": "https://[::1/"}, "url", "no address"),
        ({"url": "https://hooks.example.com/a b"}, "url", "no address"),
        ({"url": "https://hooks.example.com/\n"}, "url", "no address"),
        ({"url": "https://hooks.example.com/#there"}, "url", "no address"),
        ({"url": "https://hooks.example.com/" + "x" * 2048}, "url", "no address"),
        ({"url": "https://me:pw@hooks.example.com/"}, "url", "user name"),
        ({"url": "http://hooks.example.com/"}, "url", "not encrypted"),
        ({"url": "https://127.0.0.1/"}, "url", "not in its `networks`"),
        ({"url": "https://[::1]/"}, "url", "not in its `networks` and not public"),
        ({"url": "http://127.0.0.1/", "networks": ["10.0.0.0/8"]}, "url", "not in its `networks`"),
        ({"url": "http://1.1.1.1/", "networks": ["10.0.0.0/8"]}, "url", "not in its `networks`"),
        ({"secret": ""}, "secret", "no secret"),
        ({"secret": "swordfish"}, "secret", "no secret"),
        ({"secret": "whsec_!"}, "secret", "no secret"),
        ({"secret": "whsec_" + base64.b64encode(bytes(8)).decode()}, "secret", "no secret"),
        ({"secret": "whsec_" + base64.b64encode(bytes(65)).decode()}, "secret", "no secret"),
        ({"events": ["batch.done"]}, "events", "no event"),
        ({"networks": ["10.0.0.1/8"]}, "networks[0]", "no network"),
        ({"networks": ["fd00::/8", "mine"]}, "networks[1]", "no network"),
    ],
)
def test_what_is_not_is_refused_in_a_line(webhook: dict[str, Any], at: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(**webhook)
    said = str(refused.value)
    assert said.startswith(f"gateway.webhooks[0].{at}: ")
    assert words in said
    assert "\n" not in said
    for secret in ("swordfish", "me:pw", "a b"):
        assert secret not in said


def test_each_is_named_once() -> None:
    twice = [{"url": URL, "secret": SECRET}, {"url": URL, "secret": SECRET, "events": []}]
    with pytest.raises(ConfigError, match=r"gateway.webhooks\[1\].url: the same as"):
        Config.from_mapping({"gateway": {"webhooks": twice}})


def test_secrets_are_hidden() -> None:
    text = f"gateway: {{webhooks: [{{url: '{URL}', secret: '${{HOOKS}}'}}]}}"
    config = config_file.parse(text, environ={"HOOKS": SECRET})
    assert config == configured()
    assert SECRET not in config_file.to_yaml(config)
    assert config.to_mapping()["gateway"]["webhooks"][0]["secret"] == "<hidden>"
    assert SECRET not in repr(config)
    assert secret_key(Secret(SECRET)) == bytes(32)
