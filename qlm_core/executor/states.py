"""The states of an executor and of an attempt, and every move between them.

The two tables are the machine's own: `Executor` moves only along them, and docs/states.md is drawn from them.
A trigger that a state does not list cannot occur in it.
"""

from __future__ import annotations

from enum import Enum


class ExecutorState(Enum):
    """What an executor is about.

    DOWN: the engine cannot run anything. SERVING: requests of the awake model are pulled and run.
    EMPTYING: the queue's next model is another one; nothing is pulled until the batch has drained.
    SWAPPING: the engine changes models. LEAVING: the agent drains for good. GONE: nothing is held.
    """

    DOWN = "down"
    SERVING = "serving"
    EMPTYING = "emptying"
    SWAPPING = "swapping"
    LEAVING = "leaving"
    GONE = "gone"


class Trigger(Enum):
    """Why an executor changes state."""

    ENGINE_READY = "engine ready"
    ENGINE_DOWN = "engine down"
    HEAD_NEEDS_SWAP = "head needs another model"
    HEAD_FITS = "head fits the awake model again"
    EMPTIED = "nothing in flight"
    SWAP_FAILED = "swap failed"
    DRAIN = "drain ordered"


S, T = ExecutorState, Trigger

EXECUTOR_MOVES: dict[tuple[ExecutorState, Trigger], ExecutorState] = {
    (S.DOWN, T.ENGINE_READY): S.SERVING,
    (S.DOWN, T.ENGINE_DOWN): S.DOWN,
    (S.DOWN, T.SWAP_FAILED): S.DOWN,
    (S.DOWN, T.DRAIN): S.LEAVING,
    (S.SERVING, T.ENGINE_READY): S.SERVING,
    (S.SERVING, T.ENGINE_DOWN): S.DOWN,
    (S.SERVING, T.HEAD_NEEDS_SWAP): S.EMPTYING,
    (S.SERVING, T.SWAP_FAILED): S.SERVING,
    (S.SERVING, T.DRAIN): S.LEAVING,
    (S.EMPTYING, T.ENGINE_READY): S.SERVING,
    (S.EMPTYING, T.ENGINE_DOWN): S.DOWN,
    (S.EMPTYING, T.HEAD_FITS): S.SERVING,
    (S.EMPTYING, T.SWAP_FAILED): S.EMPTYING,
    (S.EMPTYING, T.EMPTIED): S.SWAPPING,
    (S.EMPTYING, T.DRAIN): S.LEAVING,
    (S.SWAPPING, T.ENGINE_READY): S.SERVING,
    (S.SWAPPING, T.ENGINE_DOWN): S.DOWN,
    (S.SWAPPING, T.SWAP_FAILED): S.SERVING,
    (S.SWAPPING, T.DRAIN): S.LEAVING,
    (S.LEAVING, T.ENGINE_READY): S.LEAVING,
    (S.LEAVING, T.ENGINE_DOWN): S.LEAVING,
    (S.LEAVING, T.SWAP_FAILED): S.LEAVING,
    (S.LEAVING, T.DRAIN): S.LEAVING,
    (S.LEAVING, T.EMPTIED): S.GONE,
    (S.GONE, T.ENGINE_READY): S.GONE,
    (S.GONE, T.ENGINE_DOWN): S.GONE,
    (S.GONE, T.SWAP_FAILED): S.GONE,
    (S.GONE, T.DRAIN): S.GONE,
}


class AttemptState(Enum):
    """Where a request stands that left the window.

    PULLING: its payload is asked for. HELD: its payload is here, and waits for room. RUNNING: it is on the
    engine. The rest ends it here: ENDED told the gateway so, RETURNED waits at the gateway again, DROPPED
    was refused or revoked, REQUEUED is in the window again.
    """

    PULLING = "pulling"
    HELD = "held"
    RUNNING = "running"
    ENDED = "ended"
    RETURNED = "returned"
    DROPPED = "dropped"
    REQUEUED = "requeued"


A = AttemptState

ATTEMPT_MOVES: dict[AttemptState, dict[AttemptState, str]] = {
    A.PULLING: {
        A.HELD: "the payload came",
        A.DROPPED: "the pull was refused",
        A.REQUEUED: "no answer in time, or the gateway was lost",
    },
    A.HELD: {
        A.RUNNING: "there is room",
        A.RETURNED: "another model comes first, eviction, engine down, drain",
        A.DROPPED: "revoked, or the gateway is forgotten",
    },
    A.RUNNING: {
        A.ENDED: "the engine finished or refused it",
        A.RETURNED: "eviction, job lost, engine down, drain deadline",
        A.DROPPED: "revoked, or the gateway is forgotten",
    },
}


def as_markdown() -> str:
    """The two tables as the executor's section of docs/states.md."""
    lines = ["## Executor", "", "| state | trigger | next state |", "| --- | --- | --- |"]
    lines += [
        f"| {state.value} | {trigger.value} | {after.value} |"
        for (state, trigger), after in EXECUTOR_MOVES.items()
    ]
    lines += ["", "## Attempt, at the agent", "", "| state | next state | when |"]
    lines += ["| --- | --- | --- |"]
    lines += [
        f"| {before.value} | {after.value} | {why} |"
        for before, moves in ATTEMPT_MOVES.items()
        for after, why in moves.items()
    ]
    return "\n".join(lines) + "\n"
