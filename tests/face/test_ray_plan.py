"""What agents ask a Ray cluster for, what their own configurations hold, and what has to change; all of it without Ray."""

from __future__ import annotations

import re

import pytest
import yaml

from qlm import config_file, ray_plan
from qlm.__main__ import main
from qlm.ray_fleet import Node
from qlm_core.config import Config
from qlm_core.errors import ConfigError

VLLM = "engine: {kind: vllm}"


def read(text: str) -> Config:
    return config_file.parse(text, environ=None)


def agents(*entries: str, more: str = "") -> Config:
    lines = "\n".join(f"  - {{{entry}, models: [mistral-7b]}}" for entry in entries)
    return read(f"{more}\nagents:\n{lines}")


def asked(config: Config) -> dict[str, str]:
    return {one.name: str(one.ask) for one in ray_plan.placements(config)}


def prints(config: Config) -> dict[str, str]:
    return {one.name: one.fingerprint for one in ray_plan.placements(config)}


def test_an_engine_on_gpus_asks_for_them_by_rays_name() -> None:
    config = agents(
        f"name: a, gpu: a10, {VLLM}",
        "name: b, gpu: h100, tensor_parallel: 4, engine: {kind: vllm, vllm: {port_base: 9000}}",
        "name: c, gpu: cpu, engine: {kind: vllm, vllm: {port_base: 9001}}",
    )
    assert asked(config) == {
        "a": "CPU 1, GPU 1, ray.io/accelerator-type in(A10,A10G)",
        "b": "CPU 1, GPU 4, ray.io/accelerator-type H100",
        "c": "CPU 1",
    }
    first = ray_plan.placements(config)[0]
    assert first.ask.options() == {
        "num_cpus": 1,
        "num_gpus": 1,
        "label_selector": {"ray.io/accelerator-type": "in(A10,A10G)"},
    }


def test_a_simulated_gpu_may_be_anywhere_unless_its_class_is_said() -> None:
    entry = "name: a, gpu: a10"
    assert asked(agents(entry)) == {"a": "CPU 0.1"}
    said = agents(entry, more="ray: {gpus: {a10: {resources: {a10: 0.5}}}}")
    assert asked(said) == {"a": "CPU 0.1, a10 0.5"}
    (placement,) = ray_plan.placements(said)
    assert placement.ask.options() == {"num_cpus": 0.1, "num_gpus": 0, "resources": {"a10": 0.5}}


def test_what_is_said_of_a_gpu_takes_the_place_of_what_is_known() -> None:
    config = agents(
        f"name: a, gpu: a100, {VLLM}",
        more="ray: {gpus: {a100: {label_selector: {zone: '!east'}}}}",
    )
    assert asked(config) == {"a": "CPU 1, GPU 1, zone !east"}


def test_so_many_cpus_are_asked_for_as_are_said() -> None:
    config = agents(
        "name: a, gpu: cpu, engine: {kind: vllm}", more="ray: {gpus: {cpu: {resources: {CPU: 8}}}}"
    )
    (placement,) = ray_plan.placements(config)
    assert placement.ask.options() == {"num_cpus": 8, "num_gpus": 0}


