"""How commands show things to people: one kind of table, one kind of list of facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Of a file or a pipe, in characters.
WIDTH = 160


def table(*columns: str, right: Sequence[str] = (), title: str = "") -> Table:
    """An empty table with these columns, of which those in `right` hold figures."""
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title or None,
        title_justify="left", title_style="",
    )  # fmt: skip
    for name in columns:
        made.add_column(name)
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def console(file: TextIO | None = None) -> Console:
    """Where tables go, standard output unless said: as wide as the terminal, and without one so wide that no row is broken."""
    from rich.console import Console

    made = Console(file=file)
    return made if made.is_terminal else Console(file=file, width=WIDTH)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what is to be said of each, a line each; what is empty is left out."""
    said = [(name, text) for name, text in rows if text]
    width = max((len(name) for name, _ in said), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in said)
