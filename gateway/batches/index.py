"""What is known of the lines of an input file once it was read: where each is, what it asks for, or what is wrong.

Bodies stay in the file. A line takes 24 bytes here, and as many in the store.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

LINE_BYTES = 24
COUNT_MAX = 2**31 - 1
OFFSET_MAX = 2**62


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong with an input file, in OpenAI's shape.

    Attributes:
        line: the line's number in the file, from 1; None for the file itself.
    """

    code: str
    message: str
    param: str | None = None
    line: int | None = None


def listed(faults: tuple[Fault, ...]) -> dict[str, Any] | None:
    """Faults as OpenAI lists them; None for none."""
    return {"object": "list", "data": msgspec.to_builtins(faults)} if faults else None


class AskedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that lines ask for.

    Attributes:
        at: the numbers of some of these lines in the file, the first ones, from 1.
    """

    name: str
    at: tuple[int, ...]


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """What reading a file came to: faults, or models and lines; the bytes are those of an `Index`."""

    faults: tuple[Fault, ...] = ()
    models: tuple[AskedModel, ...] = ()
    index: bytes = b""


class Index:
    """The lines of a file in order, without blank ones.

    Attributes:
        offsets, sizes: where each is in the file, in bytes.
        model_of: the place of its model among those that are asked for.
        prompt_tokens: estimated.
        output_limits: as the body says; 0 where it says nothing.
    """

    __slots__ = ("model_of", "offsets", "output_limits", "prompt_tokens", "sizes")

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.sizes = array("I")
        self.model_of = array("I")
        self.prompt_tokens = array("I")
        self.output_limits = array("I")

    def __len__(self) -> int:
        return len(self.offsets)

    def add(
        self, *, offset: int, size: int, model: int, prompt_tokens: int, output_limit: int
    ) -> None:
        """Append a line. Raises OverflowError for a number that is none of a file's."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self.model_of.append(model)
        self.prompt_tokens.append(prompt_tokens)
        self.output_limits.append(output_limit)

    def pack(self) -> bytes:
        """As bytes, LINE_BYTES for each line."""
        return b"".join(column.tobytes() for column in self._columns())

    @staticmethod
    def unpack(data: bytes) -> Index:
        """The index of such bytes. Raises ValueError for others."""
        lines, rest = divmod(len(data), LINE_BYTES)
        if rest:
            raise ValueError(f"an index of {len(data)} bytes")
        index, start = Index(), 0
        for column in index._columns():
            size = lines * column.itemsize
            column.frombytes(data[start : start + size])
            start += size
        return index

    def is_sound(self, models: int) -> bool:
        """Whether it has lines, each of one of so many models, that fit a file's offsets."""
        return (
            len(self) > 0
            and max(self.model_of) < models
            and max(self.offsets) <= OFFSET_MAX
            and max(self.output_limits) <= COUNT_MAX
        )

    def _columns(self) -> tuple[array[int], ...]:
        return self.offsets, self.sizes, self.model_of, self.prompt_tokens, self.output_limits
