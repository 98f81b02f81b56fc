"""The first configuration of a machine, as text with comments, from what `qlm.discovery` finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from qlm.discovery import Gpu, Model, Server

# Of a GPU's memory vLLM takes this share; beside weights there must be room for requests.
MEMORY_SHARE = 0.9
ROOM_FOR_REQUESTS = 1.25
# Longer contexts take memory from everybody; raise it where they are needed.
MODEL_LEN_MOST = 32_768
MODEL_LEN_UNKNOWN = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is on a machine called `host`."""

    host: str
    gpus: Sequence[Gpu] = ()
    models: Sequence[Model] = ()
    servers: Sequence[Server] = ()


def text_of(found: Found) -> str:
    """The configuration, in YAML."""
    parts = [_HEAD]
    models, agents = _models_and_agents(found)
    parts.append("# The models that clients may ask for, by the name that clients use.\nmodels:\n")
    parts += models
    parts.append(
        "\nagent_defaults:\n  metrics_listen: auto        # Prometheus, for this machine\n"
    )
    parts.append("\n# One agent for each serving instance; `qlm up` starts all of them.\nagents:\n")
    parts += agents
    parts.append(_TAIL)
    return "".join(parts)


def width_of(model: Model, gpu: Gpu) -> int:
    """Over how many such GPUs a model has to be spread: a power of two."""
    needed = model.weights_bytes * ROOM_FOR_REQUESTS
    width = 1
    while width * gpu.memory_bytes * MEMORY_SHARE < needed:
        width *= 2
    return width


def _models_and_agents(found: Found) -> tuple[list[str], list[str]]:
    models: dict[str, str] = {}
    agents: list[str] = []
    for server in found.servers:
        _add_server(server, models, agents)
    if found.gpus and found.models:
        _add_gpus(found, models, agents)
    if not agents:
        return [_SIM_MODELS], [_SIM_AGENTS.format(why=_why_nothing(found))]
    return list(models.values()), agents


def _add_server(server: Server, models: dict[str, str], agents: list[str]) -> None:
    port = server.url.rpartition(":")[2]
    for model in server.models:
        models.setdefault(
            model,
            f"  {_quoted(model)}: {{max_model_len: {MODEL_LEN_UNKNOWN}}}  # as its server has it: correct this\n",
        )
        name = f"server-{port}" if len(server.models) == 1 else f"server-{port}-{len(agents)}"
        agents.append(
            f"  - name: {name}\n"
            f"    models: [{_quoted(model)}]\n"
            f"    engine: {{kind: openai, openai: {{base_url: {_quoted(server.url)}}}}}  # it runs already\n"
        )


def _add_gpus(found: Found, models: dict[str, str], agents: list[str]) -> None:
    # What a server has already is served.
    served = dict.fromkeys(models)
    for kind in dict.fromkeys(gpu.kind for gpu in found.gpus):
        gpus = [gpu for gpu in found.gpus if gpu.kind == kind]
        fits = [model for model in found.models if width_of(model, gpus[0]) <= len(gpus)]
        for model in found.models:
            models.setdefault(model.name, _model_line(model))
        if not fits:
            agents.append(_too_small(kind, gpus, found.models))
            continue
        served |= dict.fromkeys(model.name for model in fits)
        width = max(width_of(model, gpus[0]) for model in fits)
        count = len(gpus) // width
        devices = ", ".join(str(gpu.index) for gpu in gpus[: count * width])
        names = ", ".join(_quoted(model.name) for model in fits)
        gigabytes = gpus[0].memory_bytes / 1e9
        agents.append(
            f"  - name: {_quoted(kind)}\n"
            f"    gpu: {_quoted(kind):<22}# {len(gpus)} × {gpus[0].name}, {gigabytes:.0f} GB each\n"
            f"    host: {_quoted(found.host):<21}# `qlm agent --host {found.host}` starts the agents of this machine\n"
            f"    models: [{names}]  # one is awake at a time, the others sleep in host memory\n"
            f"    instances: {count:<16}# each with GPUs and ports of its own\n"
            f"    tensor_parallel: {width:<10}# GPUs of each instance\n"
            f"    devices: [{devices}]\n"
            "    engine: {kind: vllm}      # starts and supervises `vllm serve`\n"
        )
    for model in found.models:
        if model.name not in served and model.name in models:
            models[model.name] = f"  # fits none of these GPUs: {models[model.name].strip()}\n"


