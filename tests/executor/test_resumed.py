"""What the executor takes a request to cost that comes back: from the profile at first, then from what engines tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlm_core.executor import JobDone
from qlm_core.executor.batch import Batch
from qlm_core.executor.urgency import need
from qlm_core.model import RequestId
from tests.executor.world import World, group, profile, ref, world


def share(w: World) -> float:
    return w.executor.instance_state().resume_share


def end(w: World, id: str, *, prompt: int, cached: int | None) -> None:
    w.tell(JobDone(RequestId(id), w.attempts[id], "stop", prompt, 10, cached_tokens=cached))


def test_until_requests_have_come_back_the_profile_counts():
    assert share(world(replace(profile(), resume_share=0.2))) == 0.2
    assert share(world(profile())) == 1.0


def test_it_is_learned_from_requests_that_came_back_and_from_no_others():
    w = world(profile(slots=8))
    fresh = tuple(ref(f"1-{index}", 1) for index in range(3))
    resumed = tuple(ref(f"2-{index}", 2, prompt=100, produced=100) for index in range(3))
    w.queue(group(1), group(2), add=fresh + resumed)
    w.grant()
    end(w, "1-0", prompt=200, cached=190)
    end(w, "2-0", prompt=200, cached=None)
    assert share(w) == 1.0
    end(w, "2-1", prompt=200, cached=100)
    assert share(w) == pytest.approx(0.95)
    end(w, "2-2", prompt=200, cached=200)
    assert share(w) == pytest.approx(0.855)
    assert [one.prompt_tokens for one in w.ended] == [200] * 4


@pytest.mark.parametrize(("resume_share", "slots"), [(1.0, 2), (0.0, 0)])
def test_what_has_begun_delays_those_behind_it_by_what_is_computed_again(
    resume_share: float, slots: int
):
    """Ten seconds of prefill before a request that is due in twelve, if all of it has to be done again."""
    waiting = [ref("a", 1, prompt=900, produced=100), ref("b", 1, prompt=10, due_s=12.0)]
    batch = Batch(0, 100_000)
    wanted = need(
        waiting, batch, now_s=0.0, margin_s=3.0, prefill_s_per_token=0.01, token_s=0.02,
        evictable=4, resume_share=resume_share,
    )  # fmt: skip
    assert wanted.slots == slots
