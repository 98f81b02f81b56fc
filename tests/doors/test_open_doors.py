"""Doors that stand open, keys that are none and certificates that are half there are found by the check, and at the start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.registry import Collector

from protos.doors import Doors, Rejections, warn_of_open_doors
from protos.identity import SOLVER
from protos.metrics_door import serve_metrics
from qlm import config_file
from qlm.__main__ import main
from qlm.ports import free_addresses
from qlm_core.config import Config
from qlm_core.config_doors import is_loopback, open_doors
from qlm_core.errors import ConfigError

SECRET = {"auth": {"secret": "s"}}
TLS = {"tls": {"ca": "a", "cert": "b", "key": "c"}}
KEYS = {"gateway": {"api_keys": ["k"]}}
TENANTS = {"gateway": {"api_keys": {"admin": {"key": "k", "operator": True}}}}
AGENT = {"name": "a", "models": ["mistral-7b"]}

LISTENERS = [
    ("solver.listen", "7401", [SECRET, TLS], [KEYS]),
    ("solver.metrics_listen", "7491", [TENANTS], [KEYS, SECRET, TLS]),
    ("gateway.http_listen", "7400", [KEYS, TENANTS], [SECRET, TLS]),
    ("gateway.grpc_listen", "7402", [KEYS, TENANTS], [SECRET, TLS]),
    ("gateway.agents_listen", "7403", [SECRET, TLS], [KEYS, TENANTS]),
    ("agents[0].metrics_listen", "7492", [TENANTS], [KEYS, SECRET, TLS]),
]


def listening(key: str, address: str, *more: dict[str, Any]) -> dict[str, Any]:
    """A configuration with one listener at an address."""
    section, _, name = key.rpartition(".")
    data: dict[str, Any] = {"agents": [dict(AGENT)]}
    for one in more:
        for part, values in one.items():
            data[part] = data.get(part, {}) | values
    if section == "agents[0]":
        data["agents"][0][name] = address
    else:
        data[section] = data.get(section, {}) | {name: address}
    return data


@pytest.mark.parametrize(
    ("key", "port", "shut", "not_shut"), LISTENERS, ids=lambda one: str(one)[:24]
)
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.5", "gpu-1.example.com", "[fe80::1]"])
def test_a_door_that_other_machines_reach_asks_who_comes_in(
    key: str, port: str, shut: list[Any], not_shut: list[Any], host: str
) -> None:
    address = f"{host}:{port}"
    for other in ({}, *not_shut):
        with pytest.raises(ConfigError) as raised:
            Config.from_mapping(listening(key, address, other))
        said = str(raised.value)
        assert said.startswith(f"{key}: {address} can be reached from other machines")
        assert "insecure: true" in said
        assert ("gateway.api_keys" in said) or ("auth.secret" in said)
    for one in shut:
        assert list(open_doors(Config.from_mapping(listening(key, address, one)))) == []
    meant = Config.from_mapping(listening(key, address) | {"insecure": True})
    assert [door.key for door in open_doors(meant)] == [key]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_loopback_needs_nothing(host: str) -> None:
    for key, port, _, _ in LISTENERS:
        Config.from_mapping(listening(key, f"{host}:{port}"))
    assert is_loopback(f"{host}:1")


@pytest.mark.parametrize("host", ["", "127.1", "localhost.evil.example", "[::ffff:10.0.0.1]", "0"])
def test_what_is_not_known_to_be_loopback_is_not(host: str) -> None:
    assert not is_loopback(f"{host}:1")


def test_an_open_door_is_refused_by_the_check_and_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (address,) = free_addresses(1)
    port = address.rpartition(":")[2]
    file = tmp_path / "open.yaml"
    for key, command in (
        ("solver.listen", ["solver"]),
        ("gateway.agents_listen", ["gateway"]),
        ("agents[0].metrics_listen", ["agent", "--name", "a"]),
        ("gateway.http_listen", ["up"]),
    ):
        file.write_text(json.dumps(listening(key, f"0.0.0.0:{port}")))
        for words in (["config", "check", str(file)], [*command, "--config", str(file)]):
            assert main(words) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"qlm: error: {file}: {key}: 0.0.0.0:{port} can be reached")
            assert said.count("\n") == 1
    file.write_text(json.dumps(listening("solver.listen", "0.0.0.0:7401") | {"insecure": True}))
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out.endswith("insecure: true has it: solver.listen 0.0.0.0:7401\n")


def test_doors_that_stand_open_on_purpose_are_said_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = listening("solver.listen", "0.0.0.0:1") | {"insecure": True}
    data["gateway"] = {"http_listen": "0.0.0.0:2"}
    config = Config.from_mapping(data)
    warn_of_open_doors(config, "solver.")
    warn_of_open_doors(Config(), "solver.")
    said = [vars(one)["key"] for one in caplog.records if one.levelno == logging.WARNING]
    assert said == ["solver.listen"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("auth: {secret: '${NOTHING}'}", r"auth\.secret: empty\. Give a key"),
        ("auth: {secret: '${BLANK}'}", r"auth\.secret: empty\. Give a key"),
        ("auth: {secret: '  '}", r"auth\.secret: empty\. Give a key"),
        ("auth: {secret: 'a\tb'}", r"auth\.secret: has characters"),
        ("auth: {secret: 7}", r"auth\.secret: must be text, not a whole number\."),
        ("gateway: {api_keys: ['${BLANK}']}", r"gateway\.api_keys\[0\]: empty"),
        ("gateway: {api_keys: {alice: {key: '${NOTHING}'}}}", r"api_keys\.alice\.key: empty"),
        ("gateway: {api_keys: {alice: {key: '${BLANK}'}}}", r"api_keys\.alice\.key: empty"),
        ("gateway: {api_keys: {alice: {key: ''}}}", r"api_keys\.alice\.key: empty"),
        ("gateway: {api_keys: {alice: {}}}", r"api_keys\.alice\.key: missing\. Add this key"),
        ("gateway: {api_keys: {alice: k}}", r"api_keys\.alice: must be a mapping, not text"),
        ("gateway: {api_keys: k}", r"api_keys: must be a mapping or a list, not text"),
        ("gateway: {api_keys: [7]}", r"api_keys\[0\]: must be text, not a whole number"),
        ("gateway: {api_keys: {a: {key: k, modles: []}}}", r"api_keys\.a\.modles: unknown key"),
        ("gateway: {api_keys: {a/b: {key: k}}}", r"api_keys\.a/b: no name for a tenant"),
        ("gateway: {api_keys: {a: {key: k}, b: {key: k}}}", r"b\.key: the same as .*a\.key"),
        ("gateway: {api_keys: [k, k]}", r"api_keys\[1\]: the same as gateway\.api_keys\[0\]"),
        ("gateway: {api_keys: {a: {key: k, models: [x]}}}", r"a\.models: 'x' is not in `models`"),
        ("gateway: {api_keys: {a: {key: k, classes: [x]}}}", r"a\.classes: 'x' is no class"),
        ("gateway: {api_keys: {a: {key: k, requests_max: 0}}}", r"a\.requests_max: .*above 0"),
        ("tls: {ca: a, cert: b}", r"tls\.key: missing\. Give ca, cert and key"),
        ("tls: {cert: a, key: b}", r"tls\.ca: missing"),
        ("tls: {revoked: a}", r"tls\.ca: missing"),
        ("gateway: {tls: {cert: a}}", r"gateway\.tls\.key: missing"),
        ("gateway: {agents_listen: '127.0.0.1:7402'}", r"agents_listen: .* is also .*grpc_listen"),
        ("gateway: {grpc_listen: 'localhost:7400'}", r"grpc_listen: .* is also .*http_listen"),
        (
            "{auth: {secret: a}, gateway: {agents_listen: '[::]:7400'}}",
            r"agents_listen: .* is also",
        ),
        (
            "solver: {metrics_listen: '127.0.0.1:7401'}",
            r"metrics_listen: .* is also solver\.listen",
        ),
        ("gateway: {advertise: '10.0.0.1:7402'}", r"gateway\.advertise: .* leads to grpc_listen"),
    ],
)
def test_half_a_door_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_file.parse(text, environ={"NOTHING": "", "BLANK": " \n"})


@pytest.mark.parametrize("key", ["openai.api_key", "vllm.env.HF_TOKEN"])
def test_keys_of_engines_are_not_empty_either(key: str) -> None:
    kind, *path = key.split(".")
    section: Any = "${NOTHING}"
    for step in reversed(path):
        section = {step: section}
    text = json.dumps({"agents": [AGENT | {"engine": {kind: section}}]})
    with pytest.raises(ConfigError, match=rf"agents\[0\]\.engine\.{key}: empty\. Give a key"):
        config_file.parse(text, environ={"NOTHING": ""})


class Nothing(Collector):
    """No metrics."""

    def collect(self) -> list[Any]:
        """None."""
        return []


@pytest.mark.parametrize("beyond", [True, False])
async def test_metrics_of_parts_are_open_on_loopback_and_for_operators_beyond(
    beyond: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.metrics_door.is_loopback", lambda _: not beyond)
    keys = {"alice": {"key": "a"}, "admin": {"key": "b", "operator": True}}
    config = Config.from_mapping({"gateway": {"api_keys": keys}})
    rejections = Rejections()
    (address,) = free_addresses(1)
    runner = await serve_metrics(
        Nothing(),
        config,
        address,
        key="solver.metrics_listen",
        doors=Doors(config, SOLVER),
        rejections=rejections,
    )
    try:
        async with aiohttp.ClientSession() as session:
            for said, status in (("", 401), ("Bearer a", 401), ("b", 401), ("bearer b", 200)):
                headers = {"authorization": said} if said else {}
                async with session.get(f"http://{address}/metrics", headers=headers) as answer:
                    assert answer.status == (status if beyond else 200)
    finally:
        await runner.cleanup()
    assert rejections.counts == ({("metrics", "key"): 3} if beyond else {})
