"""The resources of the HTTP front door by the names of their routes: one line for each, one small module behind it."""

from __future__ import annotations

from gateway.batches.door import BatchesDoor
from gateway.call import Resource
from gateway.desk import Desk
from gateway.files.door import FilesDoor
from gateway.openapi.door import DescriptionDoor
from gateway.page.door import PageDoor
from gateway.requests_door import RequestsDoor
from gateway.responses.door import Responses
from gateway.uploads import Uploads


def resources(desk: Desk, uploads: Uploads) -> dict[str, Resource]:
    """What answers at which routes."""
    files = FilesDoor(desk, uploads)
    batches = BatchesDoor(desk, uploads)
    requests = RequestsDoor(desk)
    responses = Responses(desk)
    description = DescriptionDoor()
    page = PageDoor(desk)
    return {
        "files": files,
        "file": files,
        "file_content": files,
        "batches": batches,
        "batch": batches,
        "batch_cancel": batches,
        "openapi": description,
        "docs": description,
        "ui": page,
        "ui_feed": page,
        "ui_request": page,
        "requests": requests,
        "request": requests,
        "response": responses,
        "response_cancel": responses,
        "response_input_items": responses,
    }
