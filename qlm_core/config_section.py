"""What the sections of the configuration have in common: their strictness, and how they read secrets."""

from __future__ import annotations

import msgspec

from qlm_core.secret import Secret


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, keyword-only, unknown keys refused."""


def read_secret(kind: type, value: object) -> Secret:
    """msgspec's hook for what it does not know: a text becomes a secret. Raises TypeError for anything else."""
    assert kind is Secret
    if isinstance(value, str):
        return Secret(value)
    names = {bool: "bool", int: "int", float: "float", type(None): "null", dict: "object"}
    raise TypeError(f"Expected `str`, got `{names.get(type(value), 'array')}`")
