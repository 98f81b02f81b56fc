"""Files as OpenAI's objects. Everything here is pure."""

from __future__ import annotations

from gateway.answer import Json
from gateway.files.rows import Page, StoredFile


def file_json(file: StoredFile) -> Json:
    """OpenAI's file object. Its `status` is deprecated there, required, and always the same."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes_count,
        "created_at": file.created_unix_s,
        "expires_at": file.expires_unix_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def page_json(page: Page) -> Json:
    """OpenAI's list of files."""
    files = page.files
    return {
        "object": "list",
        "data": [file_json(file) for file in files],
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
        "has_more": page.has_more,
    }
