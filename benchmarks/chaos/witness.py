"""What the engines say that they were asked and have sent, read from their log; it knows nothing of the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.chaos.engine import Begun, Line, Sent

_line = msgspec.json.Decoder(Line)


class Witness:
    """Reads the log of the engines. A process that was killed may have left half a line, which says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> Iterator[Line]:
        """All that was written, in order."""
        if not self._path.exists():
            return
        for line in self._path.read_bytes().split(b"\n"):
            try:
                yield _line.decode(line)
            except msgspec.MsgspecError:
                continue

    def begun(self) -> list[Begun]:
        """All attempts that came."""
        return [line for line in self.lines() if isinstance(line, Begun)]

    def wrongly_continued(self) -> list[str]:
        """Attempts that were told another output than the engines have given."""
        return [
            f"attempt {one.attempt} goes on after {one.after} tokens that are not its own"
            for one in self.begun()
            if not one.right
        ]

    def run_twice(self) -> list[str]:
        """Attempts that came twice."""
        counts = Counter(one.attempt for one in self.begun())
        return [f"attempt {id} came {n} times" for id, n in counts.items() if n > 1]

    def run_after_end(self, ended_at: Mapping[str, float]) -> list[str]:
        """Attempts at a request whose client had its end already, at these times of the day.

        One that a later attempt has overtaken was granted before the end, to an agent that was frozen or cut off meanwhile.
        """
        found = []
        latest: dict[str, int] = {}
        for one in self.begun():
            number = int(one.attempt.rpartition("-")[2])
            overtaken = number < latest.get(one.name, 0)
            latest[one.name] = max(number, latest.get(one.name, 0))
            if one.name in ended_at and one.at_s > ended_at[one.name] and not overtaken:
                found.append(f"attempt {one.attempt} came after the end of {one.name}")
        return found

    def never_said(self, answers: Mapping[str, int]) -> list[str]:
        """Requests of so many tokens that clients have, of which no engine has said some."""
        said: dict[str, int] = {}
        for line in self.lines():
            if isinstance(line, Sent) and line.first <= said.get(line.name, 0) < line.last:
                said[line.name] = line.last
        return [
            f"{name} has {tokens} tokens, of which engines said {said.get(name, 0)} in a row"
            for name, tokens in answers.items()
            if said.get(name, 0) < tokens
        ]
