"""Reads counters from the Prometheus endpoints of a running fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a Prometheus text exposition; `labels` as written, without the braces."""

    name: str
    labels: str
    value: float


def samples(text: str) -> list[Sample]:
    """The samples of a Prometheus text exposition; lines that are none are left out."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        head, brace, rest = line.partition("{")
        if brace:
            labels, _, value = rest.rpartition("}")
        else:
            labels = ""
            head, _, value = line.partition(" ")
        try:
            found.append(Sample(head, labels, float(value.split()[0])))
        except (ValueError, IndexError):
            continue
    return found


def total(found: Iterable[Sample], name: str, label: str = "") -> float | None:
    """The sum of a metric over the series that have `label` (as key="value"); None of no series."""
    values = [one.value for one in found if one.name == name and label in one.labels]
    return sum(values) if values else None


def by_label(found: Iterable[Sample], name: str, label: str) -> dict[str, float]:
    """The sums of a metric for each value of a label, in order of appearance; zeros are left out."""
    sums: dict[str, float] = {}
    for one in found:
        rest = f",{one.labels}".partition(f',{label}="')[2]
        if one.name == name and rest and one.value:
            value = rest.partition('"')[0]
            sums[value] = sums.get(value, 0.0) + one.value
    return sums


async def read(urls: Iterable[str], *, api_key: str = "", ca: str = "") -> list[Sample]:
    """The samples of several endpoints; one that does not answer is left out."""
    import aiohttp

    from qlm import trust

    found: list[Sample] = []
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=5.0),
        connector=aiohttp.TCPConnector(ssl=trust.https(ca)),
        headers={"authorization": f"Bearer {api_key}"} if api_key else None,
    ) as session:
        for url in urls:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        found += samples(await response.text())
            except (aiohttp.ClientError, TimeoutError):
                continue
    return found
