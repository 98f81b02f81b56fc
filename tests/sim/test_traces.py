"""Trace files: every format is read, and a bad row is named with file, line, column and remedy."""

from __future__ import annotations

import gzip
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import pytest

from qlm.measurements import read_iterations, read_request_log
from qlm.tables import TableError
from qlm.traces import read_rate_windows, read_requests, read_trace
from qlm_core.sim.workload import TraceMapping, only

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MAPPING = TraceMapping(mix=only("interactive"), models=only("m"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "model"),
    [
        ("plain.csv", "arrival_s,prompt_tokens,output_tokens\n7,10,20\n8.5,11,21\n", None),
        ("plain.csv.gz", "arrival_s,prompt_tokens,output_tokens\n7,10,20\n8.5,11,21\n", None),
        (
            "model.csv",
            "model,arrival_s,prompt_tokens,output_tokens,x\nA,7,10,20,\nA,8.5,11,21,\n",
            "A",
        ),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,10,20\n2023-11-16 18:15:48.1805900,11,21\n",
            None,
        ),
        (
            "burst.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,10,20,30,Conversation log\n5.5,ChatGPT,10,0,10,Conversation log\n"
            "6.5,ChatGPT,11,21,32,Conversation log\n",
            "ChatGPT",
        ),
        (
            "mooncake.jsonl",
            '{"timestamp": 3000, "input_length": 10, "output_length": 20, "hash_ids": [1]}\n'
            '{"timestamp": 4500, "input_length": 11, "output_length": 21, "hash_ids": [1]}\n',
            None,
        ),
    ],
)
def test_formats_are_told_apart(tmp_path: Path, name: str, text: str, model: str | None) -> None:
    rows = list(read_trace(write(tmp_path, name, text)))
    assert [row.arrival_s for row in rows] == pytest.approx([0.0, 1.5])
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(10, 20), (11, 21)]
    assert {row.model for row in rows} == {model}


def azure(*stamps: str) -> str:
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{at},9,9" for at in stamps)])


@pytest.mark.parametrize(
    ("stamps", "arrivals_s"),
    [
        (["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00"], [0.0, 0.99007]),
        (["2024-05-10 00:00:00+02:00", "2024-05-10 00:00:00.5+00:00"], [0.0, 7200.5]),
        (["2024-05-10 01:00:00.2500009+01:00", "2024-05-10 00:00:00.2500019Z"], [0.0, 1e-6]),
        # No zone is UTC.
        (["2024-05-10 00:00:00", "2024-05-10 00:00:01+00:00"], [0.0, 1.0]),
    ],
)
def test_zones_and_whole_seconds_of_azure_count(
    tmp_path: Path, stamps: list[str], arrivals_s: list[float]
) -> None:
    rows = read_trace(write(tmp_path, "azure.csv", azure(*stamps)))
    assert [row.arrival_s for row in rows] == pytest.approx(arrivals_s, abs=5e-7)


PLAIN = "arrival_s,prompt_tokens,output_tokens\n7,10,20\n"
LINE = '{"timestamp": 3000, "input_length": 10, "output_length": 20}\n'


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("text", [PLAIN, LINE])
@pytest.mark.parametrize("before", ["\ufeff", "\n", "\ufeff \t\r\n\n"])
def test_a_byte_order_mark_and_blank_lines_are_passed_over(
    tmp_path: Path, name: str, text: str, before: str
) -> None:
    (row,) = read_trace(write(tmp_path, name, before + text + "  \n\n"))
    assert (row.prompt_tokens, row.output_tokens) == (10, 20)


