"""Secrets do not show themselves: in no form of the configuration, no message, no log and no error."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.engines import make_engine
from agents.engines.faults import unsaid
from qlm import config_file
from qlm.__main__ import main
from qlm_core.config import Config
from qlm_core.errors import ConfigError, QlmError
from qlm_core.secret import HIDDEN, Secret

CANARY = "canary-4711"
WHOLE: dict[str, Any] = {
    "auth": {"secret": f"{CANARY}-auth"},
    "solver": {"gurobi": {name: f"{CANARY}-{name}" for name in ("access_id", "secret", "license")}},
    "gateway": {"api_keys": {"alice": {"key": f"{CANARY}-alice"}}},
    "agents": [
        {
            "name": "a",
            "models": ["mistral-7b"],
            "engine": {
                "openai": {"api_key": f"{CANARY}-upstream"},
                "vllm": {
                    "command": ["vllm", "serve", f"--api_key={CANARY}-command"],
                    "args": [
                        *("--api-key", f"{CANARY}-1", f"{CANARY}-2"),
                        *("--max-num-batched-tokens", "512"),
                        *("--hf-token", f"{CANARY}-3", f"--api-key={CANARY}-4"),
                    ],
                    "env": {"HF_TOKEN": f"{CANARY}-env", "PLAIN": ""},
                },
            },
        }
    ],
}


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret(CANARY)
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", str([secret])):
        assert CANARY not in shown
        assert HIDDEN in shown
    for encode in (json.dumps, msgspec.json.encode, msgspec.msgpack.encode):
        with pytest.raises(TypeError):
            encode({"key": secret})
    with pytest.raises(TypeError):
        hash(secret)
    assert secret.reveal() == CANARY
    assert secret == Secret(CANARY) == CANARY
    assert secret not in (Secret("other"), "", None, 7)
    assert (bool(secret), bool(Secret())) == (True, False)
    # Plans are sought in other processes, which have to get their licence.
    assert copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret)) == CANARY


def test_no_form_of_the_configuration_shows_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = Config.from_mapping(WHOLE)
    listed = config_file.override(config, [f"gateway.api_keys=[{CANARY}-k1]"])
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(WHOLE))
    assert main(["config", "show", "--config", str(file)]) == 0
    assert main(["config", "check", "--config", str(file)]) == 0
    logging.getLogger("x").warning("read", extra={"config": config})
    forms = [repr(config), str(config.agents), config_file.to_yaml(config), repr(listed)]
    forms += [config_file.to_yaml(listed), json.dumps(config.to_mapping())]
    for shown in (*forms, capsys.readouterr().out, str(vars(caplog.records[-1]))):
        assert CANARY not in shown
    section = config.to_mapping()["agents"][0]["engine"]["vllm"]
    assert section["args"] == [
        *("--api-key", HIDDEN, HIDDEN),
        *("--max-num-batched-tokens", "512"),
        *("--hf-token", HIDDEN, f"--api-key={HIDDEN}"),
    ]
    assert section["env"] == {"HF_TOKEN": HIDDEN, "PLAIN": ""}


def test_the_whole_is_there_for_who_asks_for_it() -> None:
    config = Config.from_mapping(WHOLE)
    assert Config.from_mapping(config.to_mapping(redact=False)) == config
    assert json.dumps(config.to_mapping(redact=False)).count(CANARY) == 12


@pytest.mark.parametrize(
    "override",
    [
        f"gateway.api_keys=[{CANARY}",
        f"gateway.api_keys={CANARY}",
        f"auth.secret=[{CANARY}]",
        f"auth={CANARY}",
        f"gateway.api_keys=['{CANARY}\\n', {CANARY}\u00e9]",
        f"gateway.api_keys=[{CANARY}, {CANARY}]",
    ],
)
def test_complaints_do_not_repeat_one(override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_file.override(Config(), [override])
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\ncontent-length: nonsense\r\n\r\n",
        "what is not HTTP\r\n",
        # It sends back what it got, our key in the middle of it.
        "ECHO",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nECHO",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}ECHO",
        "",
    ],
)
async def test_the_upstreams_key_is_in_no_log_and_no_error(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.read(4096)
        writer.write(answer.encode().replace(b"ECHO", got))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    engine = {
        "kind": "openai",
        "openai": {"base_url": url, "api_key": CANARY, "dialect": "vllm"},
    }
    config = Config.from_mapping(
        {"agents": [{"name": "a", "models": ["mistral-7b"], "engine": engine}]}
    )
    heard: list[Any] = []
    with caplog.at_level(logging.DEBUG):
        made = make_engine(config, config.agents[0])
        try:
            await made.start(heard.append)
            await asyncio.sleep(0.3)
        except QlmError as error:
            heard.append(str(error))
        finally:
            await made.stop()
            server.close()
    assert caplog.records or heard
    for record in caplog.records:
        assert CANARY not in str(vars(record))
        assert CANARY not in (record.exc_text or "")
    assert CANARY not in str(heard)


def test_what_a_call_met_is_said_without_its_words() -> None:
    import aiohttp

    quoting = aiohttp.ClientPayloadError(f"400, message: {CANARY}")
    assert unsaid(quoting) == "ClientPayloadError"
    assert (
        unsaid(ConnectionResetError(104, CANARY))
        == "ConnectionResetError: Connection reset by peer"
    )
    assert unsaid(TimeoutError()) == "TimeoutError"
    assert unsaid(RuntimeError("not foreseen")) == "RuntimeError: not foreseen"
