"""The compiled twins of the kernels: the same source, translated by numba, cached on disk beside
it.

Nothing here is imported until somebody asks for speed; compiling takes seconds the first time on a
machine and a fraction of a second after that, so ask in a process that can afford to wait.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from types import ModuleType
from typing import Any

from qlm_core.planning import annealing_kernels, kernels, pricing_kernels, ruin_kernels


@cache
def compiled_kernels() -> ModuleType | None:
    """The kernels of the search, compiled when first called; None without numba."""
    return twins(kernels, annealing_kernels, ruin_kernels)


@cache
def compiled_pricing() -> ModuleType | None:
    """`pricing_kernels`, likewise."""
    return twins(pricing_kernels)


def twins(*modules: ModuleType) -> ModuleType | None:
    """A module with the compiled functions of all these; each may use those before it. None without numba."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    # Without reference counts (nothing is allocated inside) calls between kernels cost next to
    # nothing.
    options = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    ours = [module.__name__ for module in modules]
    compiled: dict[str, Any] = {}
    for module in modules:
        spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
        if spec is None or spec.loader is None:
            return None
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        for name, value in list(vars(copy).items()):
            if inspect.isfunction(value) and value.__module__ in ours:
                if value.__module__ == module.__name__:
                    compiled[name] = numba.njit(value, **options)
                setattr(copy, name, compiled[name])
    twin = ModuleType(modules[0].__name__)
    vars(twin).update(compiled)
    return twin
