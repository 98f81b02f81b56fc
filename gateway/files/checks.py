"""What a file must be to be an input of batches, as far as that is told when it is uploaded.

That is what OpenAI looks at then: the name, that there is something, and that the first line is JSON. What is wrong with
other lines is told by the batch. What is refused has OpenAI's message where one is known, and no code, as there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from qlm_core.errors import InvalidRequest

# More than a line of a batch holds beside the body of its request.
LINE_REST_BYTES = 65_536
_SUFFIX = ".jsonl"
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


def check_name(filename: str) -> None:
    """Raise InvalidRequest unless a file of this name may be a batch's input."""
    if not filename.lower().endswith(_SUFFIX):
        raise _refused("Invalid file format for Batch API", "Must be .jsonl")


def check_content(path: Path, line_bytes_max: int) -> None:
    """Raise InvalidRequest unless the first line that is not blank is JSON. Blocks; raises OSError.

    Args:
        line_bytes_max: a longer line is none that a batch could have.
    """
    line = _first_line(path, line_bytes_max)
    if not line:
        raise _refused("The file is empty", "Give it at least one request, one a line.")
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _refused(
            "Invalid file format for Batch API",
            f"The first line is not JSON of at most {line_bytes_max} bytes. Write one request a line.",
        ) from None


def _first_line(path: Path, line_bytes_max: int) -> bytes:
    """The first line with something on it, or its beginning where it is too long; b"" without one."""
    with path.open("rb") as file:
        # Its own reader of batches refuses it; at upload OpenAI overlooks it.
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        while True:
            line = file.readline(line_bytes_max + 1)
            if not line:
                return b""
            if line.strip(_BLANK):
                return line[: line_bytes_max + 1]


def _refused(problem: str, remedy: str) -> InvalidRequest:
    return InvalidRequest("", problem, remedy, code="")
