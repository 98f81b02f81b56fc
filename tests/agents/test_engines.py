"""What is particular to single engines: how servers misbehave, how models swap, how processes die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agents.engines import make_engine, tether, vllm, vllm_server
from agents.engines.requests import Abilities, prepare
from agents.engines.sim import scaled, token_text
from agents.engines.tiers import Tiers
from agents.engines.vllm_server import Health
from qlm_core.config import Config
from qlm_core.errors import QlmError
from qlm_core.executor import (
    EngineDown,
    EngineReady,
    JobDone,
    JobLost,
    JobOutput,
    JobRefused,
    JobTurnedAway,
    SwapFailed,
)
from qlm_core.model import ModelName, ModelTier, RequestId
from qlm_core.profile_catalog import find_profile
from tests.agents.fake_vllm import FakeServer
from tests.agents.harness import (
    Listening,
    OpenAIHarness,
    SimHarness,
    VllmHarness,
    config_of,
    free_ports,
    serving,
)
from tests.agents.test_connection import NoHelp
from tests.executor.world import profile


@pytest.mark.parametrize(
    ("said", "limit"),
    [('{"max_new_tokens": 40}', 40), ("{}", 0), ("[]", 0), ("{", 0), ('{"max_new_tokens": "x"}', 0), (None, 0)],
)  # fmt: skip
def test_a_models_own_limit_on_output_is_known(said: str | None, limit: int, tmp_path: Path):
    if said is not None:
        (tmp_path / "generation_config.json").write_text(said)
    assert vllm_server.output_limit_of(tmp_path) == limit


class TestOpenAI:
    @pytest.mark.parametrize(
        ("prompt", "outcome"),
        [
            ("refuse", JobRefused),
            ("busy", JobTurnedAway),
            ("break", JobLost),
            ("cut", JobLost),
            ("babble", JobRefused),
        ],
    )
    async def test_ways_to_fail(self, prompt: str, outcome: type):
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 10, prompt=prompt))
            end = await harness.heard.end_of("a")
            assert isinstance(end, outcome)
            if prompt == "refuse":
                assert isinstance(end, JobRefused)
                assert (end.status, end.error) == (400, "This prompt is refused.")

    async def test_bodies_pass_with_our_fields_set_and_theirs_kept(self):
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 3))
            await harness.heard.end_of("a")
            [body] = harness.server.bodies
            assert body["stream"] is True
            assert body["stream_options"]["include_usage"] is True
            assert body["ignore_eos"] is True
            assert body["model"] == "mistral-7b"

    async def test_priorities_are_for_servers_that_are_known_to_take_them(self):
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 3), 20_000)
            await harness.heard.end_of("a")
            [body] = harness.server.bodies
            assert "priority" not in body
            prepared = await prepare(
                harness.job("b", 3), "m", NoHelp(), Abilities(), priority=20_000
            )
            assert json.loads(prepared.body)["priority"] == 20_000

    async def test_a_prompt_of_token_ids_is_continued_in_token_ids(self):
        async with OpenAIHarness.started() as harness:
            job = harness.job(
                "a", 10, prompt=[5, 6, 7], attempt=2, resume_text=" t0 t1", produced_tokens=2
            )
            harness.engine.submit(job)
            await harness.heard.end_of("a")
            assert harness.server.bodies[0]["prompt"] == [5, 6, 7, 0, 1]
            assert harness.server.bodies[0]["max_tokens"] == 8

    async def test_a_chat_is_continued_as_the_assistants_last_message(self):
        async with OpenAIHarness.started() as harness:
            job = harness.job(
                "a", 10, chat=True, attempt=2, resume_text="so far", produced_tokens=4
            )
            harness.engine.submit(job)
            await harness.heard.end_of("a")
            [body] = harness.server.bodies
            assert body["messages"][-1] == {"role": "assistant", "content": "so far"}
            assert body["continue_final_message"] is True
            assert body["add_generation_prompt"] is False
            assert body["max_tokens"] == 6
            first = next(one for one in harness.heard.of("a") if isinstance(one, JobOutput))
            assert b"role" not in first.data

    async def test_an_abort_frees_the_server(self):
        async with OpenAIHarness.started() as harness:
            harness.engine.submit(harness.job("a", 1000))
            await harness.heard.until(JobOutput, id="a")
            assert harness.server.open == 1
            harness.engine.abort(RequestId("a"), 1)
            async with asyncio.timeout(5):
                while harness.server.open:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    @asynccontextmanager
    async def listening(self, port: int, **openai: object) -> AsyncIterator[Listening]:
        """An engine for a server at that port, whether it is there or not."""
        section = {"base_url": f"http://127.0.0.1:{port}"} | openai
        config = config_of(("mistral-7b",), {"kind": "openai", "openai": section})
        engine, heard = make_engine(config, config.agents[0]), Listening()
        await engine.start(heard)
        try:
            yield heard
        finally:
            await engine.stop()

    async def test_a_server_that_comes_later_is_waited_for(self):
        port = free_ports(1)
        async with self.listening(port) as heard:
            [down] = heard.events
            assert isinstance(down, EngineDown)
            assert "engine.openai.base_url: no server answers" in down.reason
            runner, _ = await serving(FakeServer("mistral-7b"), port)
            await heard.until(EngineReady)
            await runner.cleanup()
            await heard.until(EngineDown, 2)

    async def test_each_trouble_of_a_server_is_told_once(self):
        server = FakeServer("another")
        server.healthy = False
        runner, port = await serving(server)
        async with self.listening(port) as heard:
            async with asyncio.timeout(10):
                while server.asked < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert len(heard.events) == 1
            server.healthy = True
            first, second = await heard.until(EngineDown, 2)
            assert "HTTP 503 at /health" in first.reason
            assert "models.mistral-7b.path" in second.reason
            server.model = "mistral-7b"
            await heard.until(EngineReady)
            assert [type(one) for one in heard.events] == [EngineDown, EngineDown, EngineReady]
        await runner.cleanup()

    @pytest.mark.parametrize(
        ("openai", "words"),
        [
            (
                {"api_key": "old"},
                r"agents\.agent\.engine\.openai\.api_key: .*/v1/models .*HTTP 401",
            ),
            ({"api_key": "good", "health_path": "/ok"}, r"openai\.health_path: .*/ok .*HTTP 404"),
        ],
    )
    async def test_what_waiting_cannot_mend_is_an_error_at_the_start(
        self, openai: dict[str, str], words: str
    ):
        server = FakeServer("mistral-7b")
        server.api_key = "good"
        runner, port = await serving(server)
        with pytest.raises(QlmError, match=words):
            async with self.listening(port, **openai):
                pass
        await runner.cleanup()

    async def test_a_key_that_is_refused_later_is_not_held_against_requests(self):
        async with OpenAIHarness.started() as harness:
            harness.server.api_key = "new"
            harness.engine.submit(harness.job("a", 5))
            assert isinstance(await harness.heard.end_of("a"), JobLost)

    async def test_an_address_may_be_written_as_clients_of_openai_do(self):
        runner, port = await serving(FakeServer("mistral-7b"))
        async with self.listening(port, base_url=f"http://127.0.0.1:{port}/v1/") as heard:
            assert isinstance(heard.events[0], EngineReady)
        await runner.cleanup()


class TestVllm:
    async def test_a_crash_is_followed_by_a_restart(self):
        async with VllmHarness.started() as harness:
            await harness.crash()
            await harness.heard.until(EngineDown)
            ready = (await harness.heard.until(EngineReady, 2))[-1]
            assert isinstance(ready, EngineReady)
            assert dict(ready.tiers)[ModelName("vicuna-13b")] is ModelTier.ASLEEP
            harness.engine.submit(harness.job("a", 5))
            assert isinstance(await harness.heard.end_of("a"), JobDone)

    @pytest.mark.parametrize(("health", "enough"), [(Health.ILL, 3), (Health.LATE, 6)])
    async def test_a_live_process_is_lost_only_after_several_checks_without_an_answer(
        self, monkeypatch: pytest.MonkeyPatch, health: Health, enough: int
    ):
        monkeypatch.setattr(vllm, "_WATCH_S", 0.01)
        async with VllmHarness.started() as harness:
            server = harness.engine._servers["mistral-7b"]  # type: ignore[attr-defined]
            real = server.health
            few = [health] * (enough - 1)
            answers = [Health.WELL, *few, Health.WELL, *few]
            checked = asyncio.Event()

            async def look() -> Health:
                if len(answers) == 1:
                    checked.set()
                return answers.pop(0) if answers else await real()

            monkeypatch.setattr(server, "health", look)
            harness.engine.submit(harness.job("a", 40))
            await checked.wait()
            assert isinstance(await harness.heard.end_of("a"), JobDone)
            assert not [one for one in harness.heard.events if isinstance(one, EngineDown)]
            answers += [*few, health]
            await harness.heard.until(EngineDown)
            await harness.heard.until(EngineReady, 2)

    async def test_a_process_that_hangs_is_ended_and_started_again(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(vllm, "_WATCH_S", 0.01)
        async with VllmHarness.started(stop_timeout_s=0.1) as harness:
            monkeypatch.setattr(vllm_server, "_HEALTH_TIMEOUT_S", 0.1)
            harness.engine.submit(harness.job("a", 1500))
            await harness.heard.until(JobOutput, id="a")
            pid = harness.engine._awake._process.pid  # type: ignore[attr-defined]
            os.kill(pid, signal.SIGSTOP)
            assert isinstance(await harness.heard.end_of("a"), JobLost)
            await harness.heard.until(EngineReady, 2)
            assert not os.path.exists(f"/proc/{pid}")
            harness.engine.submit(harness.job("b", 5))
            assert isinstance(await harness.heard.end_of("b"), JobDone)

    async def test_metrics_that_are_not_answered_leave_the_capacity_unknown(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(vllm_server, "_HEALTH_TIMEOUT_S", 0.1)
        section = {"env": {"FAKE_VLLM_METRICS": "silent"}, "stop_timeout_s": 0.1}
        async with VllmHarness.started(**section) as harness:
            first, _ = harness.engine.profiles
            assert first.kv_cache_tokens == vllm._KV_CACHE_TOKENS_ASSUMED
            await harness.crash()
            await harness.heard.until(EngineReady, 2)

    async def test_an_unexpected_error_ends_neither_the_watch_nor_a_restart(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.setattr(vllm, "_WATCH_S", 0.01)
        async with VllmHarness.started() as harness:
            server = harness.engine._servers["mistral-7b"]  # type: ignore[attr-defined]
            self.fail_once(monkeypatch, server, "health")
            self.fail_once(monkeypatch, server, "kv_cache_tokens")
            async with asyncio.timeout(10):
                while "vllm watch failed" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await harness.crash()
            await harness.heard.until(EngineReady, 2)
            assert "vllm restart failed" in caplog.text

    async def test_a_swap_that_fails_unexpectedly_is_answered_and_recovered_from(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        async with VllmHarness.started() as harness:
            server = harness.engine._servers["vicuna-13b"]  # type: ignore[attr-defined]
            self.fail_once(monkeypatch, server, "wake")
            harness.engine.swap(ModelName("vicuna-13b"))
            [failed] = await harness.heard.until(SwapFailed)
            assert isinstance(failed, SwapFailed)
            assert "not foreseen" in failed.reason
            ready = (await harness.heard.until(EngineReady, 2))[-1]
            assert isinstance(ready, EngineReady)
            assert ready.awake == "mistral-7b"

    def fail_once(self, monkeypatch: pytest.MonkeyPatch, server: object, method: str) -> None:
        real = getattr(server, method)

        async def fails() -> object:
            monkeypatch.setattr(server, method, real)
            raise RuntimeError("not foreseen")

        monkeypatch.setattr(server, method, fails)

    async def test_takes_its_capacity_and_swap_times_from_what_it_saw(self):
        async with VllmHarness.started() as harness:
            first, second = harness.engine.profiles
            assert first.kv_cache_tokens == 32768
            assert first.max_num_seqs == 16
            assert 0 < first.cold_s < 10
            for profile in (first, second):
                assert 0 < profile.sleep_s < 1
                assert 0 < profile.wake_s < 1

    async def test_without_sleep_a_swap_restarts(self):
        async with VllmHarness.started(sleep_mode=False) as harness:
            harness.engine.swap(ModelName("vicuna-13b"))
            ready = (await harness.heard.until(EngineReady, 2))[-1]
            assert isinstance(ready, EngineReady)
            assert dict(ready.tiers) == {
                "mistral-7b": ModelTier.COLD,
                "vicuna-13b": ModelTier.AWAKE,
            }

    async def test_a_model_that_does_not_load_is_a_clear_error(self):
        command = VllmHarness.command
        section = {"command": command, "port_base": free_ports(1), "max_num_seqs": 4}
        config = config_of(
            ("mistral-7b",),
            {"kind": "vllm", "vllm": section},
            paths={"mistral-7b": "does-not-load"},
        )
        engine = make_engine(config, config.agents[0])
        with pytest.raises(QlmError, match="'vllm serve' ended with code 3; see run/"):
            await engine.start(Listening())

    async def test_a_command_that_is_not_there_is_a_clear_error(self):
        section = {"command": ["no-such-vllm"], "port_base": free_ports(1)}
        config = config_of(("mistral-7b",), {"kind": "vllm", "vllm": section})
        engine = make_engine(config, config.agents[0])
        with pytest.raises(QlmError, match=r"cannot run 'no-such-vllm'.*Install vLLM"):
            await engine.start(Listening())

    async def test_it_sees_the_gpus_that_it_was_given(self, tmp_path):
        told = tmp_path / "told"
        server = tmp_path / "server"
        server.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" > {told}\nexit 3\n')
        server.chmod(0o700)
        section = {"command": [str(server)], "port_base": free_ports(1)}
        config = Config.from_mapping(
            {
                "agents": [
                    {
                        "name": "pair",
                        "host": "gpu-1",
                        "models": ["mistral-7b"],
                        "instances": 2,
                        "tensor_parallel": 2,
                        "engine": {"kind": "vllm", "vllm": section},
                    }
                ]
            }
        )
        engine = make_engine(config, config.agents[1])
        with pytest.raises(QlmError, match="ended with code 3"):
            await engine.start(Listening())
        devices, _, line = told.read_text().partition(" ")
        assert devices == "2,3"
        assert "--tensor-parallel-size 2" in line
        assert f"--port {section['port_base'] + 1}" in line

    async def test_stop_leaves_no_process(self):
        async with VllmHarness.started() as harness:
            servers = harness.engine._servers.values()  # type: ignore[attr-defined]
            pids = [server._process.pid for server in servers]
        assert len(pids) == 2
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert os.getpid() not in pids


CHILD = "import time; print('up', flush=True); time.sleep(60)"
PARENT = """
import asyncio, os, sys
async def main():
    tied = (sys.executable, "-I", sys.argv[1], str(os.getpid()), sys.executable, "-c")
    child = await asyncio.create_subprocess_exec(*tied, sys.argv[2])
    print(child.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells children of their parent's death"
)
async def test_what_is_tethered_ends_with_its_parent():
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, tether.__file__, CHILD), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    # Both have said something: the child is what it is to become.
    first, second = await parent.stdout.readline(), await parent.stdout.readline()
    assert b"up\n" in (first, second)
    parent.kill()
    async with asyncio.timeout(10):
        # The pipe ends once nobody is left to write to it: neither parent nor child.
        assert await parent.stdout.read() == b""
        await parent.wait()


