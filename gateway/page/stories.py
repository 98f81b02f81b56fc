"""What happened to the last requests, from the facts that the ledger has for the solver: instants and counts, no content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qlm_core.ledger import Row
from qlm_core.messages import Arrived, Ended, FirstToken, GatewayFact, Pulled, Returned
from qlm_core.model import RequestId

# Of one request; one that is tried more often is told of with its first and its last steps.
_STEPS_MAX = 64

Now = Callable[[], float]
Rows = Callable[[RequestId], Row | None]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to a request.

    Attributes:
        at_s: seconds after its arrival.
        what: arrived, pulled, first token, evicted, lost, resumed (pulled again, to go on after output), or how it ended.
        agent: by whom or from whom, where that is somebody.
        output_tokens: that its client has by then, where that is known.
    """

    at_s: float
    what: str
    agent: str = ""
    output_tokens: int | None = None


@dataclass(slots=True)
class Story:
    """The steps of one request, in order."""

    arrival_s: float
    steps: list[Step] = field(default_factory=list)
    agent: str = ""
    evictions: int = 0
    produced_tokens: int = 0
    left_out: int = 0

    def add(self, step: Step) -> None:
        """The next step."""
        if len(self.steps) >= _STEPS_MAX:
            del self.steps[_STEPS_MAX // 2]
            self.left_out += 1
        self.steps.append(step)


class Stories:
    """The stories of the last requests.

    Args:
        most: of how many.
        now_s: the ledger's clock.
        row: of an open request.
    """

    def __init__(self, most: int, *, now_s: Now, row: Rows) -> None:
        self._most = most
        self._now_s = now_s
        self._row = row
        self._of: dict[RequestId, Story] = {}

    def get(self, id: RequestId) -> Story | None:
        """The story of a request, if it is one of the last."""
        return self._of.get(id)

    def told(self, fact: GatewayFact) -> None:
        """Take note of a fact. Those that a solver is told again change nothing."""
        match fact:
            case Arrived(request):
                if request.id not in self._of:
                    self._begin(request.id, request.arrival_s)
            case Pulled(id, agent):
                story = self._of.get(id)
                if story is not None and story.agent != agent:
                    story.agent = agent
                    what = "resumed" if story.produced_tokens else "pulled"
                    story.add(Step(self._since(story), what, agent))
            case FirstToken(id, ttft_s):
                story = self._of.get(id)
                if story is not None and all(one.what != "first token" for one in story.steps):
                    story.add(Step(ttft_s, "first token", story.agent))
            case Returned(id, produced_tokens):
                story = self._of.get(id)
                if story is not None:
                    self._returned(id, story, produced_tokens)
            case Ended(id, phase, _, output_tokens):
                story = self._of.get(id)
                if story is not None:
                    step = Step(self._since(story), phase.value, story.agent, output_tokens)
                    story.add(step)

    def _begin(self, id: RequestId, arrival_s: float) -> None:
        if len(self._of) >= self._most:
            del self._of[next(iter(self._of))]
        story = self._of[id] = Story(arrival_s)
        story.add(Step(0.0, "arrived"))

    def _returned(self, id: RequestId, story: Story, produced_tokens: int) -> None:
        row = self._row(id)
        evictions = 0 if row is None else row.evictions
        what = "evicted" if evictions > story.evictions else "lost"
        story.add(Step(self._since(story), what, story.agent, produced_tokens))
        story.evictions, story.produced_tokens = evictions, produced_tokens
        story.agent = ""

    def _since(self, story: Story) -> float:
        return max(0.0, self._now_s() - story.arrival_s)
