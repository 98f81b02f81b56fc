"""`qlm profile`: profiles from a running engine, from logs and from iterations, and the comparison with a run."""

from __future__ import annotations

import asyncio
import contextlib
import csv
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestServer

from qlm.__main__ import main
from qlm.engine_probe import EngineLimits, Probe, limits_of
from qlm_core.errors import QlmError
from qlm_core.profile import EngineProfile, IterationTime
from qlm_core.profile_catalog import find_profile
from qlm_core.sim.fidelity import MeasuredRequest, replay_log
from qlm_core.sim.fit import fit_iteration_time
from tests.sim.openai_engine import KnownEngine

# Slow enough that a busy machine's delays are small beside an iteration.
SLOW = EngineProfile(
    model="m",
    gpu="g",
    iteration=IterationTime(
        base_ms=20.0, per_token_ms=0.2, per_sequence_ms=2.0, per_context_token_ms=0.01
    ),
    kv_cache_tokens=4096,
    max_num_seqs=16,
    async_scheduling=False,
)


async def test_a_running_engine_gives_its_costs_away() -> None:
    engine = KnownEngine(SLOW)
    async with TestServer(engine.app) as server:
        work = asyncio.create_task(engine.work())
        probe = Probe(str(server.make_url("")), "m", tell=lambda _: None)
        points, limits = await probe.measure(
            prompts=(32, 128, 512), batches=(1, 8, 32), contexts=(32, 256), output_tokens=12
        )
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    assert limits.kv_cache_tokens == 4096
    # 32 do not fit at once, so their batch is never whole and is left out.
    assert [point.decode_batch for point in points] == [0, 0, 0, 1, 8, 1, 8]
    assert [point.prefill_tokens for point in points[:3]] == [32, 128, 512]
    for point in points:
        stated = SLOW.iteration.iteration_ms(
            prefill_tokens=point.prefill_tokens,
            decode_batch=point.decode_batch,
            context_tokens=point.context_tokens,
        )
        assert point.iteration_ms > 0.9 * stated
    fitted = fit_iteration_time(points, form="linear").iteration
    assert fitted.per_token_ms > 0
    assert fitted.per_context_token_ms >= 0


async def test_limits_are_seen_before_anything_is_measured() -> None:
    def refuse(limits: EngineLimits) -> None:
        raise QlmError(f"{limits.kv_cache_tokens} are not enough")

    engine = KnownEngine(SLOW)
    async with TestServer(engine.app) as server:
        work = asyncio.create_task(engine.work())
        said: list[str] = []
        probe = Probe(str(server.make_url("")), "m", tell=said.append)
        with pytest.raises(QlmError, match="4096 are not enough"):
            await probe.measure(accept=refuse)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    assert said == []


async def test_an_engine_that_refuses_is_named() -> None:
    probe = Probe("http://127.0.0.1:9", "m", tell=lambda _: None)
    with pytest.raises(QlmError, match="no engine answers"):
        await probe.measure()


def test_limits_are_read_from_metrics_where_they_are() -> None:
    assert limits_of("# HELP x\nup 1\n").kv_cache_tokens is None
    text = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
    assert limits_of(text).kv_cache_tokens == 1600


def _write_log(path: Path, profile: EngineProfile, *, with_tpot: bool = True) -> None:
    log = [
        MeasuredRequest(
            arrival_s=0.2 * index,
            prompt_tokens=100 + 37 * index % 900,
            output_tokens=20 + 53 * index % 300,
            ttft_s=1.0,
            tpot_s=0.05,
        )
        for index in range(80)
    ]
    replayed, _ = replay_log(profile, log)
    with path.open("w", newline="") as file:
        columns = ["arrival_s", "prompt_tokens", "output_tokens", "ttft_ms"]
        writer = csv.writer(file)
        writer.writerow([*columns, "tpot_ms" if with_tpot else "e2e_ms"])
        for one in replayed:
            last = one.tpot_s if with_tpot else one.finish_s - one.arrival_s
            writer.writerow(
                [one.arrival_s, one.prompt_tokens, one.output_tokens, 1e3 * one.ttft_s, 1e3 * last]
            )