def test_blank_lines_count_in_the_place_of_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"line 6, column prompt_tokens: 'x'"):
        list(read_trace(write(tmp_path, "t.csv", f"\n\n{PLAIN}\n8,x,1\n")))
    with pytest.raises(TableError, match=r"line 4: no column input_length"):
        list(read_trace(write(tmp_path, "t.jsonl", f'\n{LINE}\n{{"timestamp": 1}}\n')))
    with pytest.raises(TableError, match="the file is empty"):
        list(read_trace(write(tmp_path, "t.csv", "\ufeff\n \n")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "file is empty"),
        ("a,b\n1,2\n", "no known trace format has the columns a, b"),
        ("arrival_s,prompt_tokens,output_tokens\n0,x,2\n", "line 2, column prompt_tokens: 'x'"),
        ("arrival_s,prompt_tokens,output_tokens\n0,,2\n", "line 2, column prompt_tokens: is empty"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2\n-1,1,2\n", "line 3, column arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,2\n0,1,2.5\n", "line 3, column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,0\n", "line 2, column output_tokens: 0"),
        ("arrival_s,prompt_tokens,output_tokens\n9,1,2\n8,1,2\n", "line 3: it arrives before"),
        ("arrival_s,prompt_tokens,output_tokens\n9,1\n", "line 2: 2 values for 3 columns"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,2\n", "column arrival_s: nan is out of"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "column TIMESTAMP: 'now'"),
        (
            '{"timestamp": 1' + "0" * 400 + ', "input_length": 2, "output_length": 3}\n',
            "line 1, column timestamp: .* is not a number",
        ),
        ('{"timestamp": 1}\n', "no column input_length, output_length"),
        ('{"timestamp": 1,\n', "line 1: .*one JSON object a line"),
        (
            '{"timestamp": 1, "input_length": [2], "output_length": 3}\n',
            "line 1, column input_length",
        ),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(TableError, match=problem) as caught:
        list(read_trace(write(tmp_path, "bad.csv", text)))
    assert "bad.csv" in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        list(read_trace(tmp_path / "absent.csv"))
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,2\n")[:30])
    with pytest.raises(TableError, match="complete"):
        list(read_trace(broken))
    whole = bytearray(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,2\n"))
    whole[10] ^= 0xFF
    broken.write_bytes(whole)
    with pytest.raises(TableError, match="complete"):
        list(read_trace(broken))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(128, 256)) * 10)
    with pytest.raises(TableError, match="UTF-8"):
        list(read_trace(binary))


def test_a_trace_is_streamed(tmp_path: Path) -> None:
    """Rows before a bad one are served, so nothing was read ahead."""
    path = write(tmp_path, "t.csv", "arrival_s,prompt_tokens,output_tokens\n0,1,2\n1,1,2\n2,x,2\n")
    assert len(list(islice(read_requests(path, MAPPING), 2))) == 2


def test_rates_of_clients_become_requests(tmp_path: Path) -> None:
    text = (
        "model,t_s,client,rate_rps,cv,family,p1,p2\n"
        "s,0,5,2.0,1.1,Gamma,0.8,0.6\ns,600,5,2.0,1.1,Weibull,0.9,0.5\nt,0,1,99,1,Gamma,1,1\n"
    )
    path = write(tmp_path, "windows.csv", text)
    assert [window.family for window in read_rate_windows(path)] == ["gamma", "weibull"]
    requests = list(read_requests(path, MAPPING))
    assert len(requests) == pytest.approx(2400, rel=0.15)
    bad = write(tmp_path, "bad.csv", text.replace("Weibull", "Pareto"))
    with pytest.raises(TableError, match="line 3, column family: 'Pareto'"):
        list(read_rate_windows(bad))


CLIENTS = "t_s,client,rate_rps,family,p1\n"
TOTALS = "t_s,rate_rps,cv_rate_weighted\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TOTALS + "600,1,1\n0,1,1\n", "line 3, column t_s: the window opens before .* Sort"),
        (
            CLIENTS + "0,a,1,Gamma,1\n600,a,1,Gamma,1\n0,b,1,Gamma,1\n",
            "line 4, column t_s: the window opens before",
        ),
        (TOTALS + "0,1,1\n300,1,1\n", "line 3, column t_s: the window opens 300 s after"),
        (TOTALS + "0,1e12,1\n", r"line 2, column rate_rps: .* 1e\+12 requests/s. .*--rate-scale"),
        (
            CLIENTS + "0,a,9000,Gamma,1\n0,b,9000,Gamma,1\n",
            "line 3, column rate_rps: the window has come to 18000 requests/s",
        ),
        (CLIENTS + "0,a,1,Weibull,0.01\n", "line 2, column p1: 0.01 is out of range"),
    ],
)
def test_windows_that_cannot_be_drawn_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    mapping = replace(MAPPING, limit=10_000)
    with pytest.raises(TableError, match=problem):
        list(read_requests(write(tmp_path, "windows.csv", text), mapping))


def test_windows_count_from_the_first_and_are_bounded_as_scaled(tmp_path: Path) -> None:
    rows = "".join(f"{1.7e9 + 0.1 + 600 * index},20000,1\n" for index in range(3))
    path = write(tmp_path, "windows.csv", TOTALS + rows)
    assert [one.start_s for one in read_rate_windows(path, rate_scale=1e-4)] == [0, 600, 1200]
    requests = list(read_requests(path, replace(MAPPING, rate_scale=1e-4)))
    assert len(requests) == pytest.approx(3600, rel=0.1)
    with pytest.raises(TableError, match="40000 requests/s"):
        list(read_requests(path, replace(MAPPING, rate_scale=2.0)))


LOG = "arrival_s,prompt_tokens,output_tokens,ttft_ms,tpot_ms\n"


def test_a_log_counts_from_its_first_arrival(tmp_path: Path) -> None:
    text = "\ufeff\n" + LOG + "1700000002,10,20,30,40\n1700000000.5,10,1,30,0\n"
    log = read_request_log(write(tmp_path, "log.csv.gz", text))
    assert [request.arrival_s for request in log] == [1.5, 0.0]


