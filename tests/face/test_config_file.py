"""`config.yaml`: where it is found, what is refused and with which words."""

from pathlib import Path

import pytest
import yaml

from qlm import config_file
from qlm.__main__ import main
from qlm_core.config import Config
from qlm_core.errors import ConfigError

ONE, TWO = "models: [mistral-7b]", "models: [mistral-7b, vicuna-13b]"
OPENAI = "engine: {kind: openai, openai: {base_url: "


def test_an_empty_file_is_the_defaults() -> None:
    assert config_file.parse("", environ={}) == Config()


def test_a_section_keeps_the_defaults_of_what_it_leaves_out() -> None:
    config = config_file.parse("solver: {backend: highs}", environ={})
    assert config.solver.backend == "highs"
    assert config.solver.budget_s == Config().solver.budget_s


def test_the_whole_tree_survives_writing_and_reading() -> None:
    config = config_file.override(Config(), ["gateway.api_keys=[key]", "solver.seed=7"])
    assert config_file.parse(config_file.to_yaml(config, redact=False), environ={}) == config


def test_showing_masks_secrets() -> None:
    config = config_file.override(Config(), ["gateway.api_keys=[key-1]", "solver.gurobi.secret=s3"])
    shown = config_file.to_yaml(config)
    assert "key-1" not in shown
    assert "s3" not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("solver: {backend: x}", "solver.backend: 'x' is not known. Use one of: auto, gurobi,"),
        ("solver: {budget_s: fast}", "solver.budget_s: must be a number, not text."),
        ("solver:", "solver: must be a mapping, not empty."),
        ("solver: {bugdet_s: 1}", "solver.bugdet_s: unknown key. Remove it or check its spelling"),
        ("nope: 1", "nope: unknown key."),
        ("models: {1: {}}", "models: every key must be text."),
        ("models: {a: {path: 3}}", "models.a.path: must be text, not a whole number."),
        ("agents: [{gpu: a10}]", "agents[0].name: missing. Add this key."),
        ("agents: [{name: a, engine: {kind: q}}]", "agents[0].engine.kind: 'q' is not known."),
        ("slo_classes: {x: {ttft_s: 1, f: 2}}", "slo_classes.x.f: unknown key."),
        ("gateway: {http_listen: nowhere}", "gateway.http_listen: 'nowhere' is not host:port"),
        ("solver: {seed: -1}", "solver.seed: must be a finite number of at least 0, not -1"),
        ("solver: {budget_s: 0}", "solver.budget_s: must be above 0."),
        (
            "slo_classes: {interactive: {ttft_s: 0}}",
            "slo_classes.interactive.ttft_s: must be above",
        ),
        (
            "slo_classes: {interactive: {ttft_s: 1, tpot_s: -1}}",
            "interactive.tpot_s: must be a finite number",
        ),
        (
            "slo_classes: {interactive: {ttft_s: .nan}}",
            "interactive.ttft_s: must be a finite number",
        ),
        (
            "slo_classes: {interactive: {ttft_s: 1, weight: -1}}",
            "interactive.weight: must be a finite",
        ),
        ("solver: {objective: {aim: 5}}", "solver.objective.aim: must be at most 1, not 5."),
        ("solver: {replan: {period_s: 1.0e-9}}", "period_s: must be at least 0.001, not 1e-09."),
        ("solver: {replan: {min_interval_s: 1.0e+300}}", "min_interval_s: must be at most 1e+09"),
        ("solver: {rwt: {token_throughput: {m: 0}}}", "token_throughput.m: must be above 0."),
        (f"solver: {{window_requests: 1{'0' * 400}}}", "window_requests: must be at most 1e+18"),
        ("gateway: {attempts_max: 0}", "gateway.attempts_max: must be above 0."),
        ("gateway: {limits: {open_requests_max: 0}}", "open_requests_max: must be above 0."),
        (
            "gateway: {limits: {body_bytes_max: 67108864}}",
            "gateway.limits.message_bytes_max: 67108864 is too small for a request of "
            "gateway.limits.body_bytes_max (67108864)",
        ),
        (
            "gateway: {limits: {body_bytes_max: 67108864, message_bytes_max: 100000000}}",
            "agents[0].message_bytes_max: 67108864 is too small",
        ),
        (
            f"agents: [{{name: a, {ONE}, message_bytes_max: 9000000}}]",
            "message_bytes_max of the gateway and of every agent to at least 25231360.",
        ),
        ("gateway: {advertise: me}", "gateway.advertise: 'me' is not host:port"),
        ("gateway: {id: ''}", "gateway.id: empty."),
        ("solver: {metrics_listen: '7'}", "solver.metrics_listen: '7' is not host:port"),
        ("models: {}", "models: empty."),
        (f"agents: [{{name: '', {ONE}}}]", "agents[0].name: empty."),
        (
            f"agents: [{{name: a, {ONE}, metrics_listen: x}}]",
            "metrics_listen: 'x' is not host:port",
        ),
        (
            f"agents: [{{name: a, {ONE}, report_interval_s: 0}}]",
            "agents[0].report_interval_s: must be above 0",
        ),
        (
            f"agents: [{{name: a, {ONE}, executor: {{output_share: 2}}}}]",
            "must be at most 1, not 2",
        ),
        (f"agents: [{{name: a, {ONE}, {OPENAI}''}}}}}}]", "base_url: '' is no address."),
        (f"agents: [{{name: a, {ONE}, {OPENAI}'gpu:8000'}}}}}}]", "'gpu:8000' is no address."),
        (f"agents: [{{name: a, {ONE}, {OPENAI}'http://h:x'}}}}}}]", "'http://h:x' is no address."),
        (
            f"agents: [{{name: a, {TWO}, {OPENAI}'http://h'}}}}}}]",
            "agents[0].models: an openai engine",
        ),
        (
            f"agents: [{{name: a, {ONE}, engine: {{kind: vllm, vllm: {{command: []}}}}}}]",
            "command: empty",
        ),
        (
            f"agents: [{{name: a, {ONE}, {OPENAI}'http://h', health_path: x}}}}}}]",
            "engine.openai.health_path: 'x' does not begin with /.",
        ),
        ("default_slo_class: gold", "default_slo_class: 'gold' is not one of slo_classes"),
        ("log: {}\nsolver: {}\nlog: {}", "line 3: the key 'log' stands here and in line 1."),
        ("solver: {backend: [", "line 1, column 20: not valid YAML:"),
        ("- a\n- b", "the file must be a mapping of sections."),
        ("models: {m: {path: '${HOME}'}}", "models.m.path: ${NAME} is only replaced in secrets"),
        ("gateway: {api_keys: ['${NO_KEY}']}", "the environment variable NO_KEY is not set."),
    ],
)
def test_a_mistake_is_named_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_file.parse(text, environ={})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_messages_are_raised_with_those_of_bodies() -> None:
    raised = ["gateway.limits.message_bytes_max=83951616", "agents.*.message_bytes_max=83951616"]
    config = config_file.override(Config(), ["gateway.limits.body_bytes_max=67108864", *raised])
    assert config.gateway.limits.body_bytes_max == 67108864


