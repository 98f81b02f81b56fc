"""Reads counters from the Prometheus endpoints of a running fleet."""

from __future__ import annotations

from collections.abc import Iterable


def sums(text: str) -> dict[str, float]:
    """The sum over all labels of each sample name in a Prometheus text exposition."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition("{")
        if value:
            value = value.rpartition("}")[2]
        else:
            name, _, value = line.partition(" ")
        try:
            totals[name] = totals.get(name, 0.0) + float(value.split()[0])
        except (ValueError, IndexError):
            continue
    return totals


async def read(urls: Iterable[str]) -> dict[str, float]:
    """The sums over several endpoints; one that does not answer is left out."""
    import aiohttp

    totals: dict[str, float] = {}
    timeout = aiohttp.ClientTimeout(total=5.0)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for url in urls:
            try:
                async with session.get(url) as response:
                    text = await response.text() if response.status == 200 else ""
            except (aiohttp.ClientError, TimeoutError):
                continue
            for name, value in sums(text).items():
                totals[name] = totals.get(name, 0.0) + value
    return totals
