"""Certificates are renewed while a fleet serves: open sessions go on, new ones use what the files hold then."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from cryptography import x509

from protos.certificates import Revoked, fingerprint_of
from protos.doors import Doors
from protos.identity import SOLVER, Part, Role, part_of
from protos.qlm.v1 import work_service_pb2_grpc as work_grpc
from qlm.__main__ import main
from qlm.client import AsyncClient
from qlm.replay import require_gateway
from qlm.trust import https
from qlm_core.errors import QlmError
from solver.service import make_server
from tests.doors import beds
from tests.doors.beds import AGENT as AGENT_0
from tests.doors.beds import ALICE, GATEWAY, OTHER
from tests.gateway.peers import soon


def with_clients_tls(folder: Path) -> dict[str, Any]:
    return {"tls": {"cert": f"{folder}/clients.crt", "key": f"{folder}/clients.key"}}


async def shown_at(address: str) -> str:
    """The fingerprint of the certificate that a listener shows."""
    host, _, port = address.rpartition(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return fingerprint_of(pem.encode())


def kept(folder: Path, name: str) -> str:
    return fingerprint_of((folder / f"{name}.crt").read_bytes())


def test_renewed_certificates_of_clients_say_the_hosts_that_they_said(tmp_path: Path) -> None:
    def hosts() -> list[str]:
        cert = x509.load_pem_x509_certificate((tmp_path / "clients.crt").read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(one.value) for one in names]

    beds.make_certificates(tmp_path, "new", "--host", "qlm.example.com", "--host", "10.0.0.6")
    first = hosts()
    assert {"qlm.example.com", "10.0.0.6"} < set(first)
    beds.make_certificates(tmp_path, "renew")
    assert sorted(hosts()) == sorted(first)
    beds.make_certificates(tmp_path, "renew", "clients", "--host", "new.example.com")
    assert sorted(hosts()) == sorted([*first, "new.example.com"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ca", "ca: only parts look at revoked.txt"),
        ("clients", "clients: only parts look at revoked.txt"),
        ("agent-nobody", "In this folder are: agent-agent-0, agent-agent-1, gateway-gateway-0"),
    ],
)
def test_what_nobody_would_look_at_is_not_revoked(
    name: str, told: str, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (certificates / "revoked.txt").read_bytes()
    assert main(["certs", "revoke", name, "--folder", str(certificates)]) == 2
    assert told in capsys.readouterr().err
    assert (certificates / "revoked.txt").read_bytes() == before


def test_the_check_names_files_that_are_missing_and_refuses_those_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beds.make_certificates(tmp_path / "certs", "new")
    file = tmp_path / "fleet.yaml"

    def check(certs: str, key: str = "{part}") -> tuple[int, str, str]:
        files = {"cert": f"{certs}/{{part}}.crt", "key": f"{certs}/{key}.key"}
        tls = {"ca": f"{certs}/ca.crt", **files, "revoked": f"{certs}/revoked.txt"}
        clients = {"cert": f"{certs}/clients.crt", "key": f"{certs}/clients.key"}
        engine = {"kind": "openai", "openai": {"base_url": "http://127.0.0.1:8000"}}
        agents = [beds.AGENTS[0] | {"engine": engine}]
        data = {"models": {"tiny": {}}, "agents": agents, "tls": tls, "gateway": {"tls": clients}}
        file.write_text(json.dumps(data))
        return main(["config", "check", str(file)]), *capsys.readouterr()

    there = str(tmp_path / "certs")
    status, said, _ = check(there)
    assert (status, said.count("\n")) == (0, 1)
    (tmp_path / "certs" / "solver.key").unlink()
    status, said, _ = check(there)
    assert status == 0
    assert said.endswith(f"needed where their parts run: {there}/solver.key\n")
    status, said, _ = check("nowhere")
    assert status == 0
    assert "nowhere/clients.crt, nowhere/clients.key, nowhere/ca.crt" in said
    assert said.endswith(" and 2 more\n")
    status, said, wrong = check(there, key="clients")
    assert (status, said, wrong.count("\n")) == (2, "", 1)
    assert "do not fit together" in wrong


def test_revoked_fingerprints_are_read_as_openssl_says_them_and_others_are_named(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pem = (certificates / "solver.crt").read_bytes()
    plain = fingerprint_of(pem)
    colons = ":".join(plain[at : at + 2] for at in range(0, 64, 2)).upper()
    file = tmp_path / "revoked.txt"
    for line in (plain, colons, f"sha256 Fingerprint={colons}", f"{plain}  # solver"):
        file.write_text(f"# a comment\n\n{line}\n")
        assert pem in Revoked(str(file))
    assert caplog.records == []
    file.write_text(f"# a comment\n{plain[:40]}\n")
    assert pem not in Revoked(str(file))
    assert [(one.levelname, vars(one)["line"]) for one in caplog.records] == [("ERROR", 2)]


async def test_every_listener_shows_the_renewed_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    beds.make_certificates(folder, "new")
    ca = (folder / "ca.crt").read_bytes()
    async with beds.shut(secret=True, certificates=folder, **with_clients_tls(folder)) as bed:
        listeners = {
            bed.at.http: "clients",
            bed.at.grpc: "clients",
            bed.at.agents: "gateway-gateway-0",
            bed.config.solver.listen: "solver",
        }
        async with bed.dial(bed.at.agents, AGENT_0, GATEWAY) as channel:
            stream = work_grpc.WorkServiceStub(channel).Work(metadata=beds.told(beds.SECRET))
            await stream.write(beds.work_hello(AGENT_0.name))
            await soon(lambda: bed.gateway.driver._agents)
            seen = []
            for turn in range(3):
                shown = {address: await shown_at(address) for address in listeners}
                assert shown == {at: kept(folder, name) for at, name in listeners.items()}
                seen.append(shown)
                async with AsyncClient(bed.at.grpc, api_key=ALICE, ca=f"{folder}/ca.crt") as client:
                    assert [one async for one in client.open_requests()] == []
                assert await models_at(bed.at.http, folder) == ["tiny", "other"]
                assert not stream.done(), turn
                beds.make_certificates(folder, "renew")
            assert len({one[bed.at.agents] for one in seen}) == 3
            assert (folder / "ca.crt").read_bytes() == ca
            stream.cancel()


async def models_at(address: str, folder: Path) -> list[str]:
    headers = {"authorization": f"Bearer {ALICE}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"https://{address}/v1/models", ssl=https(f"{folder}/ca.crt"), headers=headers
        ) as answer,
    ):
        return [one["id"] for one in (await answer.json())["data"]]


async def test_a_gateway_comes_back_to_its_solver_with_its_new_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    beds.make_certificates(folder, "new")
    async with beds.shut(secret=False, certificates=folder) as bed:
        await soon(lambda: bed.gateway._solver.connected)
        beds.make_certificates(folder, "revoke", "gateway-gateway-0")
        beds.make_certificates(folder, "renew", "gateway-gateway-0")
        await bed.solver.stop(None)
        await soon(lambda: not bed.gateway._solver.connected)
        doors = Doors(bed.config, SOLVER)
        again, _ = await make_server(bed.driver, bed.config.solver, doors, bed.rejections)
        await again.start()
        try:
            await soon(lambda: bed.gateway._solver.connected and bed.driver.manager.gateways)
            await bed.gateway._solver.view()
        finally:
            await again.stop(None)


async def test_what_does_not_fit_together_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "certs"
    beds.make_certificates(folder, "new")
    async with beds.shut(secret=False, certificates=folder) as bed:
        at = bed.at.agents
        before = await shown_at(at)
        files = [folder / f"gateway-gateway-0.{kind}" for kind in ("crt", "key")]
        cert, key = (file.read_bytes() for file in files)
        beds.make_certificates(folder, "renew", "gateway-gateway-0")
        renewed = files[1].read_bytes()
        for wrong in (key, b"no key"):
            files[1].write_bytes(wrong)
            assert await shown_at(at) == before
        files[1].unlink()
        assert await shown_at(at) == before
        said = [
            one for one in caplog.records if one.getMessage() == "certificates cannot be renewed"
        ]
        assert len(said) == 3
        files[1].write_bytes(renewed)
        assert await shown_at(at) == kept(folder, "gateway-gateway-0") != before
        assert cert != files[0].read_bytes()


def test_what_cannot_be_read_at_the_start_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    config = beds.config_of(False, folder)
    with pytest.raises(QlmError, match=r"^tls\.ca: .*/ca\.crt cannot be read: No such file"):
        Doors(config, GATEWAY)
    beds.make_certificates(folder, "new")
    with pytest.raises(QlmError, match=r"^tls\.cert: .*/agent-x%2Fy\.crt cannot be read"):
        Doors(config, Part(Role.AGENT, "x/y"))
    (folder / "gateway-gateway-0.key").write_bytes((folder / "solver.key").read_bytes())
    with pytest.raises(QlmError, match=r"^tls: .* do not fit together"):
        Doors(config, GATEWAY)
    (folder / "revoked.txt").unlink()
    with pytest.raises(QlmError, match=r"^tls\.revoked: .*/revoked\.txt cannot be read"):
        Doors(config, SOLVER)


def test_files_are_for_their_owner_and_names_are_what_parts_ask_for(certificates: Path) -> None:
    files = sorted(certificates.iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * len(files)
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    for part in (SOLVER, GATEWAY, AGENT_0, OTHER):
        cert = x509.load_pem_x509_certificate((certificates / f"{part.file}.crt").read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [part.host]
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [part.uri]
        assert part_of(part.uri) == part
        assert (cert.not_valid_after_utc - cert.not_valid_before_utc).days == 90


@pytest.mark.parametrize("name", ["a/b", "Größe 1", "a" * 80, "-a", "a.b", "%2F"])
def test_any_name_has_a_uri_a_host_and_a_file(name: str) -> None:
    part = Part(Role.AGENT, name)
    assert part_of(part.uri) == part
    assert "/" not in part.file
    label, rest = part.host.split(".", 1)
    assert rest == "agent.qlm"
    assert len(label) == 41
    assert label.isalnum()


@pytest.mark.parametrize(
    "uri", ["", "qlm://root/x", "qlm://agent/", "qlm://agent/a/b", "spiffe://agent/a"]
)
def test_any_other_uri_names_no_part(uri: str) -> None:
    assert part_of(uri) is None


async def test_a_client_without_the_ca_does_not_talk_to_the_gateway(
    certificates: Path, tmp_path: Path
) -> None:
    beds.make_certificates(tmp_path / "forged", "new")
    async with beds.shut(
        secret=True, certificates=certificates, **with_clients_tls(certificates)
    ) as bed:
        another = "no certificate of the CA is shown there. Name the gateway's CA by --ca"
        for ca, told in (
            ("", "the connection was closed at once. If the gateway has gateway.tls"),
            (f"{tmp_path}/forged/ca.crt", another),
            ("system", another),
        ):
            async with AsyncClient(bed.at.grpc, api_key=ALICE, ca=ca, timeout_s=5.0) as client:
                with pytest.raises(QlmError, match=told):
                    await client.cancel("x")
            with pytest.raises(QlmError, match=told):
                await require_gateway(f"{'https' if ca else 'http'}://{bed.at.http}", ca)
        with pytest.raises(QlmError, match=r"--ca: .* cannot be read"):
            AsyncClient(bed.at.grpc, ca="nowhere")
        async with grpc.aio.insecure_channel(bed.at.grpc) as channel:
            code = await beds.call(channel, f"/{beds.HEALTH}/Check")
            assert code is grpc.StatusCode.UNAVAILABLE
