"""Files that clients upload and fetch, and that batches read and write: OpenAI's Files API and what is behind it."""

from __future__ import annotations

from gateway.files.purposes import BATCH, BATCH_OUTPUT, USER_DATA
from gateway.files.rows import Page, StoredFile
from gateway.files.store import FileStore
from gateway.files.upload import Upload

__all__ = ["BATCH", "BATCH_OUTPUT", "USER_DATA", "FileStore", "Page", "StoredFile", "Upload"]
