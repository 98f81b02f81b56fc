"""The client of a QLM gateway's gRPC interface: `Client` blocks, `AsyncClient` is its twin for asyncio.

Every request submitted here is durable: once it is accepted it is run and its answer kept, whatever becomes of this client or of
any process of the fleet. Bodies are those of OpenAI's API, with `messages` for a chat or `prompt` for a completion.
"""

from __future__ import annotations

from qlm_client.async_client import AsyncClient
from qlm_client.errors import Busy, NotFound, QlmError, Unavailable
from qlm_client.sync_client import Client
from qlm_client.values import Accepted, Ended, Estimate, Event, Output, Phase, Slo, Standing

__all__ = [
    "Accepted",
    "AsyncClient",
    "Busy",
    "Client",
    "Ended",
    "Estimate",
    "Event",
    "NotFound",
    "Output",
    "Phase",
    "QlmError",
    "Slo",
    "Standing",
    "Unavailable",
]
