"""The text that the scripted engine says: a function of the prompt and a token's position, so that anybody can check it.

A prompt is one line that names its request. Behind the line may stand what an earlier attempt has said, from where the text goes
on; so it is known at once whether an attempt goes on rightly.
"""

from __future__ import annotations

import zlib

MODEL = "chaos"
LINE = "\n"


def prompt(name: str) -> str:
    """The prompt of a request of this name, which has no line break."""
    return name + LINE


def token(name: str, position: int) -> str:
    """One token of the answer to a request."""
    return f" {zlib.crc32(f'{name}/{position}'.encode()) & 0xFFFFFF:06x}"


def answer(name: str, tokens: int) -> str:
    """The whole answer of so many tokens."""
    return "".join(token(name, position) for position in range(tokens))


def begun(text: str) -> tuple[str, int, bool]:
    """Whose prompt this is, how many tokens of the answer it has already, and whether they are the right ones."""
    name, _, said = text.partition(LINE)
    tokens = said.count(" ")
    return name, tokens, said == answer(name, tokens)
