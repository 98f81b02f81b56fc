"""The compiled twins of the kernels: the same source, translated by numba, cached on disk beside it.

Nothing here is imported until somebody asks for speed; compiling takes seconds the first time on a
machine and a fraction of a second after that, so ask in a process that can afford to wait.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from types import ModuleType

from qlm_core.planning import kernels, pricing_kernels


@cache
def compiled_kernels() -> ModuleType | None:
    """`kernels`, each function compiled when it is first called; None without numba."""
    return _twin(kernels)


@cache
def compiled_pricing() -> ModuleType | None:
    """`pricing_kernels`, likewise."""
    return _twin(pricing_kernels)


def _twin(module: ModuleType) -> ModuleType | None:
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    if importlib.util.find_spec("numba") is None or spec is None or spec.loader is None:
        return None
    import numba

    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    # Without reference counts (nothing is allocated inside) calls between kernels cost next to nothing.
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    for name, value in list(vars(twin).items()):
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            setattr(twin, name, numba.njit(value, **options))
    return twin
