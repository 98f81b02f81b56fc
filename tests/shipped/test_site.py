"""The site of the documentation: every page has a place in it, every link leads somewhere, and it builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import qlm_client

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"[a-z]+:")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
IDENTIFIER = re.compile(r"^::: (\S+)$", re.MULTILINE)


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "deploy" / "site" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


SITE = hook()
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PATHS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PATHS += [path for path in SITE.BESIDE if path.endswith(".md")]


def named(nav: list[Any]) -> list[str]:
    """The pages that a navigation names, in order."""
    found: list[str] = []
    for entry in nav:
        for target in entry.values():
            found += [target] if isinstance(target, str) else named(target)
    return found


def prose(path: str) -> str:
    return FENCED.sub("", (ROOT / path).read_text())


def anchors(path: str) -> list[str]:
    """The anchors of a page's headings, as the site and as code hosts make them."""
    names = []
    for heading in HEADING.findall(prose(path)):
        words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        names += [re.sub(r"[-\s]+", "-", words), words.replace(" ", "-")]
    return names


def test_the_navigation_names_every_page_once() -> None:
    pages = named(SETTINGS["nav"])
    assert sorted(pages) == sorted(SITE.place_of(path) for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_every_link_of_a_page_leads_somewhere(path: str) -> None:
    for link in LINK.findall(prose(path)):
        if ADDRESS.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
        assert (ROOT / target).is_file(), link
        if anchor:
            assert anchor in anchors(target), link
        # What is neither in docs/ nor brought in would be missing on the site.
        assert target.startswith("docs/") or target in SITE.BESIDE, link


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("README.md", "[a](docs/howto/sizing.md)", "[a](howto/sizing.md)"),
        ("README.md", "![a](docs/pictures/x.png)", "![a](pictures/x.png)"),
        ("docs/howto/sizing.md", "[a](../api.md#b)", "[a](../api.md#b)"),
        ("docs/howto/sizing.md", "[a](../../README.md#b)", "[a](../index.md#b)"),
        ("benchmarks/README.md", "[a](../docs/rules.md)", "[a](rules.md)"),
        ("docs/guarantees.md", "[a](../benchmarks/README.md#b)", "[a](benchmarks.md#b)"),
        ("docs/api.md", "[a](#b) [c](https://d.e/f)", "[a](#b) [c](https://d.e/f)"),
    ],
)
def test_links_are_turned_to_their_place_on_the_site(path: str, before: str, after: str) -> None:
    assert SITE.turned(before, path) == after
    assert SITE.source_of(SITE.place_of(path)) == path


def described(identifier: str) -> object:
    """What a dotted name of the reference stands for."""
    parts = identifier.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"{identifier} is nothing that can be imported")


def identifiers(page: str) -> list[str]:
    return IDENTIFIER.findall((ROOT / "docs" / "reference" / page).read_text())


@pytest.mark.parametrize("identifier", identifiers("client.md") + identifiers("core.md"))
def test_the_reference_is_of_things_that_say_what_they_are(identifier: str) -> None:
    found = described(identifier)
    if identifier != "qlm_client.Event":  # a union of types has no words of its own
        assert getattr(found, "__doc__", None), identifier


def test_the_reference_has_the_whole_client() -> None:
    assert sorted(identifiers("client.md")) == sorted(f"qlm_client.{n}" for n in qlm_client.__all__)


class References(HTMLParser):
    """What a page of the site has its reader's browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(known.get("src") or "")
        if tag == "link" and known.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.loaded.append(known.get("href") or "")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    for place in named(SETTINGS["nav"]):
        html = (tmp_path / place).with_suffix(".html").read_text()
        page = References()
        page.feed(html)
        assert [one for one in page.loaded if ADDRESS.match(one) or one.startswith("//")] == []
    reference = (tmp_path / "reference" / "client.html").read_text()
    assert "Submit a request and return once it is durable" in reference
    assert (tmp_path / "LICENSE").is_file()
