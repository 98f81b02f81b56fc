"""The agent daemon: one engine, one executor, a link to the solver and one to each gateway.

Cancelling `serve` drains: nothing new is pulled, what runs may finish for `drain_s`, the rest goes back to its
gateways. Cancelling it again ends the drain at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

import failpoints
from agents.driver import Driver
from agents.engines import make_engine
from agents.gateway_link import GatewayLink
from agents.metrics import AgentCollector
from agents.solver_link import SolverLink
from protos.doors import Doors, Rejections, warn_of_open_doors
from protos.identity import Part, Role
from protos.metrics_door import serve_metrics
from qlm_core.config import AgentConfig, Config
from qlm_core.executor import Drain, Executor
from qlm_core.messages import Gateways
from qlm_core.model import GatewayId

log = logging.getLogger("qlm.agent")

_DRAIN_CHECK_S = 0.2
_JOIN_CHECK_S = 0.1


async def serve(
    config: Config,
    agent: AgentConfig,
    *,
    ready: Callable[[], None] | None = None,
    joined: Callable[[], None] | None = None,
) -> None:
    """Run an agent until cancelled.

    Args:
        ready: called once the engine serves its first model, or waits for a server that somebody else starts.
        joined: called once the agent can be given requests: solver and a gateway know it, and its engine is up.

    Raises:
        QlmError: the engine cannot be started or is misconfigured, or an address cannot be listened on.
    """
    daemon = Daemon(config, agent)
    try:
        await daemon.start()
        log.info("agent started", extra={"agent": agent.name, "engine": agent.engine.kind})
        if ready is not None:
            ready()
        if joined is not None:
            await daemon.until_joined()
            joined()
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        log.info("agent drains", extra={"agent": agent.name, "longest_s": agent.drain_s})
        await daemon.drain()
    finally:
        await daemon.close()
        log.info("agent stopped", extra={"agent": agent.name})


class Daemon:
    """The parts of one agent, and their order of coming and going."""

    def __init__(self, config: Config, agent: AgentConfig) -> None:
        self._config = config
        self._agent = agent
        self.engine = make_engine(config, agent)
        self._doors = Doors(config, Part(Role.AGENT, agent.name))
        self.solver = SolverLink(agent, self._doors, self._set_gateways)
        self.gateways: dict[GatewayId, GatewayLink] = {}
        self.driver: Driver | None = None
        # Where the solver says that gateways are; the latest to have come to an address is the last.
        self._named: dict[GatewayId, str] = {}
        self._ending: dict[asyncio.Task[None], None] = {}
        self._metrics: web.AppRunner | None = None

    async def start(self) -> None:
        """Start the engine, then dial. Raises QlmError."""
        pending: list[object] = []
        driver: Driver | None = None

        def listen(event: object) -> None:
            if driver is None:
                pending.append(event)
            else:
                driver.post(event)  # type: ignore[arg-type]

        await self.engine.start(listen)
        agent = self._agent
        executor = Executor(
            self.engine.profiles,
            agent.executor,
            classes=[self._config.slo_class(name) for name in self._config.slo_classes],
            report_interval_s=agent.report_interval_s,
        )
        self.driver = driver = Driver(
            executor, self.engine, clock=time.monotonic, report=self.solver.report
        )
        for event in pending:
            listen(event)
        warn_of_open_doors(self._config, f"agents[{self._config.agents.index(agent)}].")
        if agent.metrics_listen:
            rejections = Rejections()
            self._metrics = await serve_metrics(
                AgentCollector(driver, rejections),
                self._config,
                agent.metrics_listen,
                key=f"agents.{agent.name}.metrics_listen",
                doors=self._doors,
                rejections=rejections,
            )
        self.solver.start(driver)

    async def until_joined(self) -> None:
        """Wait until solver and a gateway know the agent and its engine is up."""
        # None of the three tells when it is there.
        while not self._joined():  # noqa: ASYNC110
            await asyncio.sleep(_JOIN_CHECK_S)

    def _joined(self) -> bool:
        up = self.driver is not None and self.driver.executor.instance_state().ready
        known = self.solver.connected and any(link.connected for link in self.gateways.values())
        return up and known

    async def drain(self) -> None:
        """Let what runs finish, as long as it may and somebody can take its output."""
        driver = self.driver
        if driver is None:
            return
        driver.post(Drain(driver.now_s() + self._agent.drain_s))
        failpoints.at("agents.daemon.draining")
        while not driver.drained.is_set():
            if not any(link.connected for link in self.gateways.values()):
                driver.post(Drain(driver.now_s()))
                return
            try:
                async with asyncio.timeout(_DRAIN_CHECK_S):
                    await driver.drained.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Hand back what is left, hang up and stop the engine."""
        driver = self.driver
        if driver is not None:
            driver.post(Drain(driver.now_s()))
            driver.close()
        for link in list(self.gateways.values()):
            await link.close()
        await self.solver.close()
        if self._ending:
            await asyncio.wait(list(self._ending))
        if self._metrics is not None:
            await self._metrics.cleanup()
        await self.engine.stop()

    def _set_gateways(self, gateways: Gateways) -> None:
        """Take over where the gateways are."""
        named = dict(gateways.addresses)
        known = {
            gateway: address
            for gateway, address in self._named.items()
            if named.get(gateway) == address
        }
        self._named = known | named
        self._arrange()

    def _arrange(self) -> None:
        """Have one link to each gateway that is named, and end those that lead nowhere.

        One that is not named keeps its link while it is connected and for the grace after that: a solver that has just
        started does not know all gateways yet. Its address may be another's by now, then the link ends at once: a
        gateway has one stream of an agent, so two links to it would evict each other for ever.
        """
        holders = {address: gateway for gateway, address in self._named.items()}
        for gateway, link in list(self.gateways.items()):
            address = self._named.get(gateway, link.address)
            holder = holders.get(address)
            if holder is None and link.away:
                self._end(gateway, "the solver no longer names it")
            elif holder is not None and holder != gateway:
                self._end(gateway, f"{holder} has its address")
            elif address != link.address:
                link.move(address)
        driver = self.driver
        assert driver is not None
        for address, gateway in holders.items():
            if gateway not in self.gateways:
                link = GatewayLink(
                    gateway,
                    address,
                    self._agent,
                    driver,
                    doors=self._doors,
                    on_away=self._arrange,
                )
                self.gateways[gateway] = driver.links[gateway] = link

    def _end(self, gateway: GatewayId, reason: str) -> None:
        """Part from a gateway for good."""
        assert self.driver is not None
        task = self.gateways.pop(gateway).abandon(reason)
        del self.driver.links[gateway]
        self._ending[task] = None
        task.add_done_callback(self._ending.pop)
