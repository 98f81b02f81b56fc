"""Where a Chromium is, and how it is started without a screen: for pictures, measurements and tests of the page."""

from __future__ import annotations

import os
import shutil

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The program, which `QLM_CHROMIUM` may name; None where there is none."""
    named = os.environ.get("QLM_CHROMIUM")
    if named:
        return shutil.which(named)
    return next((found for name in _NAMES if (found := shutil.which(name))), None)
