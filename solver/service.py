"""Puts the solver together: driver, gRPC server, planner processes, metrics endpoint."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

import grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as _METRICS_TYPE
from prometheus_client.registry import CollectorRegistry

from protos.qlm.v1 import agent_session_service_pb2 as agent_pb
from protos.qlm.v1 import agent_session_service_pb2_grpc as agent_grpc
from protos.qlm.v1 import gateway_session_service_pb2 as gateway_pb
from protos.qlm.v1 import gateway_session_service_pb2_grpc as gateway_grpc
from qlm_core.config import Config, SolverConfig
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError
from solver.driver import Driver
from solver.metrics import ManagerCollector
from solver.planning import ConfiguredPlanner
from solver.pool import Pool
from solver.sessions import AgentSessions, GatewaySessions

log = logging.getLogger("qlm.solver")

_SERVICES = (
    gateway_pb.DESCRIPTOR.services_by_name["GatewaySessionService"].full_name,
    agent_pb.DESCRIPTOR.services_by_name["AgentSessionService"].full_name,
)
_STOP_S = 1.0


async def serve(config: Config, *, ready: Callable[[], None] | None = None) -> None:
    """Run the solver until SIGTERM or SIGINT.

    Args:
        ready: called once requests can be served.

    Raises:
        QlmError: an address cannot be listened on.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    section = config.solver
    pool = Pool(section)
    planner = ConfiguredPlanner(section, pool)
    driver = Driver(config, planner, clock=time.monotonic)
    server = await _server(driver, section)
    metrics = await _serve_metrics(ManagerCollector(driver, planner.counts), section)
    await pool.start()
    try:
        await server.start()
        log.info("solver ready", extra={"listen": section.listen, "backend": section.backend})
        if ready is not None:
            ready()
        await stopping.wait()
    finally:
        log.info("solver stops")
        await server.stop(_STOP_S)
        await driver.close()
        await pool.close()
        if metrics is not None:
            await metrics.cleanup()


async def _server(driver: Driver, section: SolverConfig) -> grpc.aio.Server:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", section.limits.message_bytes_max),
            ("grpc.max_send_message_length", section.limits.message_bytes_max),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    gateway_grpc.add_GatewaySessionServiceServicer_to_server(
        GatewaySessions(driver, section.limits), server
    )
    agent_grpc.add_AgentSessionServiceServicer_to_server(
        AgentSessions(driver, section.limits), server
    )
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing from the stubs
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    for service in ("", *_SERVICES):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    try:
        port = server.add_insecure_port(section.listen)
    except RuntimeError as error:
        raise QlmError(_in_use("solver.listen", section.listen)) from error
    if port == 0:
        raise QlmError(_in_use("solver.listen", section.listen))
    return server


async def _serve_metrics(
    collector: ManagerCollector, section: SolverConfig
) -> web.AppRunner | None:
    """Serve /metrics on the event loop, since the Manager's state may be read nowhere else."""
    if not section.metrics_listen:
        return None
    host, port = parse_address(section.metrics_listen, "solver.metrics_listen")
    registry = CollectorRegistry()
    registry.register(collector)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": _METRICS_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise QlmError(_in_use("solver.metrics_listen", section.metrics_listen)) from error
    return runner


def _in_use(key: str, address: str) -> str:
    return f"{key}: cannot listen on {address}; another process may. Choose a free port."
