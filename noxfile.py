"""The tests on every Python that the packages are for, as far as there are interpreters: `make test-pythons`.

Interpreters come from uv where it is installed, from the PATH, or from pyenv; a session whose interpreter is missing is skipped,
and says so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["client", "server"]

# pyenv keeps interpreters where only its own shims find them.
_PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
_HERE = [str(folder) for folder in sorted(_PYENV.glob("3.*/bin"), reverse=True)]
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *_HERE])


@nox.session(python=PYTHONS)
def client(session: nox.Session) -> None:
    """The client's wheel beside openai-agents, whose package `agents` is in nobody's way there."""
    folder = Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    session.install("build", "openai-agents")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), "client", silent=True)
    (wheel,) = folder.glob("*.whl")
    before = _bytes(session)
    session.install(str(wheel))
    session.log(f"qlm-client brings {(_bytes(session) - before) / 1e6:.1f} MB here")
    session.chdir(folder)
    session.run("python", "-I", "-c", "import agents; from qlm_client import Client; agents.Agent")


@nox.session(python=PYTHONS)
def server(session: nox.Session) -> None:
    """The tests without processes."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "not processes", *session.posargs)


def _bytes(session: nox.Session) -> int:
    """How much the session's environment has on disk."""
    files = Path(session.virtualenv.location).rglob("*")
    return sum(
        file.lstat().st_size for file in files if file.is_file() and "__pycache__" not in file.parts
    )
