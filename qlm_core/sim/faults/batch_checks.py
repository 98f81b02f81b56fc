"""What must hold of batches, checked from outside: by what their clients were told, and by what lies in the store at the end."""

from __future__ import annotations

from qlm_core.batches import BatchStatus
from qlm_core.model import BatchId
from qlm_core.sim.faults.checkers import Checkers, Violation
from qlm_core.sim.faults.store import Store, StoredBatch, StoredFiles

ONCE = "each line is in one file, once"
_NO_FILES = StoredFiles(batch=BatchId(""), output=(), errors=())
_WITH_CANCEL = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


class BatchChecks:
    """What clients of batches were told in one run."""

    def __init__(self, checkers: Checkers):
        self._checkers = checkers
        self._acknowledged: dict[BatchId, None] = {}
        self._cancelled: dict[BatchId, None] = {}
        self._over: dict[BatchId, BatchStatus] = {}

    def acknowledged(self, id: BatchId) -> None:
        """A client has the id of a batch."""
        self._acknowledged[id] = None

    def not_found(self, id: BatchId) -> None:
        """A client is told that there is no such batch."""
        raise Violation("nothing acknowledged is lost", f"{id} was acknowledged and is not found")

    def seen(self, id: BatchId, status: BatchStatus) -> None:
        """A client is told where a batch stands."""
        if id in self._cancelled and status not in _WITH_CANCEL:
            raise Violation("a cancel stays one", f"{id} was cancelled and is {status.value}")
        if id in self._over and status is not self._over[id]:
            words = f"{id} was {self._over[id].value} and is {status.value}"
            raise Violation("a batch ends once", words)
        if status.terminal:
            self._over[id] = status

    def cancelled(self, id: BatchId, status: BatchStatus) -> None:
        """A cancel of a batch was answered."""
        if status in _WITH_CANCEL:
            self._cancelled[id] = None
        self.seen(id, status)

    def at_the_end(self, gateway: str, store: Store) -> None:
        """Check what lies in the store of a gateway once everything has ended. Raises Violation."""
        for id in self._acknowledged:
            if id.startswith(f"{gateway}/") and id not in store.batches:
                raise Violation("nothing acknowledged is lost", f"{id} is not in the store")
        for batch in store.batches.values():
            if not batch.status.terminal:
                raise Violation("nobody waits for ever", f"{batch.id} is {batch.status.value}")
            self.seen(batch.id, batch.status)
            self._check_files(store, batch)

    def _check_files(self, store: Store, batch: StoredBatch) -> None:
        files = store.files.get(batch.id, _NO_FILES)
        names = sorted((*files.output, *files.errors))
        # One that was cancelled before its lines were known has none.
        expected = list(range(batch.ask.lines)) if batch.accepted else []
        if names != expected:
            words = f"{batch.id} has {len(expected)} lines, and in its files {names}"
            raise Violation(ONCE, words)
        if (batch.completed, batch.failed) != (len(files.output), len(files.errors)):
            counted = f"counts {batch.completed} and {batch.failed}"
            there = f"{len(files.output)} and {len(files.errors)}"
            raise Violation(ONCE, f"{batch.id} {counted}, in its files are {there}")
        if batch.status is BatchStatus.COMPLETED and batch.unrun is not None:
            raise Violation(ONCE, f"{batch.id} is completed, though {batch.unrun.value}")
        for line in files.output:
            self._check_answer(store, batch, line)

    def _check_answer(self, store: Store, batch: StoredBatch, line: int) -> None:
        result = store.lines[batch.id][line]
        answer = result.answer
        if answer is None:
            raise Violation(ONCE, f"line {line} of {batch.id} failed and is in its output")
        if answer.flaw:
            words = f"line {line} of {batch.id}: {answer.flaw}"
            raise Violation("each token once and in order", words)
        whole = min(batch.ask.output_tokens, batch.ask.max_output_tokens)
        if answer.tokens != whole and not self._checkers.of(result.request).lied:
            words = f"line {line} of {batch.id} has {answer.tokens} tokens of {whole}"
            raise Violation("answers are whole", words)
