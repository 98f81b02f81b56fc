"""Taking up again what was accepted in an earlier life of the gateway: whether a request can be, and many of them at once.

An older release may have let in what would be refused today; an agent must not be given that.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from gateway import body as bd
from gateway.store import StoredRequest
from qlm_core.resume import Resume, resume_of


def resume_again(request: StoredRequest) -> Resume:
    """How its output can be continued, once its body has been found to be one that is accepted today.

    Raises:
        InvalidRequest: it is not. Its size and its model are not looked at: limits are told when it is pulled, and
            models are not known before agents have come.
    """
    fields = bd.parse(request.body)
    bd.check_prompt(fields, request.endpoint)
    bd.with_limits(request.body, fields, request.endpoint)
    return resume_of(fields, request.endpoint)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Make many objects that stay without walking through all of them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
