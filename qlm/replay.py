"""One measured run against a running gateway: sends a workload, watches it, and reports.

`qlm replay`, `qlm demo` and the tests with real processes are callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from protos.speaking import speaks
from qlm import calls, load, progress, scrape, trust
from qlm.load_grpc import GrpcTransport
from qlm.load_http import HttpTransport
from qlm.report import Interruption, Outcome, Report, summarise
from qlm_core.config import Config
from qlm_core.errors import QlmError
from qlm_core.model import Slo
from qlm_core.sim.workload import WorkloadRequest

EVICTIONS = ("qlm_agent_returned_total", 'reason="evicted"')
SWAPS = ("qlm_agent_swaps_total", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a run goes: the gateway's addresses and the metrics endpoints of the fleet."""

    url: str
    grpc_address: str
    transport: str
    api_key: str = ""
    ca: str = ""
    metrics_urls: tuple[str, ...] = ()


def slos_of(config: Config) -> dict[str, Slo]:
    """The targets of each configured class."""
    return {name: config.slo_class(name).slo for name in config.slo_classes}


def metrics_urls(config: Config, url: str) -> tuple[str, ...]:
    """The metrics endpoints of the gateway at `url` and of the configured solver and agents."""
    listeners = [config.solver.metrics_listen, *(agent.metrics_listen for agent in config.agents)]
    return (f"{url}/metrics", *(f"http://{address}/metrics" for address in listeners if address))


def transport(target: Target) -> load.Transport:
    """The transport that the target names. Raises QlmError for an unknown one."""
    if target.transport == "http":
        return HttpTransport(target.url, api_key=target.api_key, ca=target.ca)
    if target.transport == "grpc":
        return GrpcTransport(target.grpc_address, api_key=target.api_key, ca=target.ca)
    raise QlmError(f"transport: {target.transport!r} is unknown. Use http or grpc.")


async def require_gateway(url: str, ca: str = "") -> None:
    """Raise Unavailable, saying why, unless a gateway answers at `url`."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=5.0)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/health", ssl=trust.https(ca)),
        ):
            return
    except aiohttp.ClientSSLError:
        raise calls.untrusted(url) from None
    except aiohttp.ClientResponseError:
        raise calls.speaks_grpc(url) from None
    except (aiohttp.ClientError, TimeoutError):
        raise await _instead_of_a_gateway(url) from None


async def _instead_of_a_gateway(url: str) -> QlmError:
    """What answers there, by its first words: how a call breaks depends on who was faster."""
    place = urlsplit(url)
    spoken = await speaks(place.netloc) if place.port else ""
    if spoken == "grpc":
        return calls.speaks_grpc(url)
    return calls.hung_up(url) if spoken in ("http", "tls") else calls.no_gateway(url)


@contextlib.contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def forget() -> None:
        for number, handler in usual.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def tell() -> None:
        forget()
        stop.set()

    for number in usual:
        loop.add_signal_handler(number, tell)
    try:
        yield stop
    finally:
        forget()


async def measured(
    requests: Sequence[WorkloadRequest],
    target: Target,
    *,
    slos: dict[str, Slo],
    bodies: load.Bodies,
    time_scale: float = 1.0,
    concurrency_limit: int = 10_000,
    stop: asyncio.Event | None = None,
) -> tuple[Report, list[Outcome]]:
    """Send the requests to the target, showing progress, and summarise what became of them.

    Once `stop` is set, that is over what has ended until then.
    """
    await require_gateway(target.url, target.ca)
    before = await scrape.read(target.metrics_urls, api_key=target.api_key, ca=target.ca)
    counts = load.Counts()
    async with transport(target) as way, progress.shown(counts, len(requests)):
        outcomes, elapsed_s = await load.run(
            requests,
            way,
            bodies=bodies,
            counts=counts,
            time_scale=time_scale,
            concurrency_limit=concurrency_limit,
            stop=stop,
        )
    not_sent = len(requests) - counts.sent
    interrupted = None
    if counts.in_flight or not_sent:
        interrupted = Interruption(in_flight=counts.in_flight, not_sent=not_sent)
    after = await scrape.read(target.metrics_urls, api_key=target.api_key, ca=target.ca)
    report = summarise(
        outcomes,
        slos,
        sent=counts.sent,
        elapsed_s=elapsed_s,
        evictions=_grown(before, after, EVICTIONS),
        swaps=_grown(before, after, SWAPS),
        interrupted=interrupted,
    )
    return report, outcomes


def _grown(
    before: list[scrape.Sample], after: list[scrape.Sample], metric: tuple[str, str]
) -> int | None:
    """How much a counter grew; None where nobody publishes it. A restart begins at 0 again."""
    end = scrape.total(after, *metric)
    return None if end is None else round(max(end - (scrape.total(before, *metric) or 0.0), 0.0))
