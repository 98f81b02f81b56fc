"""Whether the packages that QLM installs at the top level are its own, and whose they are if not.

`agents` is what `openai-agents` installs as well, and a folder of that name may lie in the working directory. Whichever comes
later wins, and what is then missing would be told by an import error in some module; here it is told plainly, at the start of
every command.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qlm_core.errors import QlmError

DISTRIBUTION = "qlm-serving"
PACKAGES = ("agents", "protos", "solver", "gateway", "failpoints")


def check() -> None:
    """Raise QlmError for the first package that is not QLM's."""
    for name in PACKAGES:
        spec = find_spec(name)
        place = None if spec is None else spec.origin
        if place is None:
            raise QlmError(f"the package `{name}` of {DISTRIBUTION} is missing. Install it again.")
        if f'DISTRIBUTION = "{DISTRIBUTION}"' not in _read(Path(place)):
            raise QlmError(
                f"the package `{name}` in {Path(place).parent} is not QLM's{_whose(name)}. Keep QLM in an "
                f"environment and a folder of its own, and install it there again; `pip install qlm-client` is all "
                "that an application needs to talk to it."
            )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _whose(name: str) -> str:
    from importlib.metadata import packages_distributions

    others = [one for one in packages_distributions().get(name, ()) if one != DISTRIBUTION]
    return f": {', '.join(dict.fromkeys(others))} has overwritten it" if others else ""
