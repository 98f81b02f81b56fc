"""The sections of the configuration that are about agents: what each is, its engine, and how it carries out its queue.

`qlm_core.config_fleet` fills them in from `agent_defaults` before they are read, and `qlm_core.config_rules` checks them.
"""

from __future__ import annotations

from typing import Literal

from qlm_core.config_section import Section
from qlm_core.secret import HIDDEN, Secret

EngineKind = Literal["sim", "openai", "vllm"]
Dialect = Literal["auto", "vllm", "openai"]

# Options of `vllm serve` that a secret follows.
_SECRET_OPTIONS = ("--api-key", "--hf-token")


class SimEngineConfig(Section, frozen=True, kw_only=True):
    """The simulated engine: a profile from the catalogue, in real or scaled time."""

    time_scale: float = 1.0
    zero_delay: bool = False
    stream_interval_s: float = 0.1
    seed: int = 0


class OpenAIEngineConfig(Section, frozen=True, kw_only=True):
    """A running OpenAI-compatible server to attach to."""

    base_url: str = ""
    api_key: Secret = Secret()
    dialect: Dialect = "auto"
    max_num_seqs: int = 64
    kv_cache_tokens: int = 200_000
    health_path: str = "/health"
    connect_timeout_s: float = 5.0


class VllmEngineConfig(Section, frozen=True, kw_only=True):
    """`vllm serve` processes that the agent starts and supervises, one per model that is not an adapter.

    max_loras: different adapters in one batch. max_cpu_loras: adapters loaded at a time. max_lora_rank: the largest rank.
    kv_offload_bytes: host memory for KV blocks that the GPU has no room for, of each process; 0 for none.
    """

    command: tuple[str, ...] = ("vllm", "serve")
    args: tuple[str, ...] = ()
    env: dict[str, Secret] = {}
    port_base: int = 8100
    sleep_mode: bool = True
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 15.0
    restart_backoff_s: float = 2.0
    max_num_seqs: int = 256
    kv_cache_tokens: int = 0
    kv_offload_bytes: int = 0
    max_loras: int = 4
    max_cpu_loras: int = 16
    max_lora_rank: int = 16

    def __repr__(self) -> str:
        # There may be keys among the arguments, which are plain text.
        return f"VllmEngineConfig(port_base={self.port_base}, ...)"


class EngineConfig(Section, frozen=True, kw_only=True):
    """Which engine the agent wraps; only the section of that kind is read.

    silence_first_s_max: a request without output for so long is taken from its server and tried again; 0: never.
    silence_s_max: likewise between two outputs.
    """

    kind: EngineKind = "sim"
    silence_first_s_max: float = 600.0
    silence_s_max: float = 120.0
    sim: SimEngineConfig = SimEngineConfig()
    openai: OpenAIEngineConfig = OpenAIEngineConfig()
    vllm: VllmEngineConfig = VllmEngineConfig()


class ExecutorConfig(Section, frozen=True, kw_only=True):
    """How an agent carries out its queue (docs/states.md).

    kv_headroom: share of the KV cache kept free when pulling.
    pull_ahead: requests of a class pulled beyond the room there is, to hide the pull's round trip.
    output_share: share of a request's expected output for which there must be room when it is pulled; with less, more
        requests run at once and more are evicted. Without eviction it is 1.
    eviction: whether running requests may be evicted for more urgent ones.
    drain_s_max: a longer drain before a model swap is cut short by eviction.
    evict_margin_s: how long before a predicted miss an eviction is made. Classes with shorter targets find slots kept free.
    evictions_max: how often one request may be evicted before it is left alone.
    pull_timeout_s: a pull without an answer is made again after this.
    swap_retry_s: after a failed swap, how long the model's groups are passed over.
    """

    kv_headroom: float = 0.05
    pull_ahead: int = 2
    output_share: float = 0.3
    eviction: bool = True
    drain_s_max: float = 20.0
    evict_margin_s: float = 3.0
    evictions_max: int = 4
    pull_timeout_s: float = 5.0
    swap_retry_s: float = 10.0


class AgentDefaults(Section, frozen=True, kw_only=True):
    """What an agent has that its own section does not say otherwise.

    host: the machine it runs on, as `qlm agent --host` calls it; empty: not said.
    instances: so many agents like it, called NAME-0 and so on; in a configuration that was read it is 1.
    devices: the host's GPUs that its engine sees, by index; of several instances one after the other.
    tensor_parallel: over so many GPUs each of its models is spread.
    """

    gpu: str = "a100"
    models: tuple[str, ...] = ()
    host: str = ""
    instances: int = 1
    devices: tuple[int, ...] = ()
    tensor_parallel: int = 1
    engine: EngineConfig = EngineConfig()
    executor: ExecutorConfig = ExecutorConfig()
    solver: str = "127.0.0.1:7401"
    metrics_listen: str = ""
    report_interval_s: float = 0.25
    reconnect_s_max: float = 1.0
    drain_s: float = 30.0
    message_bytes_max: int = 67_108_864
    host_memory_bytes: int = 137_438_953_472
    gateway_grace_s: float = 30.0
    backlog_events_max: int = 200_000
    backlog_bytes_max: int = 268_435_456


class AgentConfig(AgentDefaults, frozen=True, kw_only=True):
    """One agent: the daemon beside one serving instance."""

    name: str


def without_keys(args: tuple[str, ...]) -> list[str]:
    """A command or arguments of `vllm serve` in which keys are hidden."""
    shown: list[str] = []
    hiding = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        secret = name.replace("_", "-") in _SECRET_OPTIONS
        # There may be several keys, up to the next option.
        hiding = secret or (hiding and not arg.startswith("--"))
        if secret:
            shown.append(f"{name}={HIDDEN}" if equals else name)
        else:
            shown.append(HIDDEN if hiding else arg)
    return shown
