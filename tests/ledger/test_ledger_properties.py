"""Whatever agents, clients and the solver do, in any order: nothing is lost and nothing ends twice."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlm_core import ledger as lg
from qlm_core.messages import (
    Attempt,
    AttemptEnded,
    AttemptReturned,
    Chunk,
    Ended,
    ReturnReason,
    TokenIds,
)
from qlm_core.model import AgentId, GatewayId, ModelName, Phase, RequestId, RequestMeta, Slo
from qlm_core.outcome import ShedReason
from qlm_core.resume import Resume

AGENTS = [AgentId(name) for name in "abc"]
GRACE_S = 2.0
# One rule for all of these: Hypothesis leaves whole rules out of a run, and a ledger without pulls or
# output shows little. The repetitions set how often each is taken.
ACTIONS = ["pull", "pull", "chunk", "chunk", "chunk", "return", "stop", "error"]


class LedgerMachine(RuleBasedStateMachine):
    """A ledger between adversarial peers, with an outside account of what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = lg.Ledger(agent_grace_s=GRACE_S, attempts_max=3, first_attempt=5)
        self.now_s = 0.0
        self.submitted: dict[RequestId, None] = {}
        self.ended: dict[RequestId, lg.EndRecord] = {}
        self.told_ended: dict[RequestId, None] = {}
        # What each agent runs: (id, attempt) -> chunks that arrived.
        self.running: dict[AgentId, dict[tuple[RequestId, int], int]] = {a: {} for a in AGENTS}
        self.connected: dict[AgentId, bool] = dict.fromkeys(AGENTS, True)
        self.attempts: dict[RequestId, int] = {}
        self.going_on: tuple[Attempt, ...] = ()
        self.delivered: dict[RequestId, int] = {}

    def send(self, event: lg.Event) -> list[lg.Effect]:
        effects = self.ledger.handle(event, now_s=self.now_s)
        for effect in effects:
            match effect:
                case lg.Grant(agent, id, attempt, produced):
                    assert attempt > self.attempts.get(id, 0), "attempt numbers only go up"
                    assert produced == self.delivered.get(id, 0), "resume exactly where it stopped"
                    self.attempts[id] = attempt
                    if self.connected[agent]:
                        self.running[agent][id, attempt] = 0
                case lg.Welcome(_, going_on):
                    self.going_on = going_on
                case lg.Revoke(agent, id, attempt):
                    self.running[agent].pop((id, attempt), None)
                case lg.Deliver(chunk):
                    assert chunk.attempt == self.attempts[chunk.id]
                    self.delivered[chunk.id] = self.delivered.get(chunk.id, 0) + chunk.tokens
                case lg.DropOutput(id):
                    self.delivered[id] = 0
                case lg.EndRequest(id, record, _):
                    assert id not in self.ended, "one terminal record"
                    self.ended[id] = record
                case lg.Tell(Ended(id)):
                    assert id not in self.told_ended
                    self.told_ended[id] = None
        return effects

    def pick(self, data: st.DataObject) -> RequestId:
        """A request, more often than not one that is open."""
        open_ids = [row.meta.id for row in self.ledger.newest()]
        if open_ids and data.draw(st.integers(0, 4)):
            return data.draw(st.sampled_from(open_ids))
        return data.draw(st.sampled_from(list(self.submitted)))

    def pick_attempt(self, data: st.DataObject) -> tuple[AgentId, RequestId, int]:
        """An attempt that a connected agent runs; now and then one that it makes up."""
        real = [
            (agent, id, attempt) for agent in self.present() for id, attempt in self.running[agent]
        ]
        if real and data.draw(st.integers(0, 9)):
            return data.draw(st.sampled_from(real))
        agent = data.draw(st.sampled_from(self.present()))
        return agent, self.pick(data), data.draw(st.integers(0, 9))

    def present(self) -> list[AgentId]:
        return [agent for agent in AGENTS if self.connected[agent]]

    @initialize()
    def begin(self) -> None:
        for resume, watched in [
            (Resume.FROM_TEXT, True),
            (Resume.FROM_IDS, True),
            (Resume.NEVER, False),
            (Resume.NEVER, True),
        ]:
            self.submit_one(resume, watched, 40)

    @rule(resume=st.sampled_from(Resume), watched=st.booleans(), limit=st.integers(1, 30))
    def submit(self, resume: Resume, watched: bool, limit: int) -> None:
        self.submit_one(resume, watched, limit)

    def submit_one(self, resume: Resume, watched: bool, limit: int) -> None:
        id = RequestId(f"r{len(self.submitted)}")
        meta = RequestMeta(
            id=id,
            gateway=GatewayId("g"),
            model=ModelName("m"),
            slo_class="c",
            slo=Slo(ttft_s=1.0),
            prompt_tokens=1,
            max_output_tokens=limit,
            arrival_s=self.now_s,
        )
        self.submitted[id] = None
        expires_s = self.now_s + 50.0
        self.send(lg.Submitted(request=meta, resume=resume, watched=watched, expires_s=expires_s))

    @precondition(lambda self: self.present())
    @rule(data=st.data(), action=st.sampled_from(ACTIONS))
    def agent_acts(self, data: st.DataObject, action: str) -> None:
        if action == "pull":
            agent = data.draw(st.sampled_from(self.present()))
            self.send(lg.PullAsked(agent, (self.pick(data), self.pick(data))))
            return
        agent, id, attempt = self.pick_attempt(data)
        known = (id, attempt) in self.running[agent]
        if action == "chunk":
            if known:
                self.running[agent][id, attempt] += 1
            tokens = data.draw(st.integers(0, 3))
            plain = data.draw(st.integers(0, 9)) > 0
            ids = TokenIds(0, (1,)) if data.draw(st.booleans()) else None
            self.send(lg.ChunkCame(agent, Chunk(id, attempt, b"{}", tokens, plain, ids)))
            return
        self.running[agent].pop((id, attempt), None)
        if action == "return":
            reason = data.draw(st.sampled_from(list(ReturnReason)))
            rest_s = data.draw(st.sampled_from([0.0, 0.0, 2.0, 60.0]))
            back = AttemptReturned(id, attempt, reason, "words", rest_s)
            self.send(lg.AttemptCameBack(agent, back))
        else:
            self.send(lg.AttemptFinished(agent, AttemptEnded(id, attempt, action)))

    @rule(
        agent=st.sampled_from(AGENTS),
        crashed=st.booleans(),
        lost_chunks=st.integers(0, 2),
        forgotten=st.integers(0, 2),
    )
    def connection_changes(
        self, agent: AgentId, crashed: bool, lost_chunks: int, forgotten: int
    ) -> None:
        """Go away; or come back after a crash (nothing runs), or with chunks lost on the way, or no longer there to send."""
        self.connected[agent] = not self.connected[agent]
        if not self.connected[agent]:
            self.send(lg.AgentDisconnected(agent))
            return
        if crashed:
            self.running[agent] = {}
        running = tuple(
            Attempt(id, attempt, chunks + lost_chunks, max(0, chunks + forgotten - 1))
            for (id, attempt), chunks in self.running[agent].items()
        )
        self.send(lg.AgentConnected(agent, running))
        arrived = [Attempt(*key, chunks) for key, chunks in self.running[agent].items()]
        assert list(self.going_on) == arrived, "each goes on where it stands"
        assert forgotten < 2 or not any(chunks for chunks in self.running[agent].values()), (
            "a gap in the output is never accepted"
        )
        for id, attempt in self.running[agent]:
            row = self.ledger.row(id)
            assert row is not None
            assert (row.attempt, row.agent) == (attempt, agent)

    @rule(data=st.data(), step=st.sampled_from(["cancel", "shed", "watch"]))
    def interfere(self, data: st.DataObject, step: str) -> None:
        id = self.pick(data)
        match step:
            case "cancel":
                self.send(lg.CancelAsked(id))
                assert id in self.ended, "cancel works in every phase"
            case "shed":
                self.send(lg.ShedOrdered(id, ShedReason.SATURATED))
            case "watch":
                self.send(lg.OutputWatched(id))

    @rule(passed_s=st.sampled_from([0.1, 1.0, GRACE_S, 9.0]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s
        self.send(lg.Woken())

    @rule()
    def announce(self) -> None:
        told = self.send(lg.SolverConnected())
        assert len(told) >= len(self.ledger) + 1

    @invariant()
    def nothing_is_lost(self) -> None:
        for id in self.submitted:
            assert (self.ledger.row(id) is None) == (id in self.ended)
        assert len(self.ledger) + len(self.ended) == len(self.submitted)

    @invariant()
    def what_the_solver_heard_agrees(self) -> None:
        assert list(self.told_ended) == list(self.ended)

    @invariant()
    def one_live_attempt_at_most(self) -> None:
        for id in self.submitted:
            row = self.ledger.row(id)
            current = (id, row.attempt) if row is not None and row.agent else None
            holders = [
                agent
                for agent in AGENTS
                if self.connected[agent] and current in self.running[agent]
            ]
            assert len(holders) <= 1
            if row is not None:
                assert (row.agent is not None) == (row.phase in (Phase.PULLED, Phase.RUNNING))

    @invariant()
    def who_rests_waits_and_is_woken_in_time(self) -> None:
        for row in self.ledger.newest():
            if row.rest_until_s is not None:
                assert row.phase is Phase.WAITING
                assert self.ledger.wakeup_s is not None
                assert self.ledger.wakeup_s <= row.rest_until_s

    @invariant()
    def counts_agree(self) -> None:
        counted = sum(self.ledger.count(phase) for phase in Phase)
        assert counted == len(self.ledger)
        assert min(self.ledger.count(phase) for phase in Phase) >= 0

    @invariant()
    def a_missing_agent_is_waited_for_no_longer_than_the_grace(self) -> None:
        holding = [
            row.agent
            for row in self.ledger.newest()
            if row.agent is not None and not self.connected[row.agent]
        ]
        if holding:
            wakeup_s = self.ledger.wakeup_s
            assert wakeup_s is not None
            assert wakeup_s <= self.now_s + GRACE_S


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_every_terminal_phase_is_reached_only_from_open_phases() -> None:
    for (phase, _), target in lg.TRANSITIONS.items():
        assert not phase.terminal
        assert target is not Phase.WAITING or phase in (Phase.PULLED, Phase.RUNNING)
    for step in (lg.Step.CANCEL, lg.Step.FAIL, lg.Step.EXPIRE):
        for phase in Phase:
            assert ((phase, step) in lg.TRANSITIONS) is not phase.terminal
