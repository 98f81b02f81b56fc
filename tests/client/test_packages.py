"""What is in the wheels: the client alone and typed, and the server with its commented configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OURS = ("qlm", "qlm_core", "solver", "gateway", "agents", "protos", "failpoints")


def wheel_of(folder: Path, out: Path) -> zipfile.ZipFile:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return wheel_of(ROOT / "client", tmp_path_factory.mktemp("client"))


def test_the_client_is_one_typed_package_with_two_dependencies(client: zipfile.ZipFile) -> None:
    names = [name for name in client.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"qlm_client"}
    assert "qlm_client/py.typed" in names
    assert "qlm_client/wire/client_service_pb2.pyi" in names
    (about,) = (name for name in client.namelist() if name.endswith("/METADATA"))
    said = Parser().parsestr(client.read(about).decode())
    wanted = {text.split(">")[0].split("<")[0] for text in said.get_all("Requires-Dist", [])}
    assert wanted == {"grpcio", "protobuf"}
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert said.get_all("Project-URL")


def test_the_client_needs_nothing_of_the_server(client: zipfile.ZipFile, tmp_path: Path) -> None:
    client.extractall(tmp_path)
    # Whoever is called as our packages are called is not looked at.
    for name in OURS:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is another')\n")
    program = (
        "import sys, qlm_client; from google.protobuf import descriptor_pool\n"
        f"assert not set(sys.modules) & {set(OURS)!r}, sys.modules\n"
        "assert not {'numpy', 'msgspec', 'aiohttp'} & set(sys.modules)\n"
        "pool = descriptor_pool.Default()\n"
        "pool.FindMessageTypeByName('qlm_client.v1.NewRequest')\n"
        "try: pool.FindMessageTypeByName('qlm.v1.NewRequest')\n"
        "except KeyError: print('alone')"
    )
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("alone\n", "")


def test_the_server_brings_its_commented_configuration(tmp_path: Path) -> None:
    wheel = wheel_of(ROOT, tmp_path)
    names = wheel.namelist()
    assert wheel.read("qlm/config.yaml") == (ROOT / "config.yaml").read_bytes()
    assert not [name for name in names if name.startswith(("qlm_client", "client", "tests"))]
    (about,) = (name for name in names if name.endswith("/METADATA"))
    said = Parser().parsestr(wheel.read(about).decode())
    assert said.get_all("Project-URL")
    assert "Programming Language :: Python :: 3.13" in said.get_all("Classifier", [])


def test_the_commented_configuration_is_printed() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "qlm", "config", "example"], capture_output=True, text=True, cwd=ROOT
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (ROOT / "config.yaml").read_text()
    assert yaml.safe_load(shown.stdout)["port_base"] == 7400


def test_what_is_made_by_copying_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "client" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
