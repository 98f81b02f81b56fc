"""`make fidelity`: the corpus sent to a real vLLM directly and through QLM, and every difference between the answers.

Gateway, solver and agent run as processes, the agent beside the same server. Each request is sent directly, through QLM and
directly again, one at a time: a batch of another size may change the last bit of a logit. What the direct answers do
not agree on cannot be compared and is reported apart. The status is 0 only without differences.

    python -m benchmarks.fidelity [--kind openai|vllm] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import vllm_servers
from benchmarks.fidelity_compare import Answer, Difference, differences, events_of
from benchmarks.fidelity_corpus import PLAIN, THINKER, Case, corpus
from qlm import fleet, ports
from qlm_core.config import Config

Json = dict[str, Any]

TIMEOUT_S = 30.0
# How often the server is asked again where QLM's answer differs from its first one.
REPEATS = 3
SERVER_ARGUMENTS = {
    PLAIN: ("--enable-auto-tool-choice", "--tool-call-parser=hermes"),
    THINKER: (
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        "--reasoning-parser=deepseek_r1",
    ),
}
SLOTS = 16
METRICS = "--enable-per-request-metrics"
# What an agent adds to the command line by itself.
AS_AGENTS_DO = (
    f"--max-num-seqs={SLOTS}",
    "--scheduling-policy=priority",
    "--enable-prompt-tokens-details",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one case: where QLM's answer differs, and where the server's own two answers do."""

    case: Case
    differences: Sequence[Difference]
    unrepeatable: Sequence[Difference]


async def ask(session: aiohttp.ClientSession, url: str, case: Case) -> Answer:
    """Send a case to a server and wait for all of its answer; without one the status is 0, and the body the reason."""
    try:
        return await _ask(session, url, case)
    except TimeoutError:
        reason = f"no answer within {TIMEOUT_S:g} s"
    except aiohttp.ClientError as error:
        reason = f"no whole answer: {error}"
    return Answer(status=0, content_type="", body=reason)


async def _ask(session: aiohttp.ClientSession, url: str, case: Case) -> Answer:
    body = dict(case.body) | {"model": case.model}
    async with session.post(url + case.path, json=body) as response:
        text = await response.text()
        kind = response.content_type
        if kind == "text/event-stream":
            return Answer(status=response.status, content_type=kind, events=events_of(text))
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = text
        return Answer(status=response.status, content_type=kind, body=decoded)


async def compare(
    session: aiohttp.ClientSession, case: Case, *, direct: str, through: str
) -> Result:
    """One case, directly and through QLM, and directly again."""
    first = await ask(session, direct, case)
    other = await ask(session, through, case)
    found = differences(first, other)
    unsure: dict[str, Difference] = {}
    for _ in range(REPEATS if found else 1):
        again = await ask(session, direct, case)
        unsure |= {one.path: one for one in differences(first, again) if not _is_of_cache(one)}
        # What the server says now and then by itself is not QLM's.
        possible = {one.path for one in differences(again, other)}
        found = [one for one in found if one.path in possible and one.path not in unsure]
        if not found:
            break
    return Result(case=case, differences=found, unrepeatable=list(unsure.values()))


def _is_of_cache(one: Difference) -> bool:
    """Whether it is about cached tokens, which the first of two equal prompts may have cached for the second."""
    return "prompt_tokens_details" in one.path


async def compare_all(
    cases: Sequence[Case], *, direct: dict[str, str], through: str
) -> list[Result]:
    """All cases, one after another; prints each difference as it is found."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    results = []
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for case in cases:
            result = await compare(session, case, direct=direct[case.model], through=through)
            results.append(result)
            for one in result.unrepeatable:
                print(f"not repeatable  {case.name}  {one}", flush=True)
            for one in result.differences:
                print(f"{case.name}  {one}", flush=True)
    return results


def attached(direct: dict[str, str]) -> Config:
    """A configuration with an agent for each server, of the kind `openai`."""
    engines: dict[str, Json] = {
        model: {"kind": "openai", "openai": {"base_url": url, "max_num_seqs": SLOTS}}
        for model, url in direct.items()
    }
    return _config({model: {} for model in direct}, engines)


def started(direct: dict[str, str]) -> Config:
    """A configuration with an agent for each model that starts its server, of the kind `vllm`."""
    models = {model: {"path": str(vllm_servers.MODELS / model)} for model in direct}
    engines = {
        model: vllm_servers.engine_section(
            int(url.rsplit(":", 1)[1]), SLOTS, *SERVER_ARGUMENTS[model], METRICS
        )
        for model, url in direct.items()
    }
    return _config(models, engines)


def _config(models: dict[str, Json], engines: dict[str, Json]) -> Config:
    """An agent for each model, with its engine."""
    agents = [
        {"name": f"agent-{model}", "gpu": "cpu", "models": [model], "engine": engine}
        for model, engine in engines.items()
    ]
    models = {model: fields | {"max_model_len": 2048} for model, fields in models.items()}
    return Config.from_mapping({"models": models, "agents": agents})


@contextlib.asynccontextmanager
async def both(kind: str) -> AsyncIterator[tuple[dict[str, str], str]]:
    """Servers and a fleet before them: the servers' addresses by model, and the gateway's."""
    with (
        tempfile.TemporaryDirectory(prefix="qlm-fidelity-") as name,
        contextlib.ExitStack() as stack,
    ):
        if kind == "openai":
            zygote = stack.enter_context(vllm_servers.zygote())
            direct = {
                model: zygote.start(model, *AS_AGENTS_DO, *arguments, METRICS).url
                for model, arguments in SERVER_ARGUMENTS.items()
            }
            config = attached(direct)
        else:
            addresses = ports.free_addresses(len(SERVER_ARGUMENTS))
            direct = {m: f"http://{a}" for m, a in zip(SERVER_ARGUMENTS, addresses, strict=True)}
            config = started(direct)
        folder = Path(name)
        config = fleet.temporary_config(folder, ["log.level=warning"], base=config)
        async with fleet.running(config, folder) as running:
            yield direct, running.url


def report(results: Sequence[Result]) -> str:
    """The figures: requests, differences, and what could not be compared."""
    requests = len(results)
    found = sum(len(result.differences) for result in results)
    hit = sum(bool(result.differences) for result in results)
    unsure = sum(bool(result.unrepeatable) for result in results)
    return (
        f"{requests} requests, {found} differences in {hit} of them; "
        f"{unsure} that the server itself answers differently twice"
    )


async def run(kind: str, only: str) -> list[Result]:
    """Compare the cases whose names contain `only`."""
    cases = [case for case in corpus() if only in case.name]
    async with both(kind) as (direct, through):
        return await compare_all(cases, direct=direct, through=through)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--kind", choices=["openai", "vllm"], default="openai", help="of the agents"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences there")
    options = parser.parse_args(arguments)
    try:
        results = asyncio.run(run(options.kind, options.only))
    except vllm_servers.NoVllm as reason:
        print(reason, file=sys.stderr)
        return 2
    print(report(results))
    if options.json:
        rows = [
            {"case": result.case.name, "path": one.path, "direct": one.direct, "qlm": one.through}
            for result in results
            for one in result.differences
        ]
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    return 1 if any(result.differences for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
