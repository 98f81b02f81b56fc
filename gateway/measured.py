"""The answers of endpoints that generate nothing: embeddings and scores.

They come whole and leave as they came: numbers are not read, so none is written in another way than the engine did. Only
the head, where the engine gave one, is the gateway's, as for all answers. Until the request has ended nobody is shown an
answer, for one that was broken off begins anew.
"""

from __future__ import annotations

import msgspec

from gateway.answer import BadChunkError
from qlm_core.ledger import EndRecord

_decode_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class MeasuredAnswer:
    """An answer as its engine wrote it; the last one counts."""

    text = ""
    text_offset_chars = 0

    def __init__(self) -> None:
        self._data = b""

    def fold(self, data: bytes, *, whole: bool = True) -> None:  # noqa: ARG002
        """Take an answer. Raises BadChunkError if it is not a JSON object."""
        _fields(data)
        self._data = data

    def finish(self, reason: str) -> bytes:  # noqa: ARG002
        """All of it. Raises BadChunkError if there is none."""
        if not self._data:
            raise BadChunkError("an engine said that it was done and gave no answer")
        return self._data

    def chunk(self) -> bytes:
        """All of it; b"" if there is nothing."""
        return self._data

    def response(
        self,
        *,
        id: str,
        created: int,
        model: str,
        service_tier: str,  # noqa: ARG002
        record: EndRecord,  # noqa: ARG002
    ) -> bytes:
        """The answer as a client gets it; b"" where the request ended without one."""
        if not self._data:
            return b""
        return MeasuredFramer(id=id, created=created, model=model).frame(self.finish(""))


class MeasuredFramer:
    """Puts the gateway's id, time and model in place of the engine's."""

    def __init__(self, *, id: str, created: int, model: str) -> None:
        self._head = {"id": id, "created": created, "model": model}

    def frame(self, data: bytes) -> bytes:
        """An engine's answer as the client gets it. Raises BadChunkError if it is not a JSON object."""
        fields = _fields(data)
        for name, value in self._head.items():
            if name in fields:
                fields[name] = msgspec.Raw(_encode(value))
        return _encode(fields)

    def usage(self, record: EndRecord) -> bytes:  # noqa: ARG002
        """Nothing: the answer has it."""
        return b""


def _fields(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode_shallow(data)
    except (ValueError, RecursionError) as error:
        raise BadChunkError(f"an engine sent an answer that cannot be read ({error})") from None
