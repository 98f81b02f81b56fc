"""Starts the `vllm` command with its engine core forked instead of spawned, which saves a second import.

For demonstrations and tests on a CPU with one thread per engine only; takes the arguments of `vllm`. Everywhere else
use `vllm` itself.
"""

from __future__ import annotations

import multiprocessing
import sys


def main() -> None:
    """Run vLLM's own command line."""
    import vllm.utils.system_utils as system

    system.get_mp_context = lambda: multiprocessing.get_context("fork")
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[0] = "vllm"
    vllm()


if __name__ == "__main__":
    main()
