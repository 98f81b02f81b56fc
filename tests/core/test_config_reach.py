"""Configurations whose parts cannot reach each other, and some that look as if."""

from __future__ import annotations

from typing import Any

import pytest

from qlm_core.config import Config
from qlm_core.config_reach import findings, shared_ports, unserved

AGENT = {"name": "a", "models": ["mistral-7b"]}


def found(**data: Any) -> list[str]:
    config = Config.from_mapping({"insecure": True} | data)
    return list(findings(config, tuple(data)))


def test_what_follows_from_one_place_reaches_each_other() -> None:
    assert found() == []
    assert found(host="10.0.0.5", port_base=9000) == []
    assert found(solver={"listen": "127.0.0.1:1"}, agents=[AGENT]) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"solver": {"listen": "127.0.0.1:7411"}, "gateway": {"solver": "127.0.0.1:7401"}},
            "gateway.solver: 127.0.0.1:7401 does not lead to the solver, which listens on 127.0.0.1:7411 "
            "(solver.listen), another port.",
        ),
        (
            {"solver": {}, "agents": [AGENT | {"solver": "10.0.0.5:7401"}]},
            "agents[0].solver: 10.0.0.5:7401 does not lead to the solver, which listens on 127.0.0.1:7401 "
            "(solver.listen) alone, where only its own machine reaches it.",
        ),
        (
            {"host": "10.0.0.5", "agents": [AGENT | {"solver": "127.0.0.1:7401"}]},
            "not on this machine's own",
        ),
        ({"host": "10.0.0.5", "agents": [AGENT | {"solver": "10.0.0.6:7401"}]}, "another host"),
        (
            {"gateway": {"agents_listen": "0.0.0.0:7403"}},
            "gateway.agents_listen: agents are told to dial 0.0.0.0:7403",
        ),
        (
            {
                "solver": {"listen": "10.0.0.5:7401"},
                "agents": [AGENT | {"solver": "10.0.0.5:7401"}],
            },
            "agents are told to dial 127.0.0.1:7403, and a dials the solver as from another",
        ),
        ({"gateway": {"advertise": "127.0.0.1:9999"}}, "Make the ports agree"),
    ],
)
def test_what_does_not_is_named_with_its_remedy(data: dict[str, Any], words: str) -> None:
    assert words in " ".join(found(**data))


def test_a_file_of_one_host_need_not_describe_the_others() -> None:
    assert found(agents=[AGENT | {"solver": "10.0.0.5:7401"}]) == []
    # Behind a name may be anything.
    wide = {"listen": "0.0.0.0:7401"}
    assert found(solver=wide, agents=[AGENT | {"solver": "solver.example:443"}]) == []


def test_models_without_an_agent_are_listed() -> None:
    assert unserved(Config.from_mapping({"agents": [AGENT]})) == ["vicuna-13b"]
    assert unserved(Config()) == []


def test_agents_that_share_a_machine_must_not_share_ports() -> None:
    agents = [
        AGENT | {"engine": {"kind": "vllm"}},
        AGENT | {"name": "b", "engine": {"kind": "vllm"}},
    ]
    config = Config.from_mapping({"agents": agents})
    (problem,) = shared_ports(config, [0, 1])
    assert problem.startswith("agents[1].engine.vllm.port_base: port 8100 is also agents[0]'s")
    assert list(shared_ports(config, [1])) == []


def test_a_simulated_gpu_without_a_profile_is_found_and_a_real_one_is_not() -> None:
    agent = AGENT | {"gpu": "a1000", "models": ["mistral-7b", "vicuna-13b"]}
    [problem] = findings(Config.from_mapping({"agents": [agent]}), ())
    assert f"agents.{agent['name']}: gpu: no profile for 'a1000'. Use one of a10" in problem
    engine = {"kind": "openai", "openai": {"base_url": "http://127.0.0.1:8000"}}
    assert not list(
        findings(
            Config.from_mapping({"agents": [agent | {"models": ["mistral-7b"], "engine": engine}]}),
            (),
        )
    )
