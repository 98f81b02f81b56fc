"""The section of the configuration that says whether a gateway shows its page, and how much it may cost."""

from __future__ import annotations

from qlm_core.config_section import Section


class UiConfig(Section, frozen=True, kw_only=True):
    """The page at /ui.

    refresh_s: how often it is told what is new. viewers_max: how many may look on at a time.
    stories_max: of so many requests, the last ones, it is remembered what happened to them.
    """

    enabled: bool = True
    refresh_s: float = 1.0
    viewers_max: int = 64
    stories_max: int = 10_000
