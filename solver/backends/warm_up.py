"""Compiled kernels on this machine: whether they are on disk, and putting them there.

Compiling takes some seconds of one core, once for every version on a machine; loading what was
compiled takes a fraction of one. `python -m solver.backends.warm_up` compiles, with low priority and
one process at a time. Nobody waits for it: until it is done the interpreted kernels serve.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np

from qlm_core.planning import Limits, Problem, annealing_kernels, pricing_kernels, ruin_kernels
from qlm_core.planning import kernels as kernel_source
from qlm_core.planning.bound import Pricing
from qlm_core.planning.columns import all_routes
from qlm_core.planning.compiled import compiled_kernels, compiled_pricing
from qlm_core.planning.search import search

_NICE = 10
_SOURCES = (kernel_source, annealing_kernels, ruin_kernels, pricing_kernels)
_MODULE = "solver.backends.warm_up"
# Nothing is taken for a package of this that only lies where the solver was started.
_AS_MODULE = ("-P", "-m", _MODULE)


def on_disk() -> bool:
    """Whether loading the compiled kernels will not mean compiling them; True without numba."""
    kernels = compiled_kernels()
    return kernels is None or _stamp(kernels).exists()


def _stamp(kernels: ModuleType) -> Path:
    """A file beside the compiled kernels, there once they are: named for all that goes into them."""
    import numba

    cpu = importlib.import_module("llvmlite.binding").get_host_cpu_name()
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {cpu}".encode())
    for source in _SOURCES:
        digest.update(Path(str(source.__file__)).read_bytes())
    folder = Path(vars(kernels)["anneal"].stats.cache_path)
    return folder / f"compiled-{digest.hexdigest()[:16]}.stamp"


def load() -> bool:
    """Run every kernel once on a tiny problem, so that all are in memory; False without numba."""
    kernels, pricing_twin = compiled_kernels(), compiled_pricing()
    if kernels is None or pricing_twin is None:
        return False
    problem = _tiny_problem()
    for start in (None, ((0, 1), (2,))):
        search(
            problem, Limits(work=20_000), seed=0, clock=lambda: 0.0, start=start, compiled=kernels
        )
    pricing = Pricing(problem, pricing_twin, 20.0)
    pricing.price(np.ones(3))
    pricing.remember(np.array([0]))
    all_routes(problem, pricing, np.ones(3), 100.0, 1000)
    stamp = _stamp(kernels)
    with contextlib.suppress(OSError):
        stamp.touch()
    return True


def compile_aside() -> None:
    """Compile in a process of its own, which ends with this one; returns when it has ended."""
    with subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, *_AS_MODULE, "--attached"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=_environment(),
    ) as child:
        child.wait()


def _environment() -> dict[str, str]:
    """Ours, with the folders in which this process finds its packages."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def compile_in_background() -> None:
    """Have a process compile that outlives this one, so that the next finds the kernels ready."""
    arguments = [sys.executable, *_AS_MODULE]
    silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(
        sys.executable,
        arguments,
        _environment(),
        file_actions=silence,
        setsid=True,
    )


def main() -> int:
    """Compile. If another process is at it, wait for that one, or, if nobody waits for us, end."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--attached", action="store_true", help="end when standard input ends")
    attached = parser.parse_args().attached
    if attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    os.nice(_NICE)
    kernels = compiled_kernels()
    if kernels is None:
        return 0
    folder = _stamp(kernels).parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if attached else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        load()
    return 0


def _end_with_input() -> None:
    # Not through `sys.stdin`: its lock would still be held when the interpreter ends, which then aborts.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def _tiny_problem() -> Problem:
    return Problem(
        group_model=np.array([0, 1, 0]),
        group_requests=np.array([1, 2, 3]),
        group_weight=np.ones(3),
        due_s=np.array([1.0, 2.0, 3.0]),
        duration_s=np.array([[1.0], [2.0], [3.0]]),
        queue_class=np.array([0, 0]),
        loaded_model=np.array([0, -1]),
        busy_s=np.array([0.0, 1.0]),
        swap_s=np.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]]),
    )


if __name__ == "__main__":
    sys.exit(main())
