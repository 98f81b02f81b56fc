"""What every stream that an agent dials has in common: channel options, and when to try again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc

from protos.doors import Doors
from protos.identity import Part
from protos.speaking import HTTP_ANSWERED
from qlm_core.presence import SILENCE_S

_FIRST_RETRY_S = 0.05

# Given to a call in place of its requests: they are written, not iterated.
WRITTEN: Any = None


def open_channel(
    address: str, *, to: Part, doors: Doors, message_bytes_max: int
) -> grpc.aio.Channel:
    """A channel of one connection to a part; pulses notice a dead peer (`protos.pulse`). A new attempt takes a new one."""
    return doors.channel(
        address,
        to,
        [
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_send_message_length", message_bytes_max),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


async def begin(call: Any, hello: Any) -> None:
    """Send the first message of a stream.

    A frozen peer takes a connection and no call. Cancelling does not end a write on such a call, so that the stream's
    pulse could not either.

    Raises:
        TimeoutError: nobody took it for as long as a peer may be silent.
    """
    try:
        async with asyncio.timeout(SILENCE_S):
            await call.write(hello)
    except TimeoutError:
        raise TimeoutError(f"nobody took the hello within {SILENCE_S:g} s") from None


def is_takeover(error: Exception) -> bool:
    """Whether a peer has left this stream for another of the same name."""
    return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.ABORTED


def reason_of(error: Exception) -> str:
    """Why a stream broke, for the log."""
    if isinstance(error, grpc.aio.AioRpcError):
        if any(sign in (error.details() or "").lower() for sign in HTTP_ANSWERED):
            return "what answers there speaks HTTP, where gRPC is wanted"
        return f"{error.code().name}: {error.details()}"
    return str(error)


class Backoff:
    """Growing, jittered pauses between attempts to connect."""

    def __init__(self, longest_s: float, *, first_s: float = _FIRST_RETRY_S) -> None:
        self._longest_s = longest_s
        self._first_s = first_s
        self._next_s = first_s
        self._random = random.Random()
        self._told = False

    def reset(self) -> None:
        """A connection stood: begin with short pauses again. Not after a takeover: a fight over a name helps neither."""
        self._next_s = self._first_s
        self._told = False

    def worth_telling(self) -> bool:
        """True once between two resets, when pauses are at their longest: peers that start together need less."""
        worth = self._next_s >= self._longest_s and not self._told
        self._told |= worth
        return worth

    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        pause_s = min(self._next_s, self._longest_s)
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s * self._random.uniform(0.5, 1.0)
