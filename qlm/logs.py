"""Structured logs of a process on standard error: an event, its fields, never a prompt.

Fields are what a call passes as `extra`; both formats show the same ones. Whoever logs never waits for whoever reads: lines
go to a bounded queue, and a thread writes them. Lines that find it full are dropped, and how many is said as soon as
something is read again.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener

import msgspec

from qlm_core.config import LogConfig

STANDARD_ERROR = 2
# What waits for a reader at most: so many lines, each cut to this length.
LINES_MAX = 4_096
LINE_CHARS_MAX = 16_384
# Of a line of JSON, with room for the name of the part that it is of.
JSON_CHARS_MAX = LINE_CHARS_MAX - 256
_FIELD_CHARS_MAX = 1_024
# How long an ending process waits for the reader of its last lines.
FLUSH_S = 2.0

# Attributes that every record has; whatever else a record carries was passed as `extra`.
_STANDARD = (*vars(logging.makeLogRecord({})), "message", "asctime", "color_message")


def configure(config: LogConfig) -> None:
    """Send the logs of this process to standard error in the configured level and format."""
    formatter = _JsonFormatter() if config.format == "json" else _TextFormatter()
    lines = standard_error()
    lines.say_dropped = functools.partial(_dropped, formatter)
    handler = _LinesHandler(lines)
    handler.setFormatter(formatter)
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    # Access lines would repeat what metrics count, and uvicorn's own remarks what the gateway says itself.
    for noisy in ("uvicorn.access", "uvicorn.error", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Lines:
    """Lines on their way to a file descriptor that may take them slowly or never.

    Attributes:
        say_dropped: the line by which it is told that lines were dropped, from their number.
    """

    def __init__(self, descriptor: int, *, lines_max: int = LINES_MAX) -> None:
        self._dropped = 0
        self._counting = threading.Lock()
        self.say_dropped: Callable[[int], str] = "{} lines dropped, since nobody read them".format
        self._queue: queue.Queue[str | None] = queue.Queue(lines_max)
        _Writer(self, self._queue, descriptor).start()

    def put(self, line: str) -> None:
        """Have a line written, or drop it; never waits."""
        if len(line) > LINE_CHARS_MAX:
            line = f"{line[:LINE_CHARS_MAX]}..."
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.count_dropped(1)

    def count_dropped(self, lines: int) -> None:
        """Lines were lost that are to be told of."""
        with self._counting:
            self._dropped += lines

    def take_dropped(self) -> int:
        """How many lines were dropped that have not been told of."""
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        return dropped

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines are written, but no longer than that; returns whether they are."""
        with self._queue.all_tasks_done:
            return self._queue.all_tasks_done.wait_for(
                lambda: not self._queue.unfinished_tasks, timeout_s
            )


@functools.cache
def standard_error() -> Lines:
    """The lines of this process on standard error."""
    return Lines(STANDARD_ERROR)


class _Writer(QueueListener):
    """The thread behind `Lines`.

    It writes to the descriptor itself, without the locks of streams and handlers: an interpreter that exits would wait
    for those for as long as nobody reads.
    """

    def __init__(self, lines: Lines, source: queue.Queue[str | None], descriptor: int) -> None:
        super().__init__(source)
        self._lines = lines
        self._descriptor = descriptor

    def handle(self, line: str) -> None:  # type: ignore[override]
        if not self._write(line):
            self._lines.count_dropped(1)
            return
        dropped = self._lines.take_dropped()
        if dropped and not self._write(self._lines.say_dropped(dropped)):
            self._lines.count_dropped(dropped)

    def _write(self, line: str) -> bool:
        """Write a line, however long that takes; False if nobody will read it any more, or the disk behind it is full."""
        data = f"{line}\n".encode(errors="backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


class _LinesHandler(QueueHandler):
    """Puts records, formatted, into lines."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._lines = lines

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue(self, record: str) -> None:  # type: ignore[override]
        self._lines.put(record)


def _dropped(formatter: logging.Formatter, count: int) -> str:
    record = logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "log lines dropped, since nobody read them",
            "lines": count,
        }
    )
    return formatter.format(record)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        text = (
            f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} "
            f"{record.name}: {record.getMessage()}{fields}"
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = {key: _plain(value) for key, value in _fields(record).items()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        text = _json(line | fields)
        if len(text) <= JSON_CHARS_MAX:
            return text
        # A line that is cut anywhere is no JSON any more.
        short = {key: str(value)[:_FIELD_CHARS_MAX] for key, value in fields.items()}
        text = _json(line | short)
        return text if len(text) <= JSON_CHARS_MAX else _json(line | {"event": "a line too long"})


def with_part(part: str, line: str) -> str:
    """A line of a child's log in JSON, with the child's name; what is no JSON becomes some."""
    if line.startswith('{"') and line.endswith("}"):
        return f'{{"part":{_json(part)},{line[1:]}'
    return _json({"part": part, "event": line[:_FIELD_CHARS_MAX]})


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | bool | None) else str(value)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode(errors="replace")
