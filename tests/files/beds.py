"""A store of files on a disk of its own, opened and closed as a gateway does it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from gateway.files import BATCH, FileStore, StoredFile
from gateway.keys import Caller
from gateway.store import make_store
from qlm_core.config import Config, GatewayConfig
from tests.files.forms import LINES

ALICE, BOB = Caller(tenant="alice"), Caller(tenant="bob")
ADMIN = Caller(tenant="admin", operator=True)


class Clock:
    """The time of a store, as a test sets it."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def configured(folder: Path, *, store: dict[str, Any] | None = None, **files: Any) -> GatewayConfig:
    section = {"store": {"path": str(folder / "q.sqlite")} | (store or {}), "files": files}
    return Config.from_mapping({"gateway": section}).gateway


@contextlib.asynccontextmanager
async def opened(
    config: GatewayConfig, time_s: Callable[[], float] = time.time
) -> AsyncIterator[FileStore]:
    store = make_store(config.store)
    try:
        await store.open()
        files = FileStore(config, store, time_s=time_s)
        try:
            await files.open()
            yield files
        finally:
            await files.close()
    finally:
        await store.close()


async def made(
    files: FileStore,
    data: bytes = LINES,
    *,
    owner: str = "alice",
    purpose: str = BATCH,
    filename: str = "in.jsonl",
    **given: Any,
) -> StoredFile:
    """A file that is kept."""
    async with await files.create(owner=owner, purpose=purpose, filename=filename, **given) as it:
        await it.write(data)
        return await it.commit()


def on_disk(folder: Path) -> list[str]:
    """The names of what lies in and below the folder of files, beside what marks it."""
    found = (path.name for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "store")


def gauges(files: FileStore) -> dict[str, float]:
    return {name: value for name, _, value in files.gauges() if isinstance(value, float)}
