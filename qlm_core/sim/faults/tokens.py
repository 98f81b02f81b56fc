"""Output as the simulated engines make it: tokens numbered by position, under a salt that tells one output from another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """Consecutive tokens of one output: from `start` on, so many of them."""

    salt: int
    start: int
    tokens: int

    def encode(self) -> bytes:
        """As the data of a chunk."""
        return b"%d:%d:%d" % self

    @staticmethod
    def decode(data: bytes) -> Span:
        """What `encode` wrote."""
        salt, start, tokens = data.split(b":")
        return Span(int(salt), int(start), int(tokens))


@dataclass(slots=True)
class Text:
    """Output put together in the order in which it came, whether or not it fits together.

    Attributes:
        salt: of its first token.
        tokens: how many there are.
        flaw: how the first span that does not fit differs from what was to come; "" as long as all do.
    """

    salt: int = 0
    tokens: int = 0
    flaw: str = field(default="", compare=False)

    def add(self, span: Span) -> None:
        """More of it."""
        if not self.tokens:
            self.salt = span.salt
        if not self.flaw:
            if span.start != self.tokens:
                kind = "repeated" if span.start < self.tokens else "missing"
                self.flaw = f"tokens are {kind}: {span.start} comes where {self.tokens} should"
            elif span.salt != self.salt:
                self.flaw = f"token {span.start} is of another output than those before it"
        self.tokens += span.tokens

    def encode(self) -> str:
        """As the text that an attempt goes on from."""
        return f"{self.salt}:{self.tokens}" if self.tokens else ""

    @staticmethod
    def parse(text: str) -> Text:
        """What `encode` wrote."""
        if not text:
            return Text()
        salt, tokens = text.split(":")
        return Text(int(salt), int(tokens))
