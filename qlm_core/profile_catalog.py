"""The engine profiles that ship with QLM (`qlm_core/profiles/vllm.json`).

This is the only module of the core that reads a file: package data, once, when it is first asked.
The sources of the numbers stand in the table itself, for each profile in `EngineProfile.source`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib.resources import files

import msgspec

from qlm_core.errors import ConfigError
from qlm_core.profile import EngineProfile


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    notes: dict[str, str]  # how the numbers were derived, for readers of the file
    profiles: tuple[EngineProfile, ...]


@cache
def shipped_profiles() -> tuple[EngineProfile, ...]:
    """All shipped profiles, ordered by model, then GPU, then degree of tensor parallelism."""
    return _table().profiles


def base_model(model: str) -> str:
    """The model whose costs a model has: `mistral-7b` for its fine-tuned version `mistral-7b-ft2`."""
    return re.sub(r"-ft\d+$", "", model)


def find_profile(model: str, gpu: str, *, tensor_parallel: int | None = None) -> EngineProfile:
    """The shipped profile of a model on a kind of GPU.

    Args:
        model: a short name such as `mistral-7b`, or that of a fine-tuned version
            (`mistral-7b-ft1`), which has weights of its own and the same costs.
        gpu: a short name such as `a100`.
        tensor_parallel: GPUs of the instance; without it, the fewest that are listed.

    Raises:
        ConfigError: there is no such profile; the message names those there are.
    """
    profiles = shipped_profiles()
    on_gpu = [one for one in profiles if one.gpu == gpu]
    if not on_gpu:
        known = dict.fromkeys(one.gpu for one in profiles)
        raise ConfigError(
            f"gpu: no profile for {gpu!r}. Use one of {', '.join(known)}, or make a profile with "
            "'qlm profile fit'."
        )
    of_model = [replace(one, model=model) for one in on_gpu if one.model == base_model(model)]
    if not of_model:
        known = dict.fromkeys(one.model for one in on_gpu)
        raise ConfigError(
            f"model: no profile of {model!r} on {gpu}. Use one of {', '.join(known)}, or make a "
            "profile with 'qlm profile fit'."
        )
    if tensor_parallel is None:
        return min(of_model, key=lambda one: one.tensor_parallel)
    for profile in of_model:
        if profile.tensor_parallel == tensor_parallel:
            return profile
    known_degrees = ", ".join(str(one.tensor_parallel) for one in of_model)
    raise ConfigError(
        f"tensor_parallel: no profile of {model!r} on {gpu} with {tensor_parallel}. "
        f"Use {known_degrees}, or make a profile with 'qlm profile fit'."
    )


def _table() -> _Table:
    text = files("qlm_core").joinpath("profiles", "vllm.json").read_bytes()
    return msgspec.json.decode(text, type=_Table)
