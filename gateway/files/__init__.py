"""Files that clients upload and fetch, and that batches read and write: OpenAI's Files API and what is behind it."""

from __future__ import annotations

from gateway.files.rows import StoredFile
from gateway.files.store import FileStore, Page
from gateway.files.upload import BATCH, BATCH_OUTPUT, USER_DATA, Upload

__all__ = ["BATCH", "BATCH_OUTPUT", "USER_DATA", "FileStore", "Page", "StoredFile", "Upload"]
