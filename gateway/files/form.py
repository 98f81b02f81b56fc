"""What a form with a file says, in whatever order it says it, and the file that comes of it.

Fields may stand before or behind the file. What is known when the file begins is checked then; the rest once all is there.
"""

from __future__ import annotations

from gateway.files import checks
from gateway.files.arriving import Arriving
from gateway.files.disposition import Part
from gateway.files.multipart import Event, FormReader, PartBegan, PartData
from gateway.files.purposes import BATCH, UPLOADED
from gateway.files.rows import StoredFile
from gateway.files.store import FileStore
from gateway.files.upload import Upload
from qlm_core.errors import InvalidRequest

EXPIRES_S_MIN, EXPIRES_S_MAX = 3_600, 2_592_000
_FILE, _PURPOSE = "file", "purpose"
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = (_PURPOSE, _ANCHOR, _SECONDS)
_FIELD_BYTES_MAX = 4_096
_FILENAME_MAX = 512


class FileForm:
    """One form, of which a file is made.

    Args:
        owner: the tenant whose file it will be.
    """

    def __init__(self, files: FileStore, reader: FormReader, owner: str) -> None:
        self._files = files
        self._reader = reader
        self._owner = owner
        self._upload: Upload | None = None
        self._fields: dict[str, bytes] = {}
        self._field = ""

    async def read(self, body: Arriving) -> StoredFile:
        """Read the form and keep its file.

        Raises InvalidRequest, QueueFull, NoRoom, Unavailable; then nothing of it is kept.
        """
        try:
            while data := await body.next():
                for event in self._reader.feed(data):
                    await self._on(event)
            return await self._finish()
        finally:
            if self._upload is not None:
                await self._upload.abort()

    async def _on(self, event: Event) -> None:
        if isinstance(event, PartBegan):
            await self._begin(event.part)
        elif isinstance(event, PartData):
            await self._take(event.data)
        else:
            self._field = ""

    async def _begin(self, part: Part) -> None:
        self._field = part.name
        if part.name == _FILE:
            await self._begin_file(part.filename or "")
        elif part.name in _FIELDS:
            if part.name in self._fields:
                raise InvalidRequest(part.name, "given twice", "Give it once.")
            self._fields[part.name] = b""

    async def _begin_file(self, filename: str) -> None:
        if self._upload is not None:
            raise InvalidRequest(_FILE, "there are several", "Send one at a time.")
        if not filename:
            raise InvalidRequest(
                _FILE, "it has no filename", "Name it, as curl does with -F file=@PATH."
            )
        if len(filename) > _FILENAME_MAX:
            raise InvalidRequest(
                _FILE, f"its name has more than {_FILENAME_MAX} characters", "Shorten it."
            )
        purpose = self._purpose() if _PURPOSE in self._fields else ""
        if purpose == BATCH:
            checks.check_name(filename)
        self._upload = await self._files.create(
            owner=self._owner, purpose=purpose, filename=filename
        )

    async def _take(self, data: bytes) -> None:
        if self._field == _FILE and self._upload is not None:
            await self._upload.write(data)
        elif self._field in self._fields:
            self._fields[self._field] += data
            if len(self._fields[self._field]) > _FIELD_BYTES_MAX:
                raise InvalidRequest(
                    self._field, f"more than {_FIELD_BYTES_MAX} bytes", "Shorten it."
                )

    async def _finish(self) -> StoredFile:
        if not self._reader.complete:
            raise InvalidRequest(
                "body",
                "it ends before its last boundary",
                "Send the whole form.",
                code="invalid_form",
            )
        purpose = self._purpose()
        if self._upload is None:
            raise _missing(_FILE)
        self._upload.purpose = purpose
        self._upload.expires_in_s = self._expires_in_s()
        return await self._upload.commit()

    def _purpose(self) -> str:
        if _PURPOSE not in self._fields:
            raise _missing(_PURPOSE)
        purpose = self._text(_PURPOSE)
        if purpose not in UPLOADED:
            raise InvalidRequest(
                _PURPOSE,
                f"{purpose[:32]!r} is not served here",
                f"Supported values are: {' and '.join(map(repr, UPLOADED))}.",
            )
        return purpose

    def _expires_in_s(self) -> float | None:
        if _ANCHOR not in self._fields and _SECONDS not in self._fields:
            return None
        for name in (_ANCHOR, _SECONDS):
            if name not in self._fields:
                raise _missing(name)
        anchor, seconds = self._text(_ANCHOR), self._text(_SECONDS)
        if anchor != "created_at":
            raise InvalidRequest(
                _ANCHOR, f"{anchor[:32]!r} is no anchor", "Supported values are: 'created_at'."
            )
        # No more digits than the largest has, so that there is no number too long to be read.
        if not (
            seconds.isascii() and seconds.isdigit() and len(seconds) <= len(str(EXPIRES_S_MAX))
        ):
            seconds = "0"
        if not EXPIRES_S_MIN <= int(seconds) <= EXPIRES_S_MAX:
            raise InvalidRequest(
                _SECONDS,
                "out of range",
                f"Give a whole number from {EXPIRES_S_MIN} to {EXPIRES_S_MAX}.",
            )
        return float(seconds)

    def _text(self, name: str) -> str:
        return self._fields[name].decode(errors="replace").strip()


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(name, "missing", "Give it.", code="missing_required_parameter")
