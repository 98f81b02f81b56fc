"""The book of batches by events and effects: what is released when, and when a batch is over."""

from __future__ import annotations

from collections.abc import Sequence

from qlm_core import batches as bt
from qlm_core.batches import BatchStatus, Unrun, Usage
from qlm_core.model import BatchId, ModelName

A, B, C = BatchId("a"), BatchId("b"), BatchId("c")
TINY, OTHER = ModelName("tiny"), ModelName("other")
DUE_S = 100.0


class Desk:
    """A book and all that it said."""

    def __init__(self, *, waiting_lines_max: int = 4) -> None:
        self.book = bt.Book(waiting_lines_max=waiting_lines_max)
        self.now_s = 0.0

    def send(self, event: bt.Event) -> list[bt.Effect]:
        return self.book.handle(event, now_s=self.now_s)

    def running(
        self,
        batch: BatchId,
        lines: int,
        *,
        tenant: str = "t",
        due_s: float = DUE_S,
        models: tuple[ModelName, ...] = (TINY,),
        model_of: Sequence[int] | None = None,
    ) -> list[bt.Effect]:
        assert self.send(bt.Opened(batch, tenant, due_s)) == [bt.Validate(batch)]
        return self.send(bt.Accepted(batch, models, [0] * lines if model_of is None else model_of))

    def status(self, batch: BatchId) -> BatchStatus:
        standing = self.book.standing(batch)
        assert standing is not None
        return standing.status


def released(effects: list[bt.Effect]) -> list[tuple[BatchId, int]]:
    return [(one.batch, one.line) for one in effects if isinstance(one, bt.Release)]


def changed(status: BatchStatus, unrun: Unrun | None = None) -> bt.Changed:
    return bt.Changed(A, status, unrun)


def dropped(effects: list[bt.Effect]) -> list[int]:
    return [one.line for one in effects if isinstance(one, bt.Drop)]


def test_nothing_is_released_before_the_whole_file_is_sound() -> None:
    desk = Desk()
    assert desk.send(bt.Opened(A, "t", DUE_S)) == [bt.Validate(A)]
    assert desk.status(A) is BatchStatus.VALIDATING
    effects = desk.send(bt.Accepted(A, (TINY,), [0] * 3))
    assert effects[0] == changed(BatchStatus.IN_PROGRESS)
    assert released(effects) == [(A, 0), (A, 1), (A, 2)]
    assert desk.status(A) is BatchStatus.IN_PROGRESS


def test_a_refused_file_ends_the_batch_and_nothing_ran() -> None:
    desk = Desk()
    desk.send(bt.Opened(A, "t", DUE_S))
    assert desk.send(bt.Refused(A)) == [bt.Close(A, BatchStatus.FAILED, 0, 0, Usage())]
    assert desk.book.standing(A) is None
    assert desk.send(bt.Accepted(A, (TINY,), [0])) == []


def test_so_many_lines_wait_for_an_engine_and_taken_ones_make_room() -> None:
    desk = Desk(waiting_lines_max=2)
    assert released(desk.running(A, 5)) == [(A, 0), (A, 1)]
    assert released(desk.send(bt.LineTaken(A, 0))) == [(A, 2)]
    assert desk.send(bt.LineTaken(A, 0)) == []
    # One that ends without ever having been taken makes room as well, one that was taken has done so.
    assert released(desk.send(bt.LineEnded(A, 1, failed=True))) == [(A, 3)]
    assert released(desk.send(bt.LineEnded(A, 0, failed=False))) == []
    assert desk.book.waiting(A) == (bt.Waiting(TINY, 1, 4),)


def test_a_batch_is_completed_when_every_line_has_its_record_and_the_files_are_written() -> None:
    desk = Desk()
    desk.running(A, 3)
    used = Usage(input_tokens=5, cached_tokens=1, output_tokens=7, reasoning_tokens=2)
    assert desk.send(bt.LineEnded(A, 2, failed=False, usage=used)) == []
    assert desk.send(bt.LineEnded(A, 0, failed=True)) == []
    effects = desk.send(bt.LineEnded(A, 1, failed=False, usage=used))
    assert effects == [changed(BatchStatus.FINALIZING), bt.Write(A, None)]
    assert desk.status(A) is BatchStatus.FINALIZING
    assert desk.send(bt.Written(A)) == [
        bt.Close(A, BatchStatus.COMPLETED, 2, 1, used + used),
    ]
    assert (used + used).total_tokens == 24
    assert len(desk.book) == 0


def test_a_record_that_comes_twice_counts_once() -> None:
    desk = Desk()
    desk.running(A, 2)
    desk.send(bt.LineEnded(A, 0, failed=False))
    assert desk.send(bt.LineEnded(A, 0, failed=True)) == []
    standing = desk.book.standing(A)
    assert standing is not None
    assert (standing.completed, standing.failed, standing.open) == (1, 0, 1)


