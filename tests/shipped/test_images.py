"""Images and the compose file, as far as they can be tried without an engine: linted, pinned, their steps run in a venv."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlm import config_file, ports
from qlm_core.config import Config
from qlm_core.config_doors import is_loopback

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
HADOLINT = shutil.which(
    "hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
Steps = list[tuple[str, str]]
# What the site of the environment under test has is what a container would have installed.
SITE = sysconfig.get_paths()["purelib"]


def steps(image: Path) -> Steps:
    """Instructions with what they say, comments left out and lines put together."""
    lines = [line for line in image.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(words[0], " ".join(words[1].split())) for words in found]


def said(image: Path, instruction: str) -> list[str]:
    return [text for name, text in steps(image) if name == instruction]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (the dev extra)")
def test_nothing_is_found_by_the_linter(image: Path) -> None:
    assert HADOLINT is not None
    ran = subprocess.run(
        [HADOLINT, "--failure-threshold", "info", str(image)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_images_are_pinned_run_as_nobody_special_and_tell_their_health(image: Path) -> None:
    for base in said(image, "FROM"):
        tag = base.split()[0].partition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", tag), base
    user = said(image, "USER")[-1]
    assert all(int(number) >= 1000 for number in user.split(":"))
    assert len(said(image, "HEALTHCHECK")) == 1
    assert said(image, "STOPSIGNAL") == ["SIGTERM"]
    for copied in said(image, "COPY"):
        if "--from" not in copied:
            assert copied.split()[0] == "."


def test_what_is_left_out_of_a_build_is_not_needed_by_it() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert not set(packages) & set(left_out)
    assert "README.md" not in left_out
    assert ".git" in left_out


def as_built(folder: Path) -> Path:
    """The build stage of the image in an environment, without what is there already; gives the environment."""
    [made] = [text for text in said(ROOT / "deploy/docker/qlm.Dockerfile", "RUN") if "pip" in text]
    source, place = folder / "src", folder / "opt" / "qlm"
    left_out = (ROOT / ".dockerignore").read_text().split()
    patterns = [name.removeprefix("**/") for name in left_out]
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*patterns))
    command = made.replace("/opt/qlm", str(place)).replace("pip install", "pip install --no-deps")
    assert command.startswith("python -m venv ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": SITE}
    ran = subprocess.run(
        command, shell=True, cwd=source, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return place


@pytest.mark.processes
def test_its_steps_make_a_gateway_that_is_healthy_and_has_its_page(tmp_path: Path) -> None:
    place = as_built(tmp_path)
    image = ROOT / "deploy/docker/qlm.Dockerfile"
    environment = dict(
        pair.split("=", 1)
        for pair in said(image, "ENV")[0].replace("/opt/qlm", str(place)).split()
        if not pair.startswith("PATH=")
    )
    [http, grpc, agents] = ports.free_addresses(3)
    environment["QLM_HEALTH_URL"] = f"http://{http}/health"
    environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": SITE}
    assert (place / "numba").is_dir()
    settings = {"http_listen": http, "grpc_listen": grpc, "agents_listen": agents}
    arguments = [f"--set=gateway.{name}={value}" for name, value in settings.items()]
    # Where it is started there is no source of it.
    started = subprocess.Popen(
        [place / "bin" / "qlm", "gateway", *arguments, "--set=gateway.store.kind=memory"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    check = said(image, "HEALTHCHECK")[0].partition("CMD ")[2]
    words = [place / "bin" / "python", *json.loads(check)[1:]]
    try:
        for _ in range(100):
            ran = subprocess.run(words, env=environment, capture_output=True)
            if ran.returncode == 0:
                break
            assert started.poll() is None, started.stderr and started.stderr.read()
        assert ran.returncode == 0, ran.stderr
        for path in ("/ui", "/ui/page.js", "/ui/page.css", "/docs"):
            with urllib.request.urlopen(f"http://{http}{path}", timeout=10) as answer:
                assert answer.status == 200
    finally:
        started.terminate()
        started.communicate(timeout=30)
    assert subprocess.run(words, env=environment, capture_output=True).returncode != 0
    installed = [path for path in place.rglob("*") if "gateway/page" in str(path)]
    assert not any("source" in path.parts for path in installed)


# --------------------------------------------------------------------------- the compose file


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def container_config() -> Config:
    return config_file.current(str(ROOT / "deploy/compose/config.yaml"), ())


def test_the_compose_file_is_pinned_and_publishes_on_loopback_alone() -> None:
    services = compose()["services"]
    for name, service in services.items():
        if "image" in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
            assert "healthcheck" in service
        else:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for published in service["ports"]:
            assert published.startswith("127.0.0.1:"), name
        for volume in service["volumes"]:
            place = volume.split(":")[0]
            if place.startswith("."):
                assert (ROOT / place).exists(), place
            else:
                assert place in compose()["volumes"]
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert other in services


def test_prometheus_reads_every_part_that_the_container_has() -> None:
    config = container_config()
    told = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {
        target
        for job in told["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }
    listeners = [config.gateway.http_listen, config.solver.metrics_listen]
    listeners += [agent.metrics_listen for agent in config.agents]
    assert not any(is_loopback(address) for address in listeners)
    assert targets == {f"qlm:{address.rpartition(':')[2]}" for address in listeners}
    published = [port.split(":")[-1] for port in compose()["services"]["qlm"]["ports"]]
    assert {
        address.rpartition(":")[2]
        for address in (config.gateway.http_listen, config.gateway.grpc_listen)
    } == set(published)
    assert all(job["job_name"].startswith("qlm") for job in told["scrape_configs"])


def test_grafana_finds_its_dashboards_and_prometheus() -> None:
    service = compose()["services"]["grafana"]
    volumes = dict(volume.removesuffix(":ro").rsplit(":", 1) for volume in service["volumes"])
    places = {inside: ROOT / outside for outside, inside in volumes.items()}
    provider = yaml.safe_load(
        (places["/etc/grafana/provisioning"] / "dashboards/qlm.yml").read_text()
    )["providers"][0]
    dashboards = places[provider["options"]["path"]]
    home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file()
    source = yaml.safe_load(
        (places["/etc/grafana/provisioning"] / "datasources/prometheus.yml").read_text()
    )["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
