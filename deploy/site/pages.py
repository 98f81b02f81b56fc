"""Which pages of the repository the site of the documentation has, and where: a hook of MkDocs.

MkDocs takes what is in docs/. Pages that people look for beside it, such as the README, are brought in under names of their
own, and the links from and to them are turned to where they are on the site, so that the same files read well in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"

BESIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "LICENSE": "LICENSE",
}
"""What lies outside docs/, from the root of the repository, and its place on the site."""

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
"""The path of a link to another file; not an address, and not an anchor of the page itself."""


def place_of(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in BESIDE:
        return BESIDE[path]
    return path.removeprefix(f"{DOCS}/")


def source_of(place: str) -> str:
    """Which file of the repository is at that place of the site."""
    beside = {place: path for path, place in BESIDE.items()}
    return beside.get(place, f"{DOCS}/{place}")


def turned(text: str, path: str) -> str:
    """A page of the repository with its links as they are on the site."""
    here = posixpath.dirname(path)
    folder = posixpath.dirname(place_of(path)) or "."

    def turn(link: re.Match[str]) -> str:
        target = place_of(posixpath.normpath(posixpath.join(here, link[1])))
        return posixpath.relpath(target, folder)

    return LINK.sub(turn, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    from mkdocs.structure.files import File

    for path, place in BESIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links of a page."""
    return turned(markdown, source_of(page.file.src_uri))
