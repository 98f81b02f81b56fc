"""The door at which a part is asked for its metrics: plain HTTP, one path.

On loopback whoever asks is answered. Beyond it an operator's key is asked for, and the part's certificate encrypts what
it has to say, where it has one. Served on the part's event loop, since its state may be read nowhere else.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from protos.doors import Doors, Rejections
from protos.keyring import KeyRing, bearer
from qlm_core.config import Config
from qlm_core.config_doors import is_loopback, tenants
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError


async def serve_metrics(
    collector: Collector,
    config: Config,
    address: str,
    *,
    key: str,
    doors: Doors,
    rejections: Rejections,
) -> web.AppRunner:
    """Answer at /metrics until the runner is cleaned up.

    Args:
        key: where the address stands in the configuration, for messages.

    Raises:
        QlmError: the address cannot be listened on.
    """
    host, port = parse_address(address, key)
    registry = CollectorRegistry()
    registry.register(collector)
    operators = KeyRing(tenant.key for tenant in tenants(config).values() if tenant.operator)
    asks = not is_loopback(address) and len(operators) > 0

    async def answer(request: web.Request) -> web.Response:
        token = bearer(request.headers.get("Authorization", "").encode())
        if asks and operators.place(token) is None:
            rejections.note("metrics", "key", peer=str(request.remote), asked=request.path)
            return web.Response(status=401, text="Send Authorization: Bearer, an operator's key.\n")
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(registry), headers=headers)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tls = None if is_loopback(address) else doors.http_server()
    try:
        await web.TCPSite(runner, host.strip("[]"), port, ssl_context=tls).start()
    except OSError as error:
        await runner.cleanup()
        raise QlmError(
            f"{key}: cannot listen on {address} ({error.strerror}). Choose another port."
        ) from error
    return runner
