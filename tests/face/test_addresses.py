"""Where commands find the gateway: options, environment, configuration, in this order."""

from __future__ import annotations

import argparse

import pytest

from qlm.__main__ import main
from qlm.commands import options


def args(**said: object) -> argparse.Namespace:
    known = {"address": None, "url": None, "ca": None, "config": None, "overrides": []}
    return argparse.Namespace(**(known | said))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    for name in ("QLM_ADDRESS", "QLM_URL", "QLM_CA", "QLM_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "environ", "grpc", "http"),
    [
        ({}, {}, "127.0.0.1:7402", "http://127.0.0.1:7400"),
        ({"overrides": ["port_base=9000"]}, {}, "127.0.0.1:9002", "http://127.0.0.1:9000"),
        ({}, {"QLM_ADDRESS": "head:7402"}, "head:7402", "http://head:7400"),
        ({}, {"QLM_ADDRESS": "head"}, "head:7402", "http://head:7400"),
        ({}, {"QLM_ADDRESS": "[::1]"}, "[::1]:7402", "http://[::1]:7400"),
        ({"address": "other:1"}, {"QLM_ADDRESS": "head"}, "other:1", "http://other:7400"),
        (
            *({"url": "https://x/"}, {"QLM_URL": "y:1", "QLM_ADDRESS": "head"}),
            *("head:7402", "https://x"),
        ),
        ({}, {"QLM_URL": "y:1"}, "127.0.0.1:7402", "http://y:1"),
        (
            {"overrides": ["host=0.0.0.0", "insecure=true"]},
            {},
            "127.0.0.1:7402",
            "http://127.0.0.1:7400",
        ),
    ],
)
def test_the_gateway_is_where_the_nearest_says(
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, object],
    environ: dict[str, str],
    grpc: str,
    http: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert options.address_of(args(**said)) == grpc
    assert options.url_of(args(**said)) == http


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["statsu"], "status"),
        (["submit", "--modle", "x", "y"], "--model"),
        (["config", "show", "--defualts"], "--defaults"),
        (["config", "check", "--set", "solver.bakend=highs"], "backend"),
        (["config", "check", "--set", "solver.backend=higs"], "highs"),
        (["config", "check", "--set", "agents.*.models=[mistral7b]"], "mistral-7b"),
        (["config", "check", "--set", "default_slo_class=interactiv"], "interactive"),
        (["agent", "--name", "a10-1"], "a100-1"),
    ],
)
def test_a_slip_of_the_pen_is_recognised(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


def test_what_resembles_nothing_is_not_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_a_configuration_whose_parts_miss_each_other_is_not_valid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "check", "--set", "gateway.solver=127.0.0.1:7499"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("qlm: error: gateway.solver: 127.0.0.1:7499 does not lead to")


def test_the_short_form_is_shown_unless_all_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "show", "--defaults"]) == 0
    short = capsys.readouterr().out
    assert main(["config", "show", "--defaults", "--full"]) == 0
    full = capsys.readouterr().out
    assert "http_listen: auto" in short
    assert "http_listen: 127.0.0.1:7400" in full
    assert len(short.splitlines()) < len(full.splitlines())