def test_secrets_come_from_the_environment() -> None:
    text = "gateway: {api_keys: ['${ONE}', 'x-${TWO}']}\nsolver: {gurobi: {secret: '${ONE}'}}"
    config = config_file.parse(text, environ={"ONE": "1st", "TWO": "2nd"})
    assert config.gateway.api_keys == ("1st", "x-2nd")
    assert config.solver.gurobi.secret == "1st"


def test_overrides_reach_into_lists_by_index_by_name_and_all_at_once() -> None:
    config = config_file.override(
        Config(),
        [
            "agents.*.engine.sim.time_scale=10",
            "agents[0].gpu=h100",
            "agents.a10-0.drain_s=1",
            'models."mistral-7b".max_model_len=100',
        ],
    )
    assert [agent.engine.sim.time_scale for agent in config.agents] == [10, 10, 10]
    assert config.agents[0].gpu == "h100"
    assert config.agent("a10-0").drain_s == 1
    assert config.models["mistral-7b"].max_model_len == 100


def test_an_override_reaches_into_what_another_one_gave_in_part() -> None:
    config = config_file.override(
        Config(), ["agents=[{name: a, models: [mistral-7b]}]", "agents.*.engine.sim.time_scale=10"]
    )
    assert config.agents[0].engine.sim.time_scale == 10
    assert config.agents[0].drain_s == Config().agents[0].drain_s


