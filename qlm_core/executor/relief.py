"""Which requests in flight give way, and to whom: looks at everybody who waits here, in the order in which they would start.

Who waits is in the window, or was pulled ahead of the room: payloads that are asked for or held count like references, so it does
not matter how many are pulled ahead. For each laxity among them, the strictest first, `urgency` says what room they lack; what
runs and is laxer gives it up; what is laxer and was pulled ahead is passed by.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from qlm_core.config import ExecutorConfig
from qlm_core.executor.attempts import Attempts
from qlm_core.executor.batch import InFlight
from qlm_core.executor.urgency import need, victims
from qlm_core.model import GroupId, QueuedGroup, RequestRef

# Least time between two checks.
CHECK_S_MIN = 0.05


class Relief:
    """When to look for requests that would be late, and who gives way to them.

    Attributes:
        due_s: when to look next, if somebody waits.
    """

    __slots__ = ("_attempts", "_check_s", "_margin_s", "due_s")

    def __init__(self, attempts: Attempts, config: ExecutorConfig) -> None:
        self._attempts = attempts
        self._margin_s = config.evict_margin_s
        # New references and unmet needs are looked at this soon, well within the margin.
        self._check_s = max(CHECK_S_MIN, config.evict_margin_s / 4)
        self.due_s = 0.0

    def soon(self, now_s: float, within_s: float = inf) -> None:
        """Others wait than at the last look; the next is due at the usual time, or `within_s` if that is sooner."""
        self.due_s = min(self.due_s, now_s + max(CHECK_S_MIN, min(self._check_s, within_s)))

    def at(self, due_s: float, now_s: float) -> None:
        """Look again then, or at the usual time if that is later."""
        self.due_s = max(due_s, now_s + self._check_s)

    def later(self, now_s: float) -> None:
        """Room has been made otherwise."""
        self.due_s = max(self.due_s, now_s + CHECK_S_MIN)

    def givers(self, head: QueuedGroup | None, now_s: float) -> list[InFlight]:
        """Requests to evict now, none if nobody would be late otherwise.

        Args:
            head: the group whose requests are pulled next.
        """
        self.due_s = now_s + self._check_s
        check_s = inf
        for laxity_s in self._laxities(head):
            behind = self.behind(head, laxity_s)
            if not behind:
                check_s = min(check_s, self.due_s)
                continue
            wanted = need(
                self._waiting(head, laxity_s),
                self._attempts.batch,
                now_s=now_s,
                margin_s=self._margin_s,
                prefill_s_per_token=self._attempts.batch.reading.token_s,
                token_s=self._attempts.pace.token_s,
                evictable=len(behind),
                resume_share=self._attempts.pace.resume_share,
            )
            check_s = min(check_s, wanted.check_s)
            if wanted.slots or wanted.kv_tokens:
                return victims(behind, wanted)
        self.due_s = max(check_s, now_s + CHECK_S_MIN)
        return []

    def _laxities(self, head: QueuedGroup | None) -> list[float]:
        """Of those who wait and can be late, strictest first."""
        found = dict.fromkeys(self._attempts.batch.line.laxities)
        if head is not None:
            found[self._attempts.laxity(head.slo_class)] = None
        return sorted(found)

    def _waiting(self, head: QueuedGroup | None, laxity_s: float) -> Iterator[RequestRef]:
        """Those of that laxity or a stricter one in the order in which they start: in line, then from the head on.

        Laxer ones in line are passed by.
        """
        attempts = self._attempts
        for item in attempts.batch.in_line(attempts.now_s):
            if item.class_ttft_s <= laxity_s:
                yield item.ref
        if head is not None:
            # Rests let those pass that wait for their first token.
            begun_first = not attempts.first_token_only(head.slo_class)
            for ref in attempts.window.upcoming(
                head, lambda name: attempts.laxity(name) <= laxity_s
            ):
                if begun_first or not ref.produced_tokens:
                    yield ref

    def behind(self, head: QueuedGroup | None, laxity_s: float) -> list[InFlight]:
        """What runs and may give way to those."""
        attempts = self._attempts
        before = self._planned_before(head, laxity_s)
        return [
            item
            for item in attempts.batch.running.values()
            if attempts.gives_way(item, laxity_s)
            and (item.owes_nothing or item.ref.group not in before)
        ]

    def _planned_before(self, head: QueuedGroup | None, laxity_s: float) -> dict[GroupId, None]:
        """Groups that the plan puts before the head: laxer work of theirs stays, unless all that was promised of it is out."""
        attempts = self._attempts
        position = 0
        if head is not None and attempts.laxity(head.slo_class) <= laxity_s:
            position = attempts.window.position(head.id) or 0
        return dict.fromkeys(group.id for group in attempts.window.order[:position])