def test_tenants_share_the_room_and_each_goes_by_due_time() -> None:
    desk = Desk(waiting_lines_max=4)
    assert released(desk.running(A, 9, tenant="x", due_s=90.0)) == [(A, n) for n in range(4)]
    assert released(desk.running(B, 9, tenant="x", due_s=50.0)) == []
    assert released(desk.running(C, 9, tenant="y", due_s=99.0)) == []
    # The other tenant has none yet, so it goes first until both have the same.
    assert released(desk.send(bt.LineTaken(A, 0))) == [(C, 0)]
    assert released(desk.send(bt.LineTaken(A, 1))) == [(C, 1)]
    # Then it is the turn of x again, whose batch b is due before its batch a.
    assert released(desk.send(bt.LineTaken(A, 2))) == [(B, 0)]
    assert released(desk.send(bt.LineTaken(C, 0))) == [(C, 2)]


def test_models_do_not_wait_for_each_other() -> None:
    desk = Desk(waiting_lines_max=2)
    effects = desk.running(A, 6, models=(TINY, OTHER), model_of=[0, 0, 0, 1, 1, 1])
    assert released(effects) == [(A, 0), (A, 1), (A, 3), (A, 4)]
    assert released(desk.send(bt.LineTaken(A, 3))) == [(A, 5)]
    assert desk.book.waiting(A) == (bt.Waiting(TINY, 1, 2), bt.Waiting(OTHER, 0, 3))


def test_a_line_that_comes_back_is_released_again_after_a_rest_and_so_are_the_others() -> None:
    desk = Desk(waiting_lines_max=1)
    desk.running(A, 2, tenant="x")
    assert released(desk.running(B, 1, tenant="y")) == []
    # What keeps one line from running keeps those behind it too, but not those of another batch.
    assert released(desk.send(bt.LineReturned(A, 0, rest_s=5.0))) == [(B, 0)]
    assert desk.book.wakeup_s == 5.0
    assert desk.send(bt.LineTaken(B, 0)) == []
    desk.now_s = 4.0
    assert desk.send(bt.Woken()) == []
    assert desk.book.waiting(A) == (bt.Waiting(TINY, 2, 1),)
    desk.now_s = 5.0
    assert released(desk.send(bt.Woken())) == [(A, 0)]
    assert desk.book.wakeup_s == DUE_S
    assert released(desk.send(bt.LineEnded(A, 0, failed=False))) == [(A, 1)]
    assert bt.Write(A, None) in desk.send(bt.LineEnded(A, 1, failed=False))


def test_when_the_window_is_over_what_is_out_is_dropped_and_the_rest_never_run() -> None:
    desk = Desk(waiting_lines_max=2)
    desk.running(A, 5)
    desk.send(bt.LineEnded(A, 0, failed=False))
    assert desk.book.wakeup_s == DUE_S
    desk.now_s = DUE_S
    effects = desk.send(bt.Woken())
    assert effects == [
        changed(BatchStatus.FINALIZING, Unrun.EXPIRED),
        bt.Drop(A, 1),
        bt.Drop(A, 2),
    ]
    assert desk.status(A) is BatchStatus.FINALIZING
    assert desk.book.waiting(A) == (bt.Waiting(TINY, 0, 5),)
    # One of them ended all the same, the other has no record.
    assert desk.send(bt.LineEnded(A, 1, failed=False)) == []
    assert desk.send(bt.LineReturned(A, 2)) == [bt.Write(A, Unrun.EXPIRED)]
    assert desk.send(bt.Written(A)) == [bt.Close(A, BatchStatus.EXPIRED, 2, 3, Usage())]


def test_a_batch_whose_window_ends_while_it_is_validated_runs_nothing() -> None:
    desk = Desk()
    desk.send(bt.Opened(A, "t", DUE_S))
    desk.now_s = DUE_S + 1.0
    assert desk.send(bt.Woken()) == []
    effects = desk.send(bt.Accepted(A, (TINY,), [0, 0]))
    assert effects == [
        changed(BatchStatus.IN_PROGRESS),
        changed(BatchStatus.FINALIZING, Unrun.EXPIRED),
        bt.Write(A, Unrun.EXPIRED),
    ]
    assert desk.send(bt.Written(A)) == [bt.Close(A, BatchStatus.EXPIRED, 0, 2, Usage())]


def test_cancel_drops_what_is_out_and_is_over_once_nothing_is() -> None:
    desk = Desk(waiting_lines_max=2)
    desk.running(A, 4)
    desk.send(bt.LineTaken(A, 0))
    effects = desk.send(bt.CancelAsked(A))
    assert effects[0] == changed(BatchStatus.CANCELLING, Unrun.CANCELLED)
    assert dropped(effects[1:]) == [0, 1, 2]
    assert desk.status(A) is BatchStatus.CANCELLING
    assert desk.send(bt.CancelAsked(A)) == []
    desk.now_s = DUE_S
    assert desk.send(bt.Woken()) == []
    assert desk.send(bt.LineReturned(A, 2)) == []
    assert desk.send(bt.LineEnded(A, 1, failed=True)) == []
    assert desk.send(bt.LineEnded(A, 0, failed=False)) == [bt.Write(A, Unrun.CANCELLED)]
    assert desk.send(bt.Written(A)) == [bt.Close(A, BatchStatus.CANCELLED, 1, 3, Usage())]


