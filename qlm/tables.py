"""Tables in files, read row by row: CSV or JSON lines, plain or gzipped, with errors that point.

An error names the file, the line, the column and the remedy. Nothing is read ahead of the row that
the caller asks for, so a trace of any length can be streamed. Blank lines count but are left out, and
so is the byte order mark that spreadsheets put in front of UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TextIO

from qlm_core.errors import QlmError

LINE_CHARACTERS_MAX = 1_000_000

_UNREADABLE = (UnicodeDecodeError, EOFError, OSError, zlib.error)


class TableError(QlmError):
    """A file cannot be read as the table it should be."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, and where it stands."""

    path: Path
    line: int
    values: dict[str, object]

    def text(self, column: str) -> str | None:
        """The text in a column; None where the column is absent or empty."""
        value = self.values.get(column)
        return str(value).strip() or None if value is not None else None

    def number(self, column: str, *, least: float = 0.0, most: float = 1e15) -> float:
        """The number in a column. Raises TableError unless it is one within the bounds."""
        value = self.values.get(column)
        if value is None or value == "":
            raise self.error(column, "is empty", "Give a number.")
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise self.error(column, f"{value!r} is not a number", "Give a number.")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise self.error(column, f"{value!r} is not a number", "Give a number.") from None
        if not (isfinite(number) and least <= number <= most):
            raise self.error(
                column, f"{value} is out of range", f"Give a number from {least:g} to {most:g}."
            )
        return number

    def count(self, column: str, *, least: int = 0, most: int = 10_000_000) -> int:
        """The whole number in a column. Raises TableError unless it is one within the bounds."""
        number = self.number(column, least=least, most=most)
        if number != int(number):
            raise self.error(column, f"{number} is not a whole number", "Give a whole number.")
        return int(number)

    def error(self, column: str, problem: str, remedy: str) -> TableError:
        """The error to raise about a value of this row."""
        return TableError(f"{self.path}, line {self.line}, column {column}: {problem}. {remedy}")


def columns_of(path: Path) -> tuple[str, ...]:
    """The column names of a CSV file; empty for JSON lines.

    Raises:
        TableError: the file cannot be opened or is empty.
    """
    with _open(path) as lines:
        first, _ = _first_line(path, lines)
    if not first:
        raise TableError(f"{path}, line 1: the file is empty. Give a header and at least one row.")
    if first.lstrip().startswith("{"):
        return ()
    return tuple(name.strip() for name in next(csv.reader([first])))


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header, or of a file of JSON objects, one a line.

    Raises:
        TableError: the file cannot be opened or decoded, or a row has the wrong number of values.
    """
    columns = columns_of(path)
    with _open(path) as lines:
        try:
            yield from _csv_rows(path, lines, columns) if columns else _json_rows(path, lines)
        except (*_UNREADABLE, csv.Error) as error:
            raise TableError(f"{path}: {error}. Give a complete UTF-8 text file.") from None


def require_columns(
    path: Path, present: tuple[str, ...], wanted: tuple[str, ...], *, where: str = "header"
) -> None:
    """Raise TableError unless all the wanted columns are present, in the header or a JSON object."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise TableError(
            f"{path}, {where}: no column {', '.join(missing)}. It has "
            f"{', '.join(present) or 'nothing'}; wanted are {', '.join(wanted)}."
        )


def _csv_rows(path: Path, lines: TextIO, columns: tuple[str, ...]) -> Iterator[Row]:
    _, header = _first_line(path, lines)
    reader = csv.reader(lines)
    for values in reader:
        line = header + reader.line_num
        if len(values) != len(columns):
            if not "".join(values).strip() and len(values) <= 1:
                continue
            raise TableError(
                f"{path}, line {line}: {len(values)} values for {len(columns)} columns. "
                "Give one value for each column."
            )
        yield Row(path, line, dict(zip(columns, values, strict=True)))


def _json_rows(path: Path, lines: TextIO) -> Iterator[Row]:
    number = 0
    while line := _guarded_line(path, lines):
        number += 1
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise TableError(
                f"{path}, line {number}: {error}. Give one JSON object a line."
            ) from None
        if not isinstance(values, dict):
            raise TableError(f"{path}, line {number}: not an object. Give one JSON object a line.")
        yield Row(path, number, values)


def _open(path: Path) -> TextIO:
    try:
        if path.name.endswith(".gz"):
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}. Give a file that can be read.") from None


def _first_line(path: Path, lines: TextIO) -> tuple[str, int]:
    """The first line that is not blank, and its number; empty where the file ends before it."""
    number = 0
    while line := _guarded_line(path, lines):
        number += 1
        if line.strip():
            return line, number
    return "", number


def _guarded_line(path: Path, lines: TextIO) -> str:
    try:
        line = lines.readline(LINE_CHARACTERS_MAX)
    except _UNREADABLE as error:
        raise TableError(f"{path}: {error}. Give a complete UTF-8 text file.") from None
    if len(line) >= LINE_CHARACTERS_MAX:
        raise TableError(
            f"{path}: a line of more than {LINE_CHARACTERS_MAX} characters. Is it a text file?"
        )
    return line
