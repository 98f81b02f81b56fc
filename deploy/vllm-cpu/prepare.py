"""Installs a real vLLM for the CPU beside the project, and makes the tiny models that it serves, with two adapters.

Needs about 2 GB of disk in .venv-vllm, and the same Python as the project. What is there already is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / ".venv-vllm"
PYTHON = ENVIRONMENT / "bin" / "python"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
MODELS = {
    "tiny-llama": ["--architecture", "llama"],
    "tiny-qwen": ["--architecture", "qwen2", "--heads", "2", "--seed", "1"],
    "tiny-thinker": ["--architecture", "llama", "--seed", "2", "--thinks"],
}
# LoRA adapters of the first of them, with their seeds.
ADAPTED = "tiny-llama"
ADAPTERS = {"tiny-llama-a": "1", "tiny-llama-b": "2"}


def install() -> None:
    """Make the environment, once for each state of the lock file."""
    lock = HERE / "requirements.lock"
    mark = ENVIRONMENT / ".installed"
    if mark.exists() and mark.read_text() == lock.read_text():
        return
    print("installing vLLM for the CPU into .venv-vllm; a minute or two", flush=True)
    if not PYTHON.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    # Without dependencies: the lock is complete, and the resolver would add builds for a GPU.
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(lock)]
    if _status(*pip):
        # PyPI has no PyTorch for the CPU alone; an index or a folder of wheels of one's own may have it.
        _run(*pip, "--extra-index-url", CPU_WHEELS)
    _run(PYTHON, str(HERE / "shim.py"))
    mark.write_text(lock.read_text())


def make_models() -> None:
    """Make what is missing of the tiny models and adapters."""
    for name, options in MODELS.items():
        folder = ROOT / "run" / "models" / name
        if not (folder / "model.safetensors").exists():
            print(f"making the model {name}", flush=True)
            _run(PYTHON, str(HERE / "make_model.py"), str(folder), *options)
    for name, seed in ADAPTERS.items():
        folder = ROOT / "run" / "models" / name
        if not (folder / "adapter_model.safetensors").exists():
            print(f"making the adapter {name}", flush=True)
            base = ROOT / "run" / "models" / ADAPTED
            _run(PYTHON, str(HERE / "make_adapter.py"), str(folder), str(base), "--seed", seed)


def _run(*command: str | Path) -> None:
    status = _status(*command)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed with status {status}")


def _status(*command: str | Path) -> int:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> None:
    """Entry point."""
    install()
    make_models()


if __name__ == "__main__":
    main()
