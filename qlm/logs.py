"""Structured logs of a process on standard error: an event, its fields, never a prompt.

Fields are what a call passes as `extra`; both formats show the same ones.
"""

from __future__ import annotations

import logging
import time

import msgspec

from qlm_core.config import LogConfig

# Attributes that every record has; whatever else a record carries was passed as `extra`.
_STANDARD = (*vars(logging.makeLogRecord({})), "message", "asctime", "color_message")


def configure(config: LogConfig) -> None:
    """Send the logs of this process to standard error in the configured level and format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if config.format == "json" else _TextFormatter())
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    # Access lines would repeat what metrics count, and uvicorn's own remarks what the gateway says itself.
    for noisy in ("uvicorn.access", "uvicorn.error", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in _fields(record).items())
        text = (
            f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} "
            f"{record.name}: {record.getMessage()}{fields}"
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **{key: str(value) for key, value in _fields(record).items()},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