def test_a_gpu_that_nobody_knows_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"agents\.a\.gpu: .*'newest'.*ray: \{gpus: \{newest:"):
        ray_plan.placements(agents(f"name: a, gpu: newest, {VLLM}"))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{resources: {GPU: 1}}", r"ray\.gpus\.a10\.resources: 'GPU' is no custom resource"),
        ("{resources: {x: 0}}", r"ray\.gpus\.a10\.resources\.x: Ray has no 0"),
        ("{resources: {x: 1.5}}", r"ray\.gpus\.a10\.resources\.x: Ray has no 1\.5"),
        ("{resources: {x: -1}}", r"ray\.gpus\.a10\.resources\.x: must be a finite number"),
        ("{label_selector: {zone: ''}}", r"ray\.gpus\.a10\.label_selector: empty"),
        ("{labels: {zone: a}}", r"ray\.gpus\.a10.*labels"),
    ],
)
def test_what_ray_could_not_take_is_refused(entry: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(f"ray: {{gpus: {{a10: {entry}}}}}")


def test_agents_of_hosts_are_left_alone() -> None:
    config = agents("name: a, host: here", "name: b, host: ''")
    assert list(asked(config)) == ["b"]
    with pytest.raises(ConfigError, match="agents: each of them has a `host`"):
        ray_plan.placements(agents("name: a, host: here"))


def test_two_agents_that_may_share_a_machine_share_no_port() -> None:
    both = (f"name: a, {VLLM}", f"name: b, {VLLM}")
    with pytest.raises(ConfigError, match=r"agents\[1\]\.engine\.vllm\.port_base: port 8100"):
        ray_plan.placements(agents(*both))
    config = agents(f"name: a, instances: 2, {VLLM}")
    ports = [
        yaml.safe_load(one.text)["agents"][0]["engine"]["vllm"]["port_base"]
        for one in ray_plan.placements(config)
    ]
    assert ports == [8100, 8101]


def test_ray_says_which_gpus_an_agent_has() -> None:
    config = agents(
        f"name: a, devices: [3], {VLLM}",
        "name: b, instances: 2, engine: {kind: vllm, vllm: {port_base: 9000}}",
    )
    assert [agent.devices for agent in config.agents] == [(3,), (0,), (1,)]
    for one in ray_plan.placements(config):
        assert config_file.parse(one.text, environ={}).agents[0].devices == ()


SECRETS = """
auth: {secret: "${PARTS}"}
gateway:
  api_keys: {one: {key: "${ONE}"}, head: {key: "${HEAD}", operator: true}}
  webhooks: [{url: "https://hooks.example.com", secret: "${HOOK}"}]
solver: {gurobi: {secret: "${GUROBI}"}}
agents:
  - {name: a, models: [mistral-7b], engine: {kind: openai, openai: {base_url: "http://a", api_key: "${A}"}}}
  - {name: b, models: [mistral-7b], engine: {kind: vllm, vllm: {env: {TOKEN: "${B}"}}}}
"""


def named(text: str) -> list[str]:
    return re.findall(r"\$\{(\w+)\}", text)


def test_an_agent_is_given_its_own_secrets_unexpanded() -> None:
    first, second = ray_plan.placements(read(SECRETS))
    assert named(first.text) == ["PARTS", "A"]
    assert named(second.text) == ["PARTS", "B"]
    there = config_file.parse(second.text, environ={"PARTS": "p", "B": "b"})
    assert there.auth.secret.reveal() == "p"
    assert there.agents[0].engine.vllm.env["TOKEN"].reveal() == "b"
    with pytest.raises(ConfigError, match="environment variable PARTS is not set"):
        config_file.parse(second.text, environ={})


def test_an_agent_whose_metrics_others_read_has_the_operators_keys() -> None:
    config = config_file.override(read(SECRETS), ["agents.a.metrics_listen=0.0.0.0:7492"])
    first, _ = ray_plan.placements(config)
    assert sorted(named(first.text)) == ["A", "HEAD", "PARTS"]


def test_overrides_are_part_of_what_is_placed() -> None:
    config = config_file.override(read(SECRETS), ["agents.b.drain_s=7", "log.format=json"])
    text = ray_plan.placements(config)[1].text
    there = config_file.parse(text, environ=None)
    assert (there.agents[0].drain_s, there.log.format) == (7, "json")


PAIR = ("name: a", "name: b")


@pytest.mark.parametrize(
    ("changed", "differ"),
    [
        (agents(*PAIR), []),
        (agents(*PAIR, "name: c"), []),
        (agents("name: a", "name: b, drain_s: 3"), ["b"]),
        (agents("name: a", "name: b, gpu: a10"), ["b"]),
        (agents(*PAIR, more="ray: {gpus: {a100: {resources: {x: 1}}}}"), ["a", "b"]),
        (agents(*PAIR, more="models: {mistral-7b: {path: elsewhere}}"), ["a", "b"]),
        (agents(*PAIR, more="auth: {secret: other}"), ["a", "b"]),
        (agents(*PAIR, more="models: {mistral-7b: {}, more: {}}"), []),
        (agents(*PAIR, more="gateway: {api_keys: [k], drain_s: 3}"), []),
        (agents(*PAIR, more="solver: {backend: greedy}"), []),
    ],
)
def test_an_agent_changes_with_what_it_reads_alone(changed: Config, differ: list[str]) -> None:
    before, after = prints(agents(*PAIR)), prints(changed)
    assert [name for name in before if before[name] != after[name]] == differ


def test_what_has_to_change() -> None:
    wanted = {"same": "1", "other": "2", "nowhere": "3", "new": "4"}
    found = {"gone": "0", "same": "1", "other": "0", "nowhere": None}
    assert ray_plan.changes(wanted, found) == ray_plan.Changes(
        keep=("same",), replace=("other", "nowhere"), add=("new",), remove=("gone",)
    )


LOOPBACK = ("127.0.0.1", "127.0.0.1")
SEVERAL = ("10.0.0.1", "10.0.0.2")


def test_agents_on_other_machines_need_more_than_loopback() -> None:
    near = agents("name: far, host: here", "name: a")
    ray_plan.check_reach(near, LOOPBACK)
    ray_plan.check_reach(near, ("10.0.0.1", "10.0.0.1"))
    with pytest.raises(ConfigError, match=r"agents\[1\]\.solver: 127.0.0.1:7401 .* Set `host`"):
        ray_plan.check_reach(near, SEVERAL)
    solver = agents("name: a, solver: '10.0.0.9:7401'")
    with pytest.raises(ConfigError, match=r"gateway\.agents_listen: 127\.0\.0\.1:7403"):
        ray_plan.check_reach(solver, SEVERAL)
    shared = "host: 10.0.0.9\nauth: {secret: s}\ngateway: {api_keys: [k]}"
    ray_plan.check_reach(agents("name: a", more=shared), SEVERAL)


def test_a_node_is_told_by_what_agents_ask_for() -> None:
    node = Node(
        node_id="0123456789abcdef",
        address="10.0.0.1",
        resources={"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0},
        labels={"ray.io/node-id": "0123456789abcdef", "ray.io/accelerator-type": "A100"},
    )
    assert str(node) == "10.0.0.1 (01234567): CPU 8, GPU 2, ray.io/accelerator-type A100"


def test_without_ray_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for action in ("up", "status", "down"):
        assert main(["ray", action]) == 2
        assert capsys.readouterr().err == (
            "qlm: error: Ray is not installed. Install it: pip install 'qlm-serving[ray]'.\n"
        )