class TestSim:
    def test_scaled_time_scales_every_duration(self):
        real = find_profile("mistral-7b", "a100")
        fast = scaled(real, 10.0)
        kwargs = {"prefill_tokens": 500, "decode_batch": 20, "context_tokens": 9000}
        assert fast.iteration_s(**kwargs) == pytest.approx(real.iteration_s(**kwargs) / 10)
        assert fast.wake_s == pytest.approx(real.wake_s / 10)
        assert fast.kv_cache_tokens == real.kv_cache_tokens

    async def test_zero_delay_answers_at_once_with_a_chunk_for_each_token(self):
        async with SimHarness.started(zero_delay=True) as harness:
            harness.engine.submit(harness.job("a", 7))
            await harness.heard.end_of("a")
            assert [type(one) for one in harness.heard.of("a")] == [JobOutput] * 7 + [JobDone]

    async def test_a_prompt_that_leaves_no_room_is_refused(self):
        async with SimHarness.started() as harness:
            harness.engine.submit(harness.job("a", 7, prompt="word " * 4000))
            end = await harness.heard.end_of("a")
            assert isinstance(end, JobRefused)
            assert "This model's maximum context length is" in end.error

    def test_token_text_is_plain_json_text_and_differs_by_request(self):
        assert token_text("a", 3) != token_text("b", 3)
        assert all(char.isalnum() or char in " ." for char in token_text('any "id"', 12))


class TestTiers:
    def made(self, *sizes: int, limit: int) -> Tiers:
        from dataclasses import replace

        profiles = [
            replace(profile(f"m{index}"), weights_bytes=size) for index, size in enumerate(sizes)
        ]
        return Tiers(profiles, limit)

    def test_what_does_not_fit_makes_room_by_dropping_sleepers(self):
        tiers = self.made(10, 10, 10, limit=20)
        tiers.set(ModelName("m0"), ModelTier.AWAKE)
        assert tiers.fits(ModelName("m1"))
        tiers.set(ModelName("m1"), ModelTier.ASLEEP)
        assert not tiers.fits(ModelName("m2"))
        assert tiers.to_drop(ModelName("m2")) == ["m1"]

    def test_what_comes_soonest_is_dropped_last(self):
        tiers = self.made(10, 10, 10, 10, limit=30)
        for name in ("m0", "m1", "m2"):
            tiers.set(ModelName(name), ModelTier.ASLEEP)
        keep = (ModelName("m1"), ModelName("m0"))
        assert tiers.to_drop(ModelName("m3"), keep) == ["m2"]
        tiers.set(ModelName("m2"), ModelTier.AWAKE)
        assert tiers.to_drop(ModelName("m3"), keep) == ["m0"]
