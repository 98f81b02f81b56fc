"""The link to the solver: a hello, reports up, queue updates and gateway addresses down; dialled again for ever.

Without a solver the agent goes on from its window, so nothing here is waited for. Only the newest report matters;
an older one that could not be sent is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

import failpoints
from agents.driver import Driver
from agents.streams import WRITTEN, Backoff, begin, is_takeover, open_channel, reason_of
from protos import wire
from protos.doors import Doors
from protos.identity import SOLVER
from protos.pulse import Pulse
from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.stopping import being_stopped, end_if_stopped
from qlm_core.config import AgentConfig
from qlm_core.errors import kind_and_place
from qlm_core.messages import AgentHello, Gateways, QueueUpdate
from qlm_core.model import AgentId, InstanceState

log = logging.getLogger("qlm.agent")

_SessionCall = grpc.aio.StreamStreamCall[
    agent_pb.AgentSessionRequest, agent_pb.AgentSessionResponse
]


class SolverLink:
    """Talks to the solver for as long as the agent lives.

    Args:
        gateways: told which gateways there are, on every change.
    """

    def __init__(
        self, agent: AgentConfig, doors: Doors, gateways: Callable[[Gateways], None]
    ) -> None:
        self.connected = False
        self._agent = agent
        self._doors = doors
        self._gateways = gateways
        self._newest: InstanceState | None = None
        self._due = asyncio.Event()
        self._driver: Driver | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, driver: Driver) -> None:
        """Begin to dial."""
        self._driver = driver
        self._task = asyncio.create_task(self._run(driver), name="solver")

    def report(self, state: InstanceState) -> None:
        """Send a report, in place of any older one that still waits."""
        self._newest = state
        self._due.set()

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, driver: Driver) -> None:
        backoff = Backoff(self._agent.reconnect_s_max)
        while True:
            async with open_channel(
                self._agent.solver,
                to=SOLVER,
                doors=self._doors,
                message_bytes_max=self._agent.message_bytes_max,
            ) as channel:
                stub = agent_grpc.AgentSessionServiceStub(channel)
                taken_over = False
                try:
                    await self._session(
                        stub.AgentSession(WRITTEN, metadata=self._doors.metadata), driver
                    )
                except (grpc.aio.AioRpcError, TimeoutError) as error:
                    taken_over = is_takeover(error)
                    reason = reason_of(error)
                    if self.connected:
                        log.warning("solver session broke", extra={"reason": reason})
                    elif backoff.worth_telling():
                        said = {"address": self._agent.solver, "reason": reason}
                        log.warning("cannot join the solver; trying on", extra=said)
                except wire.WireError as error:
                    log.error("solver sent what cannot be read", extra={"reason": str(error)})
                except asyncio.CancelledError:
                    # Only the call was, for silence.
                    if being_stopped():
                        raise
                except Exception as error:  # a link that ends for good makes the agent useless
                    said = {"reason": kind_and_place(error)}
                    log.error("solver link failed; dialling again", extra=said)
                finally:
                    if self.connected and not taken_over:
                        backoff.reset()
                    self.connected = False
            end_if_stopped()
            await asyncio.sleep(backoff.pause_s())

    async def _session(self, call: _SessionCall, driver: Driver) -> None:
        """One session from its hello to its end. Raises when it breaks."""
        # Its reports are the agent's pulse.
        pulse = Pulse(_nothing, on_silence=lambda: self._silence(call))
        pulse.start()
        try:
            await begin(call, wire.agent_message_to_wire(self._hello(driver)))
            failpoints.at("agents.solver_link.joined")
            reporter = asyncio.create_task(self._send_reports(call))
            # An agent that cannot report is taken for gone, and would wonder why.
            reporter.add_done_callback(lambda done: self._reported(done, call))
            try:
                async for message in call:
                    if not self.connected:
                        self.connected = True
                        log.info("solver joined", extra={"address": self._agent.solver})
                    pulse.heard()
                    order = wire.agent_order_from_wire(message, driver.now_s())
                    if isinstance(order, Gateways):
                        self._gateways(order)
                    elif isinstance(order, QueueUpdate):
                        failpoints.at("agents.solver_link.window_came")
                        driver.post(order)
            finally:
                reporter.cancel()
                await asyncio.wait([reporter])
        finally:
            pulse.stop()
            call.cancel()

    def _reported(self, reporter: asyncio.Task[None], call: _SessionCall) -> None:
        """The reporter has ended. A broken stream tells its reader too; of anything else nobody else would know."""
        error = None if reporter.cancelled() else reporter.exception()
        if error is None:
            return
        call.cancel()
        if not isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            log.error("reporter failed", extra={"reason": type(error).__name__})

    def _silence(self, call: _SessionCall) -> None:
        said = {"address": self._agent.solver}
        log.warning("nothing is heard of the solver; dialling again", extra=said)
        call.cancel()

    def _hello(self, driver: Driver) -> AgentHello:
        return AgentHello(
            agent=AgentId(self._agent.name),
            gpu=self._agent.gpu,
            profiles=driver.engine.profiles,
            epoch=driver.executor.window.epoch,
            state=driver.executor.instance_state(),
        )

    async def _send_reports(self, call: _SessionCall) -> None:
        self._newest = None
        while True:
            while self._newest is None:
                self._due.clear()
                await self._due.wait()
            state, self._newest = self._newest, None
            await call.write(wire.agent_message_to_wire(state))


def _nothing() -> None:
    """Send nothing."""
