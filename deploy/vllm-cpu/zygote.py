"""Imports vLLM once and forks a `vllm` process for each command, so that a server costs seconds to start.

For tests and benchmarks on a CPU with one thread per engine only. Commands come as lines of JSON on standard input:

    {"argv": ["serve", "run/models/tiny-llama", ...], "log": "run/server.log"}

Each is answered by a line `{"pid": N}`; the first line that is printed, `{"ready": true}`, says that vLLM is imported. A
child is a session of its own, which whoever asked for it ends by its pid. What still runs when standard input ends is
killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any

# What `vllm serve` imports on its way to the first answer, for the architectures that make_model.py makes.
PARTS = (
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.collect_env",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "transformers.models.llama",
    "transformers.models.qwen2",
    "xgrammar",
)


def load() -> None:
    """Import vLLM, and have it fork its engine cores instead of spawning them."""
    import vllm.utils.system_utils as system

    fork = multiprocessing.get_context("fork")
    system.get_mp_context = lambda: fork
    for part in PARTS:
        # A part that another version of vLLM lacks is imported by the child, or not needed.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(part)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("vllm") and hasattr(module, "get_mp_context"):
            module.get_mp_context = system.get_mp_context


def become_server(command: dict[str, Any]) -> None:
    """In a child: run vLLM's command line; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(command["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, number)
    sys.argv = ["vllm", *command["argv"]]
    status = 1
    try:
        from vllm.entrypoints.cli.main import main

        main()
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Serve commands until standard input ends."""
    load()
    # Nobody waits for the children; this way none stays behind as a zombie.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({"ready": True}), flush=True)
    children: list[int] = []
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become_server(command)
        children.append(pid)
        print(json.dumps({"pid": pid}), flush=True)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