def _model_line(model: Model) -> str:
    length = min(model.max_model_len or MODEL_LEN_UNKNOWN, MODEL_LEN_MOST)
    most = f", {model.max_model_len} at most" if model.max_model_len > length else ""
    size = f"  # {model.weights_bytes / 1e9:.1f} GB{most}" if model.weights_bytes else ""
    return (
        f"  {_quoted(model.name)}: {{path: {_quoted(model.path)}, max_model_len: {length}}}{size}\n"
    )


def _too_small(kind: str, gpus: Sequence[Gpu], models: Sequence[Model]) -> str:
    names = ", ".join(model.name for model in models)
    return f"  # {len(gpus)} × {kind} ({gpus[0].memory_bytes / 1e9:.0f} GB each): too small for {names}.\n"


def _why_nothing(found: Found) -> str:
    if found.gpus:
        return (
            "There are GPUs here, and no model: name one with `qlm init --model PATH_OR_HUB_NAME`."
        )
    if found.models:
        return "There are models here, and no GPU (nvidia-smi tells of none) and no model server."
    return "Neither a GPU nor a model server was found."


def _quoted(text: str) -> str:
    """A scalar of YAML, in quotes where it needs them."""
    plain = text.replace("-", "").replace(".", "").replace("_", "").replace("/", "")
    simple = plain.isascii() and plain.isalnum() and plain[:1].isalpha() and text[:1].isalpha()
    return text if simple and text.lower() not in _WORDS else json.dumps(text)


_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")

_HEAD = """\
# A configuration of QLM. What is left out has its default: `qlm config show` prints everything, docs/operations.md says more.
# Check it with `qlm config check`, start it with `qlm up`, and ask `qlm doctor` when something does not work.

# Where the solver and the gateway are; all addresses follow from these two. Beyond 127.0.0.1 they have to ask who comes in:
# set auth.secret and gateway.api_keys below.
host: 127.0.0.1
port_base: 7400               # OpenAI-compatible HTTP; gRPC is at 7402

"""

_TAIL = """
# What requests are promised, in seconds: the first token, and in the mean each one after it. `service_tier` of OpenAI's
# API selects a class.
slo_classes:
  interactive: {ttft_s: 20.0, tpot_s: 0.2, weight: 4.0, service_tiers: [auto, default, scale, priority, fast]}
  batch-1: {ttft_s: 60.0, weight: 2.0, service_tiers: [flex]}
  batch-2: {ttft_s: 3600.0, weight: 1.0, service_tiers: [background]}

# Who may come in, and what the parts show each other. "${NAME}" is taken from the environment.
# gateway:
#   api_keys:
#     admin: {key: "${QLM_ADMIN_KEY}", operator: true}
#     alice: {key: "${ALICE_KEY}"}
# auth:
#   secret: "${QLM_SECRET}"
"""

_SIM_MODELS = """\
  mistral-7b: {max_model_len: 8192}
  vicuna-13b: {max_model_len: 4096}
"""

_SIM_AGENTS = """\
  # {why}
  # So these are simulated GPUs, which answer with made-up text at the pace of real ones.
  - {{name: sim-0, gpu: a100, models: [mistral-7b, vicuna-13b]}}
  - {{name: sim-1, gpu: a10, models: [mistral-7b]}}
  # A server that runs already:
  # - name: server
  #   models: [mistral-7b]
  #   engine: {{kind: openai, openai: {{base_url: "http://127.0.0.1:8000"}}}}
  # GPUs of this machine, with vLLM:
  # - name: gpu
  #   host: here
  #   instances: 1
  #   models: [mistral-7b]
  #   engine: {{kind: vllm}}
"""
