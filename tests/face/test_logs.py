"""Logs that nobody reads: whoever logs goes on, what found no room is counted, and the count is said."""

import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from qlm import logs
from qlm.fleet import PrefixedLog
from qlm_core.config import LogConfig

LINE = "x" * 1000
# Several times what a pipe and the queue hold together.
LINES = 2_000


class Pipe:
    """A pipe whose reader reads when the test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    # The thread that writes to it may hang in there until its reader is gone.
    os.close(made.reader)
    os.close(made.writer)


def drained(reader: int, lines: logs.Lines) -> list[str]:
    """All that is written until nothing waits to be."""
    os.set_blocking(reader, False)
    data = b""
    while True:
        flushed = lines.flush(0.01)
        try:
            data += os.read(reader, 1 << 20)
        except BlockingIOError:
            if flushed:
                return data.decode().splitlines()


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: Pipe) -> None:
    lines = logs.Lines(pipe.writer, lines_max=10)
    put = 0
    while put == 0 or lines.flush(0.01):
        for _ in range(LINES):
            lines.put(LINE)
        put += LINES
    # Somebody reads at last.
    found = drained(pipe.reader, lines)
    whole = [line for line in found if line == LINE]
    told = [line for line in found if line != LINE]
    counts = [int(line.split()[0]) for line in told]
    assert sum(counts) > 0
    assert len(whole) + sum(counts) == put
    lines.put("after")
    assert drained(pipe.reader, lines) == ["after"]


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    lines = logs.Lines(writer)
    os.close(reader)
    lines.put("lost")
    assert lines.flush(5.0)
    assert lines.take_dropped() == 1
    os.close(writer)


def test_an_overlong_line_is_cut(pipe: Pipe) -> None:
    lines = logs.Lines(pipe.writer)
    lines.put("y" * (logs.LINE_CHARS_MAX + 1))
    assert drained(pipe.reader, lines) == ["y" * logs.LINE_CHARS_MAX + "..."]


@pytest.mark.parametrize("form", ["text", "json"])
def test_records_and_dropped_lines_are_told_in_the_form_of_the_log(
    form: str, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = logs.Lines(pipe.writer, lines_max=10)
    monkeypatch.setattr(logs, "standard_error", lambda: lines)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure(LogConfig(format=form, level="info"))  # type: ignore[arg-type]
        for _ in range(LINES):
            logging.getLogger("part").info("something happened", extra={"detail": LINE})
        found = drained(pipe.reader, lines)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    event = found[0]
    told = next(line for line in found if "log lines dropped" in line)
    if form == "json":
        assert json.loads(event)["detail"] == LINE
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(event)["time"])
        assert json.loads(told)["lines"] > 0
    else:
        assert f"something happened detail={LINE}" in event
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info ", event)
        assert re.search(r"warning +qlm\.logs: .* lines=[1-9]", told)


def test_the_lines_of_children_do_not_wait_either(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = logs.Lines(pipe.writer, lines_max=10)
    monkeypatch.setattr(logs, "standard_error", lambda: lines)
    log = PrefixedLog(6)
    for _ in range(LINES):
        log("a0", LINE)
    assert drained(pipe.reader, lines)[0] == f"a0     | {LINE}"


def record(event: str, **fields: object) -> logging.LogRecord:
    about = {"name": "part", "levelname": "INFO", "msg": event, "created": 0.5, "msecs": 500.0}
    return logging.makeLogRecord(about | fields)


def test_json_keeps_numbers_and_stays_json_however_long() -> None:
    made = logs._JsonFormatter()
    said = json.loads(made.format(record("done", count=3, share=0.5, there=True, who={"a": 1})))
    assert (said["count"], said["share"], said["there"], said["who"]) == (3, 0.5, True, "{'a': 1}")
    assert said["time"] == "1970-01-01T00:00:00.500Z"
    for fields in ({"detail": "y" * 10**6}, {f"k{n}": "y" * 10**4 for n in range(40)}):
        text = made.format(record("done", **fields))
        assert len(text) <= logs.JSON_CHARS_MAX
        assert json.loads(text)["logger"] == "part"


def test_lines_of_children_in_json_stay_json_and_name_their_part(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = logs.Lines(pipe.writer)
    monkeypatch.setattr(logs, "standard_error", lambda: lines)
    log = PrefixedLog(6, json=True)
    log("a0", logs._JsonFormatter().format(record("done", count=3)))
    log("a0", 'Traceback: "what" is no JSON')
    log("a0", "{no json either}")
    found = [json.loads(line) for line in drained(pipe.reader, lines)]
    assert [one["part"] for one in found] == ["a0"] * 3
    assert (found[0]["event"], found[0]["count"]) == ("done", 3)
    assert found[1] == {"part": "a0", "event": 'Traceback: "what" is no JSON'}
