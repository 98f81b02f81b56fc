"""Forms as clients send them, written by hand."""

from __future__ import annotations

BOUNDARY = b"----qlm-boundary"
CONTENT_TYPE = "multipart/form-data; boundary=" + BOUNDARY.decode()
LINES = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n'


def field(name: str, value: str) -> bytes:
    """A part that is a plain field."""
    return part(f'form-data; name="{name}"'.encode(), value.encode())


def file(data: bytes = LINES, *, filename: bytes = b"in.jsonl") -> bytes:
    """A part that is a file."""
    return part(b'form-data; name="file"; filename="%b"' % filename, data)


def part(disposition: bytes, data: bytes) -> bytes:
    """A part with a head of one's own, and a content type, which counts for nothing."""
    head = b"Content-Disposition: %b\r\nContent-Type: text/plain\r\n" % disposition
    return b"--%b\r\n%b\r\n%b\r\n" % (BOUNDARY, head, data)


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY
