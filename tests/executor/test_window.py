"""What becomes of references whose group has left the order: requests that others have pulled, or another solver's groups."""

from __future__ import annotations

from qlm_core.executor import GatewayLost, GatewayUp
from qlm_core.messages import QueueUpdate
from tests.executor.world import GATEWAY, group, profile, refs, world


def full():
    """One slot is taken; two more requests of its group wait."""
    w = world(profile(slots=1))
    w.queue(group(1), add=refs(1, 3))
    w.grant("1-0")
    assert len(w.executor.window) == 2
    return w


def test_what_is_left_of_a_group_that_left_the_order_is_forgotten() -> None:
    """Its requests ran elsewhere, of which nobody tells this agent."""
    w = full()
    w.queue(group(2), epoch=2)
    assert len(w.executor.window) == 0
    w.queue(group(2), group(1), epoch=3)
    w.finish("1-0")
    assert w.pulled == ["1-0"]


def test_so_is_what_is_set_aside_while_its_gateway_is_away() -> None:
    w = full()
    w.tell(GatewayLost(GATEWAY))
    w.queue(group(2), epoch=2)
    w.queue(group(2), group(1), epoch=3)
    w.tell(GatewayUp(GATEWAY))
    w.finish("1-0")
    assert w.pulled == ["1-0"]


def test_a_pull_that_came_to_nothing_is_not_put_into_another_solvers_group() -> None:
    """Two solvers give the same id to groups of different models; pulled as that group, it would run on the wrong one."""
    w = world(profile("m1"), profile("m2"))
    w.queue(group(1, "m1"), add=refs(1, 1))
    assert w.pulled == ["1-0"]
    w.tell(QueueUpdate(epoch=2, snapshot=True, order=(group(1, "m2"),)))
    w.tell(GatewayLost(GATEWAY))
    w.tell(GatewayUp(GATEWAY))
    assert len(w.executor.window) == 0
    assert w.swaps == []


def test_one_whose_group_still_stands_is_asked_for_again() -> None:
    w = world(profile("m1"))
    w.queue(group(1, "m1"), add=refs(1, 1))
    w.tell(GatewayLost(GATEWAY))
    w.tell(GatewayUp(GATEWAY))
    assert w.pulled == ["1-0", "1-0"]
