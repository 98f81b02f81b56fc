"""The executor against an adversary: whatever order facts come in, its promises hold.

The adversary plays solver, gateway, engine and clock at once. After every step: never more on the engine than slots,
never a job of a base that is not awake or of more adapters than there are places, every granted attempt ends, returns or
is dropped exactly once, and the sums agree with the requests. At the end, once faults stop, everything that waits gets
done.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlm_core.config import ExecutorConfig
from qlm_core.endpoint import Endpoint
from qlm_core.executor import (
    Abort,
    Drain,
    Drained,
    EngineDown,
    EngineReady,
    Executor,
    ExecutorState,
    GatewayLost,
    GatewayUp,
    Granted,
    JobDone,
    JobOutput,
    Send,
    Submit,
    SwapFailed,
    SwapModel,
    Wakeup,
)
from qlm_core.messages import (
    AttemptEnded,
    AttemptReturned,
    Payload,
    Pull,
    QueueUpdate,
    Refused,
    Revoked,
)
from qlm_core.model import ModelName, ModelTier, QueuedGroup, RequestId, RequestRef
from qlm_core.outcome import PullRefusal
from qlm_core.profile import EngineProfile
from tests.executor.world import CLASSES, GATEWAY, group, profile, ref

MODELS = ("m1", "a1", "a2", "m1", "m2", "m2", "m2", "m2")
BASES = {"m1": "m1", "a1": "m1", "a2": "m1", "m2": "m2"}
SLOTS = {"m1": 3, "m2": 2}


def profiles() -> list[EngineProfile]:
    """Two models, one with two adapters, of which one may run at a time."""
    first = replace(profile("m1", slots=SLOTS["m1"], kv_tokens=2000), adapters_max=1)
    adapters = [first.adapter(name, load_s=0.1) for name in ("a1", "a2")]
    return [first, *adapters, profile("m2", slots=SLOTS["m2"], kv_tokens=2000)]


class Adversary(RuleBasedStateMachine):
    @initialize(ahead=st.integers(0, 2), eviction=st.booleans())
    def begin(self, ahead: int, eviction: bool) -> None:
        self.executor = Executor(
            profiles(),
            ExecutorConfig(pull_ahead=ahead, eviction=eviction, swap_retry_s=2.0),
            classes=CLASSES,
            report_interval_s=5.0,
        )
        self.now_s = 0.0
        self.epoch = 1
        self.refs: dict[str, RequestRef] = {}
        self.groups: dict[int, QueuedGroup] = {}
        self.attempts: dict[str, int] = {}
        self.asked: dict[str, None] = {}
        self.granted: dict[tuple[str, int], str] = {}
        self.engine: dict[tuple[str, int], str] = {}
        self.awake: str | None = None
        self.last = "m1"
        self.swapping: str | None = None
        self.gone: dict[str, None] = {}
        self.left = False
        self.tell(GatewayUp(GATEWAY))

    # ------------------------------------------------------------------ effects and the ledger

    def tell(self, event: object) -> None:
        for effect in self.executor.handle(event, now_s=self.now_s):  # type: ignore[arg-type]
            match effect:
                case Send(_, Pull(ids)):
                    assert self.awake is not None
                    for id in ids:
                        assert BASES[self.groups[self.refs[id].group].model] == self.awake
                        self.asked[id] = None
                case Submit(_, job):
                    assert BASES[job.model] == self.awake
                    assert not self.left
                    assert self.granted[job.id, job.attempt] == "open"
                    self.engine[job.id, job.attempt] = job.model
                    assert len(self.engine) <= SLOTS[BASES[job.model]]
                    on = [model for model in ("a1", "a2") if model in self.engine.values()]
                    assert len(on) <= 1
                case Abort(id, attempt):
                    del self.engine[id, attempt]
                case Send(_, AttemptEnded() | AttemptReturned() as end):
                    before = self.granted[end.id, end.attempt]
                    assert before in ("open", "void")
                    self.granted[end.id, end.attempt] = "closed"
                    if isinstance(end, AttemptReturned):
                        assert (end.id, end.attempt) not in self.engine
                        if before == "open" and not self.left:
                            self.announce(end.id)
                case SwapModel(model):
                    assert not self.engine
                    self.awake, self.swapping = None, model
                case Drained():
                    assert not self.engine
        self.executor.batch.check()
        assert self.executor.wakeup_s > self.now_s

    def announce(self, id: str) -> None:
        """What came back to the gateway waits again: the solver sends it anew."""
        self.pending = [*getattr(self, "pending", []), id]

    def flush(self) -> None:
        pending, self.pending = getattr(self, "pending", []), []
        add = tuple(self.refs[id] for id in pending if id not in self.gone)
        if add:
            self.tell(QueueUpdate(epoch=self.epoch, add=add))

    # ------------------------------------------------------------------ the solver

    @rule(
        ids=st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True),
        count=st.integers(0, 5),
        due_in_s=st.floats(-5, 60),
        expected=st.integers(1, 900),
        snapshot=st.booleans(),
    )
    def replan(
        self, ids: list[int], count: int, due_in_s: float, expected: int, snapshot: bool
    ) -> None:
        self.epoch += 1
        for id in ids:
            slo_class = ("interactive", "batch-1", "batch-2", "custom")[id % 4]
            self.groups[id] = group(id, MODELS[id], slo_class)
        add = []
        for _ in range(count):
            name = f"r{len(self.refs)}"
            added = ref(name, ids[0], due_s=self.now_s + due_in_s, expected=expected)
            self.refs[name] = added
            add.append(added)
        if snapshot:
            waiting = [
                one for id, one in self.refs.items()
                if id not in self.gone and not self.is_open(id) and one not in add
            ]  # fmt: skip
            add = waiting + add
            ids = ids + [id for id in self.groups if id not in ids]
        order = tuple(self.groups[id] for id in ids)
        self.tell(QueueUpdate(epoch=self.epoch, snapshot=snapshot, order=order, add=tuple(add)))

    @rule()
    def stale_update(self) -> None:
        before = self.executor.window.order
        self.tell(QueueUpdate(epoch=self.epoch - 1, order=()))
        assert self.executor.window.order == before

    def is_open(self, id: str) -> bool:
        return self.granted.get((id, self.attempts.get(id, 0))) == "open"

    # ------------------------------------------------------------------ the gateway

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        id = data.draw(st.sampled_from(list(self.asked)))
        del self.asked[id]
        if refuse or id in self.gone or self.is_open(id):
            if not self.is_open(id):
                self.gone[id] = None
            self.tell(Refused(RequestId(id), PullRefusal.DONE))
            return
        self.grant(id)

    def grant(self, id: str) -> None:
        self.attempts[id] = attempt = self.attempts.get(id, 0) + 1
        self.granted[id, attempt] = "open"
        model = ModelName(self.groups[self.refs[id].group].model)
        self.tell(
            Granted(GATEWAY, Payload(RequestId(id), attempt, model, Endpoint.COMPLETIONS, b"{}"))
        )

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        running = [key for key, state in self.granted.items() if state == "open"]
        if running:
            id, attempt = data.draw(st.sampled_from(running))
            self.granted[id, attempt] = "closed"
            self.gone[id] = None
            self.tell(Revoked(RequestId(id), attempt))
            assert (id, attempt) not in self.engine

    @rule()
    def restart_gateway(self) -> None:
        """Its attempts are void: the solver sends the requests anew before the agent hears of it."""
        void = [key for key, state in self.granted.items() if state == "open"]
        self.granted.update(dict.fromkeys(void, "void"))
        again = tuple(self.refs[id] for id, _ in void)
        self.tell(QueueUpdate(epoch=self.epoch, add=again))
        for id, attempt in void:
            self.tell(Revoked(RequestId(id), attempt))
            self.granted[id, attempt] = "closed"
            assert (id, attempt) not in self.engine

    @rule()
    def blink(self) -> None:
        self.tell(GatewayLost(GATEWAY))
        self.asked.clear()
        self.tell(GatewayUp(GATEWAY))

    # ------------------------------------------------------------------ the engine

    @precondition(lambda self: self.engine)
    @rule(data=st.data(), tokens=st.integers(1, 400), end=st.booleans())
    def work(self, data: st.DataObject, tokens: int, end: bool) -> None:
        id, attempt = data.draw(st.sampled_from(list(self.engine)))
        self.tell(JobOutput(RequestId(id), attempt, b"", tokens))
        if end:
            self.finish(id, attempt)

    def finish(self, id: str, attempt: int) -> None:
        del self.engine[id, attempt]
        self.gone[id] = None
        self.tell(JobDone(RequestId(id), attempt, "stop", 1, 1))
        assert self.granted[id, attempt] == "closed"

    @precondition(lambda self: self.awake is None)
    @rule(fails=st.booleans())
    def settle(self, fails: bool) -> None:
        """A start or a swap comes to its end."""
        if self.swapping is not None and fails:
            failed, self.swapping, self.awake = self.swapping, None, self.last
            self.tell(SwapFailed(ModelName(failed), "failed"))
            return
        self.awake = self.last = self.swapping or self.last
        self.swapping = None
        self.tell(EngineReady(ModelName(self.awake), ((ModelName(self.awake), ModelTier.AWAKE),)))

    @precondition(lambda self: self.awake == "m1")
    @rule(model=st.sampled_from(["a1", "a2"]))
    def lack_adapter(self, model: str) -> None:
        """An adapter does not load: whatever was to run on it comes back."""
        self.tell(SwapFailed(ModelName(model), "failed"))
        assert model not in self.engine.values()

    @rule()
    def crash(self) -> None:
        self.engine.clear()
        self.awake = self.swapping = None
        self.tell(EngineDown("crash"))
        assert all(state == "closed" for state in self.granted.values())

    # ------------------------------------------------------------------ time

    @rule(seconds=st.floats(0.01, 30))
    def wait(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        for _ in range(10_000):
            if self.executor.wakeup_s > end_s:
                break
            self.now_s = self.executor.wakeup_s
            self.tell(Wakeup())
        else:
            raise AssertionError("the executor wakes without end")
        self.now_s = end_s

    @invariant()
    def never_more_on_the_engine_than_slots(self) -> None:
        if hasattr(self, "executor"):
            assert list(self.executor.batch.running) == [id for id, _ in self.engine]
            self.flush()

    def teardown(self) -> None:
        """Faults stop: everything in the queue gets done, in bounded steps; then a drain completes."""
        if not hasattr(self, "executor"):
            return
        self.replan([0, 4], 2, 10.0, 50, True)
        for _ in range(4 * len(self.refs) + 40):
            self.flush()
            if self.awake is None:
                self.settle(False)
            for id in list(self.asked):
                del self.asked[id]
                if id not in self.gone and not self.is_open(id):
                    self.grant(id)
                else:
                    self.tell(Refused(RequestId(id), PullRefusal.DONE))
            for id, attempt in list(self.engine):
                if (id, attempt) in self.engine:
                    self.finish(id, attempt)
            self.wait(3.0)
        waiting = [id for id in self.refs if id not in self.gone]
        assert not waiting, f"never done: {waiting}"
        self.left = True
        self.tell(Drain(self.now_s + 1.0))
        self.wait(1.5)
        assert self.executor.state is ExecutorState.GONE


TestAdversary = Adversary.TestCase
TestAdversary.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
