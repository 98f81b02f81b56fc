"""`qlm batch` and `qlm replay --as-batch` against a real gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from qlm import batch_views
from qlm.__main__ import main
from qlm_core import messages as m
from qlm_core.model import BatchId
from tests.batches.beds import Bed, bed, chat, chats, jsonl, plain
from tests.gateway.peers import soon


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, since tests do not wait for people."""
    monkeypatch.setattr(batch_views, "POLL_S", 0.02)


async def command(one: Bed, *words: str) -> int:
    return await asyncio.to_thread(main, [*words, "--url", one.fleet.url])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "night.jsonl"
    path.write_bytes(jsonl([*chats(3), chat("bad", max_tokens=-1)]))
    return path


async def test_a_file_is_submitted_watched_and_its_results_are_fetched(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with bed() as one:
        one.answer()
        words = ("--window", "2h", "--metadata", "who=me", "--metadata", "why=a=b", "--watch")
        assert await command(one, "batch", "submit", str(file), *words) == 0
        told = capfd.readouterr()
        id = told.out.strip()
        assert "completed, 4/4 lines done, 1 failed" in told.err
        batch = await one.client.batches.retrieve(id)
        assert batch.completion_window == "2h"
        assert batch.metadata == {"who": "me", "why": "a=b"}

        assert await command(one, "batch", "results", id) == 0
        output = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [line["custom_id"] for line in output] == ["line-0", "line-1", "line-2"]
        place = tmp_path / "errors.jsonl"
        assert await command(one, "batch", "results", id, "--errors", "--output", str(place)) == 0
        assert json.loads(place.read_text())["custom_id"] == "bad"

        assert await command(one, "batch", "status", id) == 0
        text = capfd.readouterr().out
        assert "status        completed" in text
        assert "metadata.who  me" in text
        assert "tokens        21 in, 3 out" in text
        assert await command(one, "batch", "status", id, "--json") == 0
        assert json.loads(capfd.readouterr().out)["id"] == id
        assert await command(one, "batch", "list") == 0
        assert capfd.readouterr().out.startswith(f"{id}  ")


async def test_a_batch_is_cancelled_and_watching_it_says_that_it_did_not_complete(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with bed() as one:
        one.answer(lambda payload, said: None)
        assert await command(one, "batch", "submit", str(file)) == 0
        id = capfd.readouterr().out.strip()
        await soon(lambda: one.agent.payloads)
        said = m.BulkEstimate(BatchId(id), False, 60.0, 120.0, "behind everybody")
        one.fleet.solver.orders.put(said)
        batch = one.fleet.gateway.batches.get(BatchId(id))
        assert batch is not None
        await soon(lambda: batch.forecast.feasible is False)
        watching = asyncio.create_task(command(one, "batch", "watch", id))
        while "too late for its window" not in capfd.readouterr().err:
            await asyncio.sleep(0.02)
            assert not watching.done()
        assert await command(one, "batch", "results", id) == 2
        assert "its results are written at its end" in capfd.readouterr().err
        assert await command(one, "batch", "cancel", id) == 0
        assert capfd.readouterr().out.strip() in ("cancelling", "cancelled")
        assert await watching == 1
        assert await command(one, "batch", "results", id) == 2
        assert "no line was answered" in capfd.readouterr().err


async def test_the_endpoint_is_that_of_the_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_bytes(b"\n" + jsonl([plain("a")]))
    async with bed() as one:
        one.answer()
        assert await command(one, "batch", "submit", str(path), "--watch") == 0
        id = capfd.readouterr().out.strip()
        assert (await one.client.batches.retrieve(id)).endpoint == "/v1/completions"


async def test_a_faulty_file_is_told_line_by_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl([chat("a"), chat("a")]))
    async with bed() as one:
        assert await command(one, "batch", "submit", str(path), "--watch") == 1
        id = capfd.readouterr().out.strip()
        assert await command(one, "batch", "status", id) == 0
        assert "line 2: The custom_id 'a' is a duplicate" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["batch"], "the following arguments are required: ACTION"),
        (["batch", "submit", "/no/such.jsonl"], "/no/such.jsonl: cannot be read: No such file"),
        (["batch", "submit", __file__, "--metadata", "k"], "--metadata: 'k' is not KEY=VALUE"),
        (["batch", "status", "x", "--url", "127.0.0.1:1"], "no gateway answers"),
        (["batch", "results", "x", "--output", "/no/such/file"], "--output: /no/such is no folder"),
        (["batch", "list", "--limit", "0"], "--limit: 0 is too low"),
        (["replay", "x.csv", "--as-batch", "--plot", "x.png"], "--plot: a batch has no times"),
    ],
)
def test_misuse_is_one_line_and_status_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert told in captured.err


async def test_errors_of_the_gateway_are_its_words(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with bed() as one:
        assert await command(one, "batch", "status", "batch_0") == 2
        assert capfd.readouterr().err == "qlm: error: No batch found with id 'batch_0'.\n"
        assert await command(one, "batch", "submit", str(file), "--window", "1s") == 2
        assert "Invalid value: '1s'. Supported values are: " in capfd.readouterr().err
    async with bed(api_keys=["secret"]) as one:
        assert await command(one, "batch", "list") == 2
        assert "--api-key" in capfd.readouterr().err


async def test_a_trace_is_replayed_as_one_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    rows = "\n".join(f"{number * 0.1},{20 + number},{5}" for number in range(6))
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}\n")
    report = tmp_path / "report.json"
    async with bed() as one:
        one.answer(lambda payload, said: "x")
        words = ("--as-batch", "--window", "3h", "--models", "tiny=1", "--json", str(report))
        assert await command(one, "replay", str(trace), *words) == 0
        assert "lines        6 = 6 completed, 0 failed" in capfd.readouterr().out
        said = json.loads(report.read_text())
        assert (said["completed"], said["window_s"]) == (6, 10_800)
        bodies = [json.loads(payload.body) for payload in one.agent.payloads]
        assert all("stream" not in body for body in bodies)
        assert {body["qlm_sim"]["output_tokens"] for body in bodies} == {5}


def test_a_finish_time_is_told_with_what_it_means_for_the_window() -> None:
    said = {"feasible": True, "finish_p50_at": 1000, "finish_p90_at": 2000, "explanation": "why"}
    batch = {"qlm": said}
    assert batch_views.finish(batch, 0.0).startswith("done at ")
    assert not batch_views.finish(batch, 0.0).endswith("too late for its window")
    assert batch_views.finish({"qlm": said | {"feasible": False}}, 0.0).endswith(
        "too late for its window"
    )
    assert batch_views.finish({"qlm": said | {"finish_p50_at": None}}, 0.0) == "why"
    assert batch_views.finish({"qlm": None}, 0.0) == ""
    day = 86_400.0 * 3
    assert len(batch_views.clock(day, day)) == len("00:00:00")
    assert len(batch_views.clock(day, 0.0)) == len("1970-01-01 00:00")