@pytest.mark.parametrize("ends", ["tpot_ms\n0,10,20,30,0\n", "e2e_ms\n0,10,20,30,29\n"])
def test_outputs_that_come_in_one_piece_have_no_pace(tmp_path: Path, ends: str) -> None:
    [request] = read_request_log(write(tmp_path, "log.csv", LOG.replace("tpot_ms\n", ends)))
    assert (request.output_tokens, request.tpot_s) == (20, 0.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LOG + "0,10,20,30,40\n1,10,20,30,-1\n", "line 3, column tpot_ms: -1 is out of range"),
        (
            LOG + "1700000000,10,20,30,40\n0,10,20,30,40\n",
            "line 2, column arrival_s: 1700000000 is more than 7.776e.06 s after the first",
        ),
    ],
)
def test_bad_logs_are_refused_with_place_and_remedy(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(TableError, match=problem):
        read_request_log(write(tmp_path, "log.csv", text))


def test_measurements_are_read(tmp_path: Path) -> None:
    log = "arrival_s,prompt_tokens,output_tokens,ttft_ms,tpot_ms\n1,10,20,30,40\n"
    (request,) = read_request_log(write(tmp_path, "log.csv", log))
    assert request.finish_s == pytest.approx(0.03 + 0.04 * 19)
    with pytest.raises(TableError, match="tpot_ms"):
        read_request_log(write(tmp_path, "log.csv", log.replace("tpot_ms", "tpot")))
    with pytest.raises(TableError, match="no request"):
        read_request_log(write(tmp_path, "log.csv", log.splitlines()[0] + "\n"))
    points = "prefill_tokens,decode_batch,total_context_tokens,iter_ms\n0,4,400,12.5\n"
    (point,) = read_iterations(write(tmp_path, "points.csv", points))
    assert (point.decode_batch, point.context_tokens, point.iteration_ms) == (4, 400, 12.5)


def test_total_rates_become_requests(tmp_path: Path) -> None:
    text = (
        "model,t_s,rate_rps,active_clients,top_client_share,cv_rate_weighted\ns,0,3.0,9,0.4,2.5\n"
    )
    path = write(tmp_path, "totals.csv", text + "s,600,1.0,9,0.4,1.0\n")
    arrivals = [request.arrival_s for request in read_requests(path, MAPPING)]
    assert arrivals == sorted(arrivals)
    assert sum(at_s < 600 for at_s in arrivals) == pytest.approx(1800, rel=0.2)
    assert sum(at_s >= 600 for at_s in arrivals) == pytest.approx(600, rel=0.2)


needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="the data folder is not beside the checkout (../shared/data)"
)


@needs_data
@pytest.mark.parametrize(
    ("name", "requests", "span_s", "output_tokens"),
    [
        ("azure2023_conv.csv.gz", 19_366, 3_498.7, 4_088_258),
        ("mooncake_conversation.csv.gz", 12_031, 3_537.0, 4_123_000),
    ],
)
def test_public_traces_are_read_whole(
    name: str, requests: int, span_s: float, output_tokens: int
) -> None:
    rows = list(read_trace(DATA / "traces" / name))
    assert len(rows) == requests
    assert rows[-1].arrival_s == pytest.approx(span_s, rel=0.01)
    assert sum(row.output_tokens for row in rows) == pytest.approx(output_tokens, rel=0.01)


@needs_data
@pytest.mark.parametrize(
    "name", ["servegen_clients_14d_top20.csv.gz", "servegen_rate_windows.csv.gz"]
)
def test_public_rates_keep_their_rhythm(name: str) -> None:
    """A thousandth of the production rate; more comes by day than by night, as in the file."""
    path = DATA / "traces" / name
    stated: dict[float, float] = {}
    for window in read_rate_windows(path):
        if window.start_s < 86_400:
            stated[window.start_s] = stated.get(window.start_s, 0.0) + window.rate_rps / 1000
    mapping = TraceMapping(mix=only("interactive"), models=only("m"), rate_scale=0.001)
    day = takewhile(lambda one: one.arrival_s < 86_400, read_requests(path, mapping))
    counts: dict[float, int] = {}
    for request in day:
        start_s = request.arrival_s // 600 * 600
        counts[start_s] = counts.get(start_s, 0) + 1
    assert sum(counts.values()) == pytest.approx(600 * sum(stated.values()), rel=0.05)
    busiest = sorted(stated, key=stated.__getitem__)
    assert sum(counts.get(at_s, 0) for at_s in busiest[-36:]) > 1.5 * sum(
        counts.get(at_s, 0) for at_s in busiest[:36]
    )