@pytest.mark.parametrize(
    "text", ["solver.backend", "agents[9].gpu=a", "log.level.x=1", "=1", "slover.backend=auto"]
)
def test_an_override_that_leads_nowhere_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        config_file.override(Config(), [text])


def test_the_file_is_looked_for_in_order(tmp_path: Path) -> None:
    def find(option: str | None, environ: dict[str, str]) -> Path | None:
        return config_file.find(option, environ=environ, directory=tmp_path)

    assert find(None, {}) is None
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "b.yaml").write_text("{}")
    assert find(None, {}) == tmp_path / "config.yaml"
    assert find(None, {"QLM_CONFIG": str(tmp_path / "b.yaml")}) == tmp_path / "b.yaml"
    with pytest.raises(ConfigError, match="QLM_CONFIG"):
        find(None, {"QLM_CONFIG": str(tmp_path / "c.yaml")})
    with pytest.raises(ConfigError, match="--config"):
        find(str(tmp_path / "d.yaml"), {"QLM_CONFIG": str(tmp_path / "b.yaml")})


def test_the_command_reports_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("solver: {backend: x}")
    assert main(["config", "check", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"qlm: error: {file}: solver.backend: ")
    file.write_text("solver: {backend: greedy}")
    assert main(["config", "check", str(file)]) == 0


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"api_keys": ["k1", "${NOTHING}"]}, r"gateway\.api_keys\[1\]: empty\. Give a key"),
        ({"api_keys": [" \t"]}, r"gateway\.api_keys\[0\]: empty"),
        ({"api_keys": ["k1\n"]}, r"gateway\.api_keys\[0\]: has characters"),
        ({"api_keys": ["schlüssel"]}, r"gateway\.api_keys\[0\]: has characters"),
        ({"cors_origins": ["chat.example.com"]}, r"gateway\.cors_origins\[0\]: .* is no origin"),
        ({"cors_origins": ["*", "https://x.org/"]}, r"gateway\.cors_origins\[1\]: .* is no origin"),
        ({"cors_origins": ["https://X.org"]}, r"gateway\.cors_origins\[0\]: .* is no origin"),
        ({"heartbeat_s": 1e-5}, r"gateway\.heartbeat_s: must be 0 for none, or at least 0\.001"),
        ({"heartbeat_s": -1}, r"gateway\.heartbeat_s: must be a finite number of at least 0"),
    ],
)
def test_a_door_that_would_not_close_or_open_is_refused(
    section: dict[str, object], words: str
) -> None:
    text = yaml.safe_dump({"gateway": section}, allow_unicode=True)
    with pytest.raises(ConfigError, match=words):
        config_file.parse(text, environ={"NOTHING": ""})


def test_origins_and_keys_as_they_should_be_are_accepted() -> None:
    origins = ["https://chat.example.com", "http://localhost:3000", "http://[::1]:80", "*"]
    origins += ["app://obsidian.md", "chrome-extension://abcdefgh"]
    text = yaml.safe_dump({"gateway": {"cors_origins": origins, "api_keys": ["${KEY}"]}})
    config = config_file.parse(text, environ={"KEY": "k1"})
    assert config.gateway.cors_origins == tuple(origins)
    assert config.gateway.api_keys == ("k1",)
