"""The compiled twin of `kernels`: the same source, translated by numba, cached on disk beside it.

Nothing here is imported until somebody asks for speed; compiling takes seconds the first time on a
machine and a fraction of a second after that, so ask in a process that can afford to wait.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from types import ModuleType

from qlm_core.planning import kernels


@cache
def compiled_kernels() -> ModuleType | None:
    """The kernels, each function compiled when it is first called; None without numba."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    spec = importlib.util.spec_from_file_location(kernels.__name__, kernels.__file__)
    if spec is None or spec.loader is None:
        return None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    for name, value in list(vars(twin).items()):
        if inspect.isfunction(value) and value.__module__ == kernels.__name__:
            setattr(
                twin,
                name,
                numba.njit(value, cache=True, nogil=True, error_model="numpy", _nrt=False),
            )
    return twin
