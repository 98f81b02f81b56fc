"""`qlm init` and what it finds, `qlm completion`, and packages that somebody has overwritten."""

from __future__ import annotations

import json
import subprocess
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from aiohttp import web

from qlm import config_file, discovery, first_config, overwritten
from qlm.__main__ import COMMANDS, main
from qlm.discovery import Gpu, Model, Server
from qlm.first_config import Found
from qlm_core.config import Config
from qlm_core.errors import QlmError

GB = 10**9
A100 = [Gpu(index=i, name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * GB) for i in range(8)]
SMALL = Gpu(index=8, name="NVIDIA GeForce RTX 3060", memory_bytes=12 * GB)
LARGE = Model(path="meta/Llama-70B", weights_bytes=141 * GB, max_model_len=131_072)
MEDIUM = Model(path="/models/Mistral-7B", weights_bytes=15 * GB, max_model_len=32_768)
HUGE = Model(path="x/huge", weights_bytes=2_000 * GB)


def made(**found: object) -> tuple[str, Config]:
    text = first_config.text_of(Found(host="n1", **found))  # type: ignore[arg-type]
    return text, config_file.parse(text, environ={})


def test_gpus_are_divided_by_the_largest_model_that_fits() -> None:
    text, config = made(gpus=[*A100, SMALL], models=[LARGE, MEDIUM, HUGE])
    assert [(a.name, a.gpu, a.devices, a.models) for a in config.agents] == [
        ("a100-0", "a100", (0, 1, 2, 3), ("llama-70b", "mistral-7b")),
        ("a100-1", "a100", (4, 5, 6, 7), ("llama-70b", "mistral-7b")),
    ]
    assert {agent.engine.kind for agent in config.agents} == {"vllm"}
    assert config.models["llama-70b"].max_model_len == 32_768
    assert config.models["mistral-7b"].path == "/models/Mistral-7B"
    # What fits nowhere is said, not served.
    assert "huge" not in config.models
    assert "# fits none of these GPUs: huge" in text
    assert "too small for llama-70b, mistral-7b, huge" in text


def test_servers_that_run_are_attached_to() -> None:
    server = Server(url="http://127.0.0.1:11434", models=("qwen:7b", "no"))
    _, config = made(servers=[server])
    assert [agent.models for agent in config.agents] == [("qwen:7b",), ("no",)]
    assert {agent.engine.openai.base_url for agent in config.agents} == {server.url}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "Neither a GPU nor a model server was found."),
        ({"gpus": A100}, "There are GPUs here, and no model"),
        ({"models": [MEDIUM]}, "There are models here, and no GPU"),
    ],
)
def test_where_there_is_nothing_gpus_are_simulated(found: dict[str, object], why: str) -> None:
    text, config = made(**found)
    assert why in text
    assert [agent.engine.kind for agent in config.agents] == ["sim", "sim"]


def test_the_drivers_table_is_read() -> None:
    said = "0, NVIDIA H100 80GB HBM3, 81559\n1, NVIDIA RTX PRO 6000, 97887\n[N/A], x, y\n2, NVIDIA L4, 23034\n"
    assert [(gpu.index, gpu.kind) for gpu in discovery.gpus_of(said)] == [
        *((0, "h100"), (1, "rtxpro6000")),
        (2, "l4"),
    ]


def cached(folder: Path, name: str, config: object, weights: int) -> None:
    snapshot = folder / f"models--org--{name}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "model.safetensors").write_bytes(b"x" * weights)


def test_models_of_the_cache_are_those_that_generate_and_are_there(tmp_path: Path) -> None:
    generates = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
    cached(tmp_path, "whole", generates, 10)
    cached(tmp_path, "without-weights", generates, 0)
    cached(tmp_path, "embeds", {"architectures": ["BertModel"]}, 10)
    cached(tmp_path, "odd", ["no mapping"], 10)
    (tmp_path / "models--org--empty").mkdir()
    assert discovery.cached_models(tmp_path) == [
        Model(path="org/whole", weights_bytes=10, max_model_len=4096)
    ]
    assert discovery.cached_models(tmp_path / "nowhere") == []
    assert discovery.cache_of({"HF_HOME": "/h"}) == Path("/h/hub")
    assert discovery.cache_of({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")


async def test_only_model_servers_count_and_no_gateway_of_ours() -> None:
    async def served(owner: str) -> tuple[web.AppRunner, int]:
        async def models(_: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "m", "owned_by": owner}]})

        app = web.Application()
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, runner.addresses[0][1]

    runners = [await served("vllm"), await served("qlm")]
    try:
        found = await discovery.servers([1, *(port for _, port in runners)])
        assert found == [Server(url=f"http://127.0.0.1:{runners[0][1]}", models=("m",))]
    finally:
        for runner, _ in runners:
            await runner.cleanup()


def test_the_command_writes_what_is_valid_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "gpus", lambda: A100[:1])
    monkeypatch.setattr(discovery, "cached_models", lambda _: [MEDIUM, LARGE])
    monkeypatch.setattr(discovery, "SERVER_PORTS", ())
    assert main(["init", "--model", "/models/Mistral-7B"]) == 0
    assert "wrote config.yaml: models mistral-7b; agents a100" in capsys.readouterr().out
    assert main(["config", "check"]) == 0
    assert main(["init"]) == 2
    assert "Give --force to replace it" in capsys.readouterr().err
    assert main(["init", "--force", "--model", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--time-scale" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_package_that_is_anothers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwritten.check()
    package = tmp_path / "agents"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(overwritten, "find_spec", lambda _: None)
        with pytest.raises(QlmError, match="the package `agents` of qlm-serving is missing"):
            overwritten.check()
    (package / "__init__.py").write_text("from .agent import Agent\n")
    # Past what is imported already.
    monkeypatch.setattr(overwritten, "find_spec", PathFinder.find_spec)
    with pytest.raises(QlmError, match=r"`agents` in .*/agents is not QLM's.*pip install qlm-cl"):
        overwritten.check()
