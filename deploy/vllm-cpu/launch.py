"""Starts the `vllm` command with its engine core forked instead of spawned, which saves a second import.

For demonstrations and tests on a CPU with one thread per engine only; takes the arguments of `vllm`. Everywhere else
use `vllm` itself.

With adapters it also mends what vLLM 0.32 does wrong on a CPU (open there as pull requests 48421 and 49656): a request of
the base, which has no adapter, has number -1, and so is computed with the last adapter if it shares a batch with one.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any


def mend_adapters() -> None:
    """Have adapters add nothing where there is none."""
    import vllm.lora.ops.torch_ops as exported
    from vllm.lora.ops.torch_ops import lora_ops

    def mended(operation: Callable[..., None]) -> Callable[..., None]:
        def masked(
            inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any
        ) -> None:
            rows = (indices >= 0).unsqueeze(1)
            operation(inputs * rows, weights, output, indices, *rest, **named)

        return masked

    for name in ("bgmv_expand", "bgmv_expand_slice", "bgmv_shrink"):
        operation = mended(getattr(lora_ops, name))
        setattr(lora_ops, name, operation)
        setattr(exported, name, operation)


def main() -> None:
    """Run vLLM's own command line."""
    import vllm.utils.system_utils as system

    system.get_mp_context = lambda: multiprocessing.get_context("fork")
    if "--enable-lora" in sys.argv:
        mend_adapters()
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[0] = "vllm"
    vllm()


if __name__ == "__main__":
    main()
