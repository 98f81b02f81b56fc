"""Keeps tokens and their text together, where an engine sends one before the other.

An engine tells of a token at once, by its id or in its count, and sends its text when that is complete: after the last
byte of a character, or when no stop string can begin in it any more. A continued attempt begins after whole tokens. So
what leaves here has both: tokens whose text is out, and no text whose tokens are not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Piece:
    """What one event says of one choice.

    Attributes:
        choice: the choice as it came; its text and lists are those of the piece.
        plain: it is nothing but text.
    """

    index: int
    choice: Json
    text: str
    plain: bool
    tokens: int
    ids: list[int] = field(default_factory=list)
    finished: bool = False


class HeldText:
    """The pieces of one choice whose text is not complete yet.

    Args:
        held_chars: characters of text that the engine holds back behind the tokens that it has sent.
    """

    def __init__(self, held_chars: int) -> None:
        self._held_chars = held_chars
        # Pieces whose tokens have text that is out up to a place: the characters up to the end of that text.
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._waiting: Piece | None = None
        self._text = ""
        self._received_chars = 0
        self._released_chars = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, and nothing will be for a stop string."""
        return not (self._held_chars or self._pieces or self._waiting)

    def add(self, piece: Piece) -> Piece | None:
        """Take a piece; returns what is complete now as one piece, None if nothing is."""
        if not piece.plain:
            # Parsed output says nothing of where its tokens end, and cannot be continued anyway.
            self._held_chars = 0
        self._text += piece.text
        self._received_chars += len(piece.text)
        self._waiting = piece if self._waiting is None else _merged(self._waiting, piece)
        if piece.text:
            self._pieces.append((self._received_chars + self._held_chars, self._waiting))
            self._waiting = None
        if piece.finished or not piece.plain:
            return self._all()
        released: Piece | None = None
        end_chars = self._released_chars
        while self._pieces and self._pieces[0][0] <= self._received_chars:
            end_chars, complete = self._pieces.popleft()
            released = complete if released is None else _merged(released, complete)
        if released is not None:
            return self._cut(released, end_chars)
        if self._waiting is not None and _says_more(self._waiting.choice):
            # A role, for example: it goes ahead, the tokens follow.
            waiting, self._waiting = self._waiting, None
            ahead = Piece(index=0, choice=waiting.choice, text="", plain=True, tokens=0)
            if waiting.tokens:
                self._waiting = Piece(
                    index=0,
                    choice={"index": 0, "finish_reason": None},
                    text="",
                    plain=True,
                    tokens=waiting.tokens,
                    ids=waiting.ids,
                )
            return ahead
        return None

    def _all(self) -> Piece:
        pieces = [piece for _, piece in self._pieces]
        if self._waiting is not None:
            pieces.append(self._waiting)
        self._pieces.clear()
        self._waiting = None
        released = pieces[0]
        for piece in pieces[1:]:
            released = _merged(released, piece)
        return self._cut(released, self._received_chars)

    def _cut(self, released: Piece, end_chars: int) -> Piece:
        """Give a piece the text that belongs to its tokens."""
        chars = end_chars - self._released_chars
        text, self._text = self._text[:chars], self._text[chars:]
        self._released_chars = end_chars
        released.text = text
        choice = released.choice
        if "text" in choice:
            choice["text"] = text
        elif isinstance(choice.get("delta"), dict) and (text or choice["delta"].get("content")):
            # Content that says that there is none stays as it is.
            choice["delta"]["content"] = text
        return released


def _says_more(choice: Json) -> bool:
    delta = choice.get("delta")
    return isinstance(delta, dict) and bool(delta.get("role"))


def _merged(first: Piece, second: Piece) -> Piece:
    """Two pieces of one choice as one; their text is cut later."""
    choice = first.choice | second.choice
    for key in ("token_ids", "prompt_token_ids"):
        lists = [
            piece.choice[key]
            for piece in (first, second)
            if isinstance(piece.choice.get(key), list)
        ]
        if lists:
            choice[key] = [id for ids in lists for id in ids]
    choice["logprobs"] = _merged_logprobs(
        first.choice.get("logprobs"), second.choice.get("logprobs")
    )
    before, after = first.choice.get("delta"), second.choice.get("delta")
    if isinstance(before, dict) and isinstance(after, dict):
        choice["delta"] = before | after
    return Piece(
        index=first.index,
        choice=choice,
        text=first.text + second.text,
        plain=first.plain and second.plain,
        tokens=first.tokens + second.tokens,
        ids=first.ids + second.ids,
        finished=second.finished,
    )


def _merged_logprobs(first: object, second: object) -> object:
    """Lists of log-probabilities one after the other."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first if isinstance(first, dict) else second
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        merged[key] = (
            [*before, *value] if isinstance(before, list) and isinstance(value, list) else value
        )
    return merged
