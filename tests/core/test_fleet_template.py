"""The short form of a configuration: one place for addresses, one for what agents have in common, several from one entry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlm_core.config import Config
from qlm_core.errors import ConfigError
from qlm_core.fleet_template import described

MODELS = ["mistral-7b", "vicuna-13b"]
VLLM = {"kind": "vllm"}


def config(**data: Any) -> Config:
    return Config.from_mapping(data)


def addresses(made: Config) -> list[str]:
    gateway, solver = made.gateway, made.solver
    listens = [gateway.http_listen, solver.listen, gateway.grpc_listen, gateway.agents_listen]
    dials = [gateway.solver, *(agent.solver for agent in made.agents)]
    return [*listens, *dials, solver.metrics_listen, *(a.metrics_listen for a in made.agents)]


def test_two_keys_move_the_default_fleet() -> None:
    moved = addresses(config(host="10.0.0.5", port_base=9000, insecure=True))
    assert moved == [
        *("10.0.0.5:9000", "10.0.0.5:9001", "10.0.0.5:9002", "10.0.0.5:9003"),
        *["10.0.0.5:9001"] * 4,
        # Metrics are for this machine alone, wherever the rest is.
        *("127.0.0.1:9091", "127.0.0.1:9092", "127.0.0.1:9093", "127.0.0.1:9094"),
    ]


def test_what_is_given_stays_and_who_dials_follows_it() -> None:
    made = config(
        port_base=9000,
        solver={"listen": "127.0.0.1:5000"},
        gateway={"http_listen": "127.0.0.1:80", "grpc_listen": "auto"},
        agents=[{"name": "a", "models": MODELS}],
    )
    assert made.gateway.http_listen == "127.0.0.1:80"
    assert made.gateway.grpc_listen == "127.0.0.1:9002"
    assert made.gateway.solver == made.agents[0].solver == "127.0.0.1:5000"
    wide = config(solver={"listen": "0.0.0.0:5000"}, insecure=True)
    assert wide.gateway.solver == "127.0.0.1:5000"
    assert config(host="::1").solver.listen == "[::1]:7401"


def test_agents_have_what_is_said_of_all_unless_they_say_otherwise() -> None:
    made = config(
        agent_defaults={
            "models": MODELS,
            "engine": {"sim": {"time_scale": 5, "seed": 3}},
            "drain_s": 7,
        },
        agents=[{"name": "a"}, {"name": "b", "drain_s": 1, "engine": {"sim": {"seed": 4}}}],
    )
    a, b = made.agents
    assert (a.models, a.drain_s, a.engine.sim.time_scale, a.engine.sim.seed) == (
        *(tuple(MODELS), 7, 5),
        3,
    )
    assert (b.drain_s, b.engine.sim.time_scale, b.engine.sim.seed) == (1, 5, 4)


def test_several_instances_get_gpus_and_ports_of_their_own() -> None:
    made = config(
        agent_defaults={"host": "gpu-1", "engine": VLLM, "models": MODELS},
        agents=[
            {"name": "pair", "instances": 2, "tensor_parallel": 2, "metrics_listen": "auto"},
            {"name": "one", "models": MODELS[:1], "devices": [2]},
            {"name": "cpu", "gpu": "cpu", "models": MODELS[:1]},
            {"name": "far", "host": "gpu-2"},
        ],
    )
    taken = [(a.name, a.devices, a.engine.vllm.port_base) for a in made.agents]
    assert taken == [
        ("pair-0", (0, 1), 8100),
        # 2 is another's.
        ("pair-1", (3, 4), 8102),
        ("one", (2,), 8104),
        ("cpu", (), 8105),
        ("far", (0,), 8100),
    ]
    assert [a.metrics_listen for a in made.agents[:2]] == ["127.0.0.1:7492", "127.0.0.1:7493"]


def test_an_agent_of_no_host_keeps_what_its_process_has() -> None:
    made = config(agents=[{"name": n, "models": MODELS, "engine": VLLM} for n in ("a", "b")])
    assert [(a.devices, a.engine.vllm.port_base) for a in made.agents] == [((), 8100)] * 2


def test_instances_take_the_devices_they_are_given_in_order() -> None:
    made = config(
        agents=[
            {
                **{"name": "a", "models": MODELS, "engine": {"kind": "vllm", "vllm": {"port_base": 9100}}},
                **{"instances": 2, "devices": [5, 7], "metrics_listen": "127.0.0.1:9500"},
            }
        ]
    )  # fmt: skip
    assert [(a.devices, a.engine.vllm.port_base, a.metrics_listen) for a in made.agents] == [
        ((5,), 9100, "127.0.0.1:9500"),
        ((7,), 9102, "127.0.0.1:9501"),
    ]


AGENT = {"name": "a", "models": MODELS}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"host": "10.0.0.5:80"}, "host: '10.0.0.5:80' is no host. Give a name"),
        ({"port_base": 65535}, "port_base: 65535 leaves no room for ports up to"),
        ({"port_base": "x"}, "port_base: must be a whole number, not text"),
        ({"agents": [AGENT | {"instances": 0}]}, r"agents\[0\].instances: must be from 1 to 1024"),
        ({"agents": [AGENT | {"instances": 10**9}]}, "instances: must be from 1 to 1024"),
        (
            {"agents": [AGENT | {"engine": VLLM, "instances": 2, "devices": [1, 2, 3]}]},
            r"agents\[0\].devices: 3 GPUs, where instances and tensor_parallel need 2",
        ),
        ({"agents": [AGENT | {"devices": [1]}]}, "are for engines that the agent starts"),
        (
            {"agents": [
                AGENT | {"host": "h", "engine": {"kind": "vllm", "vllm": {"port_base": 8100}}},
                AGENT | {"name": "b", "host": "h", "engine": {"kind": "vllm", "vllm": {"port_base": 8101}}},
            ]},
            r"agents\[1\].engine.vllm.port_base: port 8101 of host h is also agents\[0\]'s",
        ),
        ({"agent_defaults": {"drain_s": "x"}}, "agent_defaults.drain_s: must be a number"),
        ({"agent_defaults": {"name": "x"}}, "agent_defaults.name: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled_in_is_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.from_mapping(data)


hosts = st.sampled_from(["", "h1", "h2"])
engines = st.sampled_from([{}, {"kind": "vllm"}, {"kind": "vllm", "vllm": {"port_base": 9100}}])


@given(
    st.integers(1, 60_000),
    st.dictionaries(st.sampled_from(["drain_s", "gateway_grace_s"]), st.integers(1, 9)),
    st.lists(st.tuples(hosts, st.integers(1, 3), engines, st.booleans()), max_size=4),
)
def test_the_short_form_says_the_same(
    port_base: int,
    defaults: dict[str, int],
    agents: list[tuple[str, int, dict[str, Any], bool]],
) -> None:
    data = {
        "port_base": port_base,
        "agent_defaults": defaults,
        "agents": [
            {"name": f"a{index}", "models": MODELS, "host": host, "instances": count, "engine": engine}
            | ({"metrics_listen": "auto"} if measured else {})
            for index, (host, count, engine, measured) in enumerate(agents)
        ],
    }  # fmt: skip
    try:
        made = Config.from_mapping(data)
    except ConfigError:
        # Two entries of a host have the same port_base.
        assert sum(bool(host) and "vllm" in engine for host, _, engine, _ in agents) > 1
        return
    assert Config.from_mapping(described(made, redact=False)) == made
    assert Config.from_mapping(made.to_mapping(redact=False)) == made
