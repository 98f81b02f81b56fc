"""Where durable requests survive a crash: a narrow interface, and what stands behind it."""

from __future__ import annotations

from gateway.store.base import (
    Back,
    Ending,
    Endings,
    Found,
    Kept,
    Most,
    Opened,
    Store,
    StoredEnd,
    StoredRequest,
    StoreError,
    owned_key,
)
from gateway.store.clock import Seen, StoreClock
from gateway.store.database import Database, together
from gateway.store.memory import MemoryStore
from gateway.store.sqlite import SqliteStore
from qlm_core.config import StoreConfig

__all__ = [
    "Back",
    "Database",
    "Ending",
    "Endings",
    "Found",
    "Kept",
    "MemoryStore",
    "Most",
    "Opened",
    "Seen",
    "SqliteStore",
    "Store",
    "StoreClock",
    "StoreError",
    "StoredEnd",
    "StoredRequest",
    "make_store",
    "owned_key",
    "together",
]


def make_store(config: StoreConfig) -> Store:
    """The store that the configuration names, not opened yet."""
    if config.kind == "memory":
        return MemoryStore()
    return SqliteStore(config.path, commit_interval_s=config.commit_interval_s, fsync=config.fsync)
