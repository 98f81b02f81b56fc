"""What a port speaks, told by its first bytes: who dials a part and reaches another, or a strange server, can say so."""

from __future__ import annotations

import asyncio

from qlm_core.config_rules import parse_address

TIMEOUT_S = 5.0
# What a client of HTTP/2 says first, with an empty frame of settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS = 4

# gRPC's own words for an answer in HTTP/1.
HTTP_ANSWERED = ("http1.x server", "failed parsing http/2")

SPOKEN = {
    "grpc": "speaks gRPC",
    "tls": "answers, and wants TLS",
    "http": "speaks HTTP, where gRPC is wanted",
    "silent": "takes connections and says nothing",
    "": "is not reached from here",
}


async def speaks(address: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """What answers at an address: `grpc`, `http`, `tls` (it hangs up on who wants none), `silent`, or "" for nobody."""
    host, port = parse_address(address, "address")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (OSError, TimeoutError):
        return ""
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(_PREFACE)
            await writer.drain()
            answer = await reader.readexactly(9)
    except TimeoutError:
        return "silent"
    except (OSError, asyncio.IncompleteReadError):
        return "tls"
    finally:
        writer.close()
    if answer[:4] == b"HTTP":
        return "http"
    # An alert of TLS.
    if answer[0] == 0x15:
        return "tls"
    return "grpc" if answer[3] == _SETTINGS else "http"