def test_cancel_while_it_is_validated_ends_it_at_once() -> None:
    desk = Desk()
    desk.send(bt.Opened(A, "t", DUE_S))
    assert desk.send(bt.CancelAsked(A)) == [
        changed(BatchStatus.CANCELLING),
        bt.StopValidating(A),
        bt.Close(A, BatchStatus.CANCELLED, 0, 0, Usage()),
    ]
    assert desk.send(bt.Accepted(A, (TINY,), [0])) == []


def test_cancel_while_files_are_written_writes_them_once() -> None:
    desk = Desk()
    desk.running(A, 1)
    assert bt.Write(A, None) in desk.send(bt.LineEnded(A, 0, failed=False))
    assert desk.send(bt.CancelAsked(A)) == [changed(BatchStatus.CANCELLING)]
    assert desk.send(bt.Written(A)) == [bt.Close(A, BatchStatus.CANCELLED, 1, 0, Usage())]


def test_a_cancelled_batch_leaves_its_room_to_others() -> None:
    desk = Desk(waiting_lines_max=2)
    desk.running(A, 9, due_s=10.0)
    desk.running(B, 9, due_s=20.0)
    desk.send(bt.CancelAsked(A))
    assert released(desk.send(bt.LineReturned(A, 0))) == [(B, 0)]
    assert released(desk.send(bt.LineEnded(A, 1, failed=True))) == [(B, 1)]


def restored(**said: object) -> bt.RestoredBatch:
    values = {"batch": A, "tenant": "t", "due_s": DUE_S} | said
    return bt.RestoredBatch(**values)  # type: ignore[arg-type]


def test_a_restart_goes_on_with_what_may_have_been_out_and_then_with_the_rest() -> None:
    desk = Desk(waiting_lines_max=2)
    effects = desk.send(
        bt.Restored(
            (
                restored(
                    status=BatchStatus.IN_PROGRESS,
                    models=(TINY,),
                    model_of=[0] * 8,
                    ended=[(1, False), (2, True)],
                    usage=Usage(input_tokens=3),
                    released=(4,),
                ),
            )
        )
    )
    assert effects == [bt.Release(A, 0, restored=True), bt.Release(A, 3, restored=True)]
    assert released(desk.send(bt.LineEnded(A, 0, failed=False))) == [(A, 4)]
    standing = desk.book.standing(A)
    assert standing is not None
    assert (standing.total, standing.completed, standing.failed) == (8, 2, 1)
    assert standing.usage.input_tokens == 3


def test_a_restart_knows_by_the_last_record_what_was_released_since_it_was_noted() -> None:
    desk = Desk(waiting_lines_max=9)
    effects = desk.send(
        bt.Restored(
            (
                restored(
                    status=BatchStatus.IN_PROGRESS,
                    models=(TINY,),
                    model_of=[0] * 6,
                    ended=[(3, False)],
                    released=(1,),
                ),
            )
        )
    )
    assert [(one.line, one.restored) for one in effects if isinstance(one, bt.Release)] == [
        (0, True),
        (1, True),
        (2, True),
        (4, False),
        (5, False),
    ]


def test_a_restart_begins_again_with_validating_and_with_writing() -> None:
    desk = Desk()
    effects = desk.send(
        bt.Restored(
            (
                restored(status=BatchStatus.VALIDATING),
                restored(
                    batch=B,
                    status=BatchStatus.FINALIZING,
                    models=(TINY,),
                    model_of=[0] * 3,
                    ended=[(0, False)],
                    unrun=Unrun.EXPIRED,
                ),
                restored(batch=C, status=BatchStatus.CANCELLING),
            )
        )
    )
    assert effects == [
        bt.Validate(A),
        bt.Write(B, Unrun.EXPIRED),
        bt.Close(C, BatchStatus.CANCELLED, 0, 0, Usage()),
    ]
    assert desk.send(bt.Written(B)) == [bt.Close(B, BatchStatus.EXPIRED, 1, 2, Usage())]


def test_a_restart_after_the_last_record_writes_the_files() -> None:
    desk = Desk()
    ended = [(0, False), (1, True)]
    effects = desk.send(
        bt.Restored(
            (
                restored(
                    status=BatchStatus.IN_PROGRESS,
                    models=(TINY,),
                    model_of=[0, 0],
                    ended=ended,
                    released=(2,),
                ),
            )
        )
    )
    assert effects == [changed(BatchStatus.FINALIZING), bt.Write(A, None)]
