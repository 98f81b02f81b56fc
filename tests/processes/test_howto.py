"""The how-to pages, run from top to bottom as they stand, in an empty folder, and what they show held against what came.

A block with a file's name as title is written into that file; one that is titled as a terminal of its own runs until the page
ends; other blocks of bash run one after the other in one shell each, and a block of text shows lines of the output before it.
Figures of a fleet that runs vary, so there numbers and ids stand for any; those of the simulator have to be the ones shown.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
TERMINAL = "in a terminal of its own"
SIMULATED = "SLOs"
"""What only tables of the simulator say."""

PORT_BASE = 7400
OFFSETS_MAX = 100
WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its title or nothing, and its text."""

    language: str
    title: str
    text: str


def blocks_of(page: Path, port_base: int) -> list[Block]:
    """The blocks of a page, with its ports moved to where there is room."""
    text = re.sub(
        rf"\b{PORT_BASE // 100}(\d\d)\b", lambda m: str(port_base + int(m[1])), page.read_text()
    )
    assert text.count("```") == 2 * len(BLOCK.findall(text)), "a block that nothing runs"
    return [Block(*found) for found in BLOCK.findall(text)]


def free_port_base() -> int:
    """A port from which on all that a fleet counts from it were free a moment ago."""
    for place in range(60):
        base = 20_000 + 200 * ((os.getpid() + place) % 60)
        probes: list[socket.socket] = []
        try:
            for port in range(base, base + OFFSETS_MAX):
                probes.append(socket.socket())
                probes[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return base
    raise AssertionError("no hundred ports in a row are free")


class Shell:
    """A folder in which a page is followed, with `qlm` and `python` on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, words in (("qlm", "-P -m qlm"), ("python", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "160",
        }

    def run(self, script: str) -> str:
        """What a block prints. Later blocks know the variables that it sets."""
        state = self.folder / "bin" / "state"
        known = f". {state}; " if state.exists() else ""
        done = subprocess.run(
            ["bash", "-euc", f"{known}{script}\ndeclare -p id > {state} 2> /dev/null || true"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def beside(self, script: str) -> Iterator[None]:
        """A fleet in a terminal of its own, serving."""
        process = subprocess.Popen(
            ["bash", "-euc", f"exec {script.strip()}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # A pipe that nobody reads would stop it, and one that says nothing would stop us.
        patience = threading.Timer(WAIT_S, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("QLM serves"), script
            yield
        finally:
            patience.cancel()
            process.terminate()
            process.communicate(timeout=WAIT_S)


def essence(line: str, *, exact: bool) -> str:
    """A line without what may differ from run to run."""
    line = " ".join(re.sub("─+", "─", line).split())
    if exact:
        return re.sub(r"\| [\d.]+ \|$", "| wall |", line)
    line = re.sub(r"\b(chatcmpl-|cmpl-|batch_)[0-9a-f]+", r"\1…", line)
    return re.sub(r"[-\d][\d,.]*", "0", line)


def assert_shown(shown: str, came: str, *, exact: bool) -> None:
    """Each line that a page shows came, in that order."""
    lines = iter([essence(line, exact=exact) for line in came.splitlines()])
    for line in shown.splitlines():
        wanted = essence(line, exact=exact)
        assert any(wanted == one for one in lines), f"{line!r} is not in what came:\n{came}"


def follow(page: Path, folder: Path) -> None:
    """Do what a page says, block by block."""
    shell, came = Shell(folder), ""
    with ExitStack() as terminals:
        for block in blocks_of(page, free_port_base()):
            if block.title == TERMINAL:
                terminals.enter_context(shell.beside(block.text))
            elif block.title:
                (folder / block.title).write_text(block.text)
            elif block.language == "bash":
                came = shell.run(block.text)
            else:
                assert block.language == "text", f"{block.language} without a title"
                assert_shown(block.text, came, exact=SIMULATED in block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)


def test_what_is_shown_has_to_come() -> None:
    assert_shown("a  12 s\n", "b\na 3.5 s\n", exact=False)
    for shown, came, exact in (
        ("a 12 s", "a 3 m", False),
        ("a\nb", "b\na", False),
        ("| qlm | 99.0% | 1.5 |", "| qlm | 98.0% | 1.5 |", True),
    ):
        with pytest.raises(AssertionError, match="is not in what came"):
            assert_shown(shown, came, exact=exact)


def test_every_page_is_followed() -> None:
    assert len(PAGES) >= 5
    for page in PAGES:
        found = [block.language for block in blocks_of(page, PORT_BASE)]
        assert found.count("bash") >= 2, page.name
        assert "text" in found, page.name
