"""Service tiers: which SLO class a client gets by the tier that it names, and what the answer says that it got.

OpenAI's tiers are all known. The configuration says which class each selects; one that it does not name selects the
default class, and the answer says so, as OpenAI's does where a tier is not to be had. `fast` is another word for
`priority`, and is answered as that. Answers have no word but OpenAI's, whatever selected the class: clients may hold
them against its types.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.keys import Caller
from qlm_core.config import Config
from qlm_core.errors import InvalidRequest
from qlm_core.nearest import did_you_mean

# OpenAI's. Those that mean another one are answered as that.
KNOWN = ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")
_MEANT = {"fast": "priority"}
# Which one is used is then the gateway's to say.
_OPEN = "auto"
_DEFAULT = "default"
# Responses alone have it.
_OF_RESPONSES = "ultrafast"
_SHOWN_CHARS = 256


def told_tier(tiers: Sequence[str]) -> str:
    """What answers say of a class with such tiers: `default` if it has that or none that may be said, else the first of these."""
    told = [_MEANT.get(tier, tier) for tier in tiers if tier in KNOWN]
    told = [tier for tier in told if tier not in (_OPEN, _OF_RESPONSES)]
    return told[0] if told and _DEFAULT not in told else _DEFAULT


class Tiers:
    """The tiers and classes of one configuration."""

    def __init__(self, config: Config) -> None:
        self._classes = config.slo_classes
        self._default = config.default_slo_class
        self._class_of = {
            tier: name
            for name, section in config.slo_classes.items()
            for tier in section.service_tiers
        }
        for tier, meant in _MEANT.items():
            if meant in self._class_of:
                self._class_of.setdefault(tier, self._class_of[meant])

    def select(self, asked: str, tier: object, caller: Caller) -> tuple[str, str]:
        """The class of a request, and the tier to report.

        Args:
            asked: a class, or a tier, that was asked for beside the body; it goes first. "" for none.
            tier: the body's `service_tier`.

        Raises:
            InvalidRequest: naming what is known.
        """
        if tier is not None and not isinstance(tier, str):
            raise InvalidRequest("service_tier", "must be a string", self._known())
        name = self._find(asked or tier or "", caller)
        if name is None:
            field, code = ("slo_class", "unknown_slo_class")
            problem = f"{asked[:_SHOWN_CHARS]!r} is not a known class"
            if not asked:
                field, code = ("service_tier", "unknown_service_tier")
                problem = f"{(tier or '')[:_SHOWN_CHARS]!r} selects no SLO class"
            meant = did_you_mean(asked or tier or "", self._classes)
            raise InvalidRequest(field, problem, self._known() + meant, code=code)
        selects = tier in self._class_of or tier in self._classes
        if tier in KNOWN and selects and tier != _OPEN and not asked:
            return name, _MEANT.get(tier, tier)
        return name, told_tier(self._classes[name].service_tiers)

    def _find(self, word: str, caller: Caller) -> str | None:
        if word in self._classes:
            return word
        if word in self._class_of:
            return self._class_of[word]
        if word and word not in KNOWN:
            return None
        theirs = [name for name in caller.classes if name in self._classes]
        return self._default if self._default in theirs or not theirs else theirs[0]

    def _known(self) -> str:
        tiers = ", ".join(dict.fromkeys((*self._class_of, *KNOWN)))
        return f"Use one of the classes {', '.join(self._classes)}, or one of the tiers {tiers}."