@pytest.mark.parametrize("with_tpot", [True, False])
def test_a_log_gives_a_profile_whose_replay_agrees(
    with_tpot: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out, plot = (tmp_path / name for name in ("log.csv", "own.json", "plot.png"))
    real = find_profile("llama-3-8b", "rtx4090")
    _write_log(log, real, with_tpot=with_tpot)
    fit = ["profile", "fit", "--log", str(log), "--like", "llama-3-8b:a40"]
    limits = ["--kv-cache-tokens", "41408", "--max-num-seqs", "128"]
    assert main([*fit, *limits, "--gpu", "mine", "--out", str(out)]) == 0
    fitted = msgspec.json.decode(out.read_bytes(), type=EngineProfile)
    assert (fitted.gpu, fitted.kv_cache_tokens) == ("mine", 41408)
    assert fitted.iteration_s(decode_batch=32, context_tokens=20_000) == pytest.approx(
        real.iteration_s(decode_batch=32, context_tokens=20_000), rel=0.05
    )
    assert main(["profile", "compare", str(log), str(out), "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "| mean TTFT, s |" in said
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_iterations_give_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    shapes = [(0, n, n * c) for n in (1, 8, 32, 64) for c in (64, 512)] + [
        (p, 0, 0) for p in (64, 256, 1024)
    ]
    rows = [
        f"{p},{n},{c},{SLOW.iteration.iteration_ms(prefill_tokens=p, decode_batch=n, context_tokens=c)}"
        for p, n, c in shapes
    ]
    path.write_text("prefill_tokens,decode_batch,context_tokens,iter_ms\n" + "\n".join(rows) + "\n")
    command = ["profile", "fit", "--iterations", str(path), "--form", "linear"]
    assert main([*command, "--model", "m", "--gpu", "g", "--kv-cache-tokens", "4096"]) == 0
    fitted = msgspec.json.decode(capsys.readouterr().out, type=EngineProfile)
    assert fitted.iteration.base_ms == pytest.approx(20.0, rel=1e-3)
    assert fitted.iteration.per_context_token_ms == pytest.approx(0.01, rel=1e-3)
    assert main(command) == 2
    assert "--model: missing" in capsys.readouterr().err


def test_a_limit_of_points_is_refused_as_the_option_is_spelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    rows = "".join(f"{64 * n},{n},{10 + n}\n" for n in range(12))
    path.write_text("prefill_tokens,decode_batch,iter_ms\n" + rows)
    command = ["profile", "fit", "--iterations", str(path), "--model", "m", "--gpu", "g"]
    assert main([*command, "--kv-cache-tokens", "0"]) == 2
    assert "--kv-cache-tokens: 0 is out of range" in capsys.readouterr().err


def test_what_was_not_measured_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Single tokens: there is no time between them, and nothing was told of the first."""
    log = tmp_path / "log.csv"
    log.write_text("arrival_s,prompt_tokens,output_tokens,ttft_ms,tpot_ms\n0,9,1,0,0\n1,9,1,0,0\n")
    assert main(["profile", "compare", str(log), "llama-3-8b:a40"]) == 0
    table = capsys.readouterr().out
    assert table.count("nothing to compare with |") == 2
    assert "| TPOT, ms, measured |" not in table
    assert main(["profile", "fit", "--log", str(log), "--like", "llama-3-8b:a40"]) == 0
    assert "tpot, beside the measured value: nothing to compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "gpt-9:a100"], ("gpt-9", "mistral-7b")),
        (["show", "nonsense"], ("MODEL:GPU",)),
        (["fit", "--log", "absent.csv", "--like", "llama-3-8b:a40"], ("absent.csv",)),
        (["fit", "--log", "absent.csv"], ("--like",)),
        (["fit", "--url", "http://127.0.0.1:9"], ("--model",)),
        # Nobody answers there and the file is absent: all of these are found before anything is measured.
        (["fit", "--url", "http://127.0.0.1:9", "--model", "m"], ("--gpu: missing",)),
        (
            ["fit", "--url", "http://127.0.0.1:9", "--model", "m", "--like", "no:such"],
            ("no profile for 'such'",),
        ),
        (
            ["fit", "--iterations", "absent.csv", "--model", "m", "--gpu", "g"],
            ("--kv-cache-tokens: missing",),
        ),
        (
            ["fit", "--url", "http://127.0.0.1:9", "--model=m", "--gpu=g", "--max-num-seqs=0"],
            ("--max-num-seqs: 0",),
        ),
        (
            ["compare", "absent.csv", "llama-3-8b:a40", "--max-num-seqs", "0"],
            ("--max-num-seqs: 0",),
        ),
        (
            ["fit", "--log", "x", "--like", "llama-3-8b:a40", "--kv-cache-tokens", "1"],
            ("--kv-cache-tokens: 1",),
        ),
        # The log is absent too, but the folder is asked for before anything is read.
        (
            ["fit", "--log", "absent.csv", "--like", "llama-3-8b:a40", "--out", "no-such/o.json"],
            ("--out: no-such/o.json: there is no folder no-such.",),
        ),
        (
            ["fit", "--log", "absent.csv", "--like", "llama-3-8b:a40", "--out", "."],
            ("--out: . is a folder",),
        ),
        (
            ["compare", "absent.csv", "llama-3-8b:a40", "--plot", "no-such/plot.png"],
            ("--plot: no-such/plot.png",),
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert [word for word in words if word not in said] == []


def test_shipped_profiles_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "list"]) == 0
    assert "llama-2-70b:a100:4" in capsys.readouterr().out
    assert main(["profile", "show", "llama-2-70b:a100:4"]) == 0
    shown = msgspec.json.decode(capsys.readouterr().out, type=EngineProfile)
    assert shown == replace(find_profile("llama-2-70b", "a100"), model="llama-2-70b")
