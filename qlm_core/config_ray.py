"""The section of the configuration that says what agents ask a Ray cluster for, by the GPU that they are for."""

from __future__ import annotations

from qlm_core.config_section import Section
from qlm_core.errors import ConfigError

# What Ray counts itself, and agents ask for by their engines.
_COUNTED = ("GPU", "memory", "object_store_memory")


class RayGpuConfig(Section, frozen=True, kw_only=True):
    """What a node has to have for an agent of one GPU.

    label_selector: labels of the node, in Ray's words: a value, `!value`, `in(a,b)` or `!in(a,b)`.
    resources: of each custom resource, and of CPU, so much; an agent takes it for as long as it is there.
    """

    label_selector: dict[str, str] = {}
    resources: dict[str, float] = {}


class RayConfig(Section, frozen=True, kw_only=True):
    """How `qlm ray up` places agents.

    gpus: by an agent's `gpu`; it takes the place of what is known of that GPU.
    """

    gpus: dict[str, RayGpuConfig] = {}


def check_ray(section: RayConfig) -> None:
    """Raise ConfigError for the first rule that is broken."""
    for gpu, entry in section.gpus.items():
        where = f"ray.gpus.{gpu}"
        for label, value in entry.label_selector.items():
            if not label.strip() or not value.strip():
                raise ConfigError(
                    f"{where}.label_selector: empty. Give a label and its value, for example zone: a."
                )
        for name, amount in entry.resources.items():
            if name in _COUNTED or not name.strip():
                raise ConfigError(
                    f"{where}.resources: {name!r} is no custom resource. Give the name that the node was "
                    "started with; an agent asks for GPUs by itself."
                )
            if not amount or (amount > 1 and amount != int(amount)):
                raise ConfigError(
                    f"{where}.resources.{name}: Ray has no {amount:g} of a resource. Give a share of 1, or a "
                    "whole number."
                )
