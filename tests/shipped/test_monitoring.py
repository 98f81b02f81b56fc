"""Dashboards, rules and the compose file: what they ask for is there, and what they say is sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus/rules.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool: `apt-get install prometheus`"
)
# What else a query may name: Prometheus' own.
_OWN = {"up"}


def promtool(*arguments: str, given: str | None = None) -> None:
    assert PROMTOOL is not None
    ran = subprocess.run(
        [PROMTOOL, *arguments], cwd=RULES.parent, input=given, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # It says what it finds doubtful on standard error, and ends well all the same.
    assert not ran.stderr.strip(), ran.stderr


def documented() -> dict[str, set[str]]:
    """The labels of each metric, as docs/metrics.md has them."""
    lines = re.findall(
        r"^\| `(qlm_\w+)` \| \w+ \| ([\w, ]*) ?\|",
        (ROOT / "docs/metrics.md").read_text(),
        re.MULTILINE,
    )
    return {name: set(filter(None, re.split(r"[, ]+", labels))) for name, labels in lines}


def labels_of(scraped: Mapping[str, str]) -> dict[str, set[str]]:
    """The labels of every metric of any part, by the name that a query has for it."""
    found: dict[str, set[str]] = {}
    told = documented()
    for text in scraped.values():
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue
            endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            for ending in endings.get(family.type, ("",)):
                total = "_total" if family.type == "counter" else ""
                found[family.name + ending] = {*told[family.name + total]}
                if ending == "_bucket":
                    found[family.name + ending].add("le")
            for sample in family.samples:
                assert found[sample.name] >= set(sample.labels), sample.name
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def dashboard_queries(file: Path) -> Iterator[str]:
    told = json.loads(file.read_text())
    for panel in told["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in told["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


QUERIES = [
    *((file.stem, query) for file in DASHBOARDS for query in dashboard_queries(file)),
    *(("rules", rule["expr"]) for rule in rules()),
]


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_every_metric_and_label_that_is_asked_for_exists(
    where: str, query: str, scraped: Mapping[str, str]
) -> None:
    known = labels_of(scraped)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    plain = query
    for name in recorded:
        plain = plain.replace(name, "")
    asked = re.findall(r"\b(qlm_[a-z0-9_]+|up)\b(\{[^}]*\})?", plain)
    assert asked or plain != query
    for name, matchers in asked:
        assert name in known or name in _OWN, f"no part publishes {name}"
        for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers):
            labels = known.get(name, set())
            assert label in labels | {"job", "instance"}, f"{name} has no label {label}"
    for by in re.findall(r"by \(([^)]*)\)", query):
        for label in by.split(","):
            everywhere = {one for labels in known.values() for one in labels}
            assert label.strip() in everywhere | {"instance", "job"}, label


@pytest.mark.parametrize("part", ["gateway", "solver", "agent"])
@needs_promtool
def test_metrics_are_as_prometheus_wants_them(part: str, scraped: Mapping[str, str]) -> None:
    promtool("check", "metrics", given=scraped[part])


@needs_promtool
def test_rules_are_sound_and_alerts_come_when_they_should() -> None:
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules_test.yml")
    promtool("check", "config", "prometheus.yml")


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 10
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_dashboards_are_as_they_are_built(tmp_path: Path) -> None:
    """`deploy/grafana/build.py` writes them."""
    program = f"import build, pathlib; build.FOLDER = pathlib.Path({str(tmp_path)!r}); build.main()"
    subprocess.run([sys.executable, "-c", program], cwd=DEPLOY / "grafana", check=True)
    assert [file.name for file in DASHBOARDS] == sorted(file.name for file in tmp_path.iterdir())
    for file in DASHBOARDS:
        assert (tmp_path / file.name).read_text() == file.read_text(), "run deploy/grafana/build.py"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_do_not_overlap_and_fit_the_width(file: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    panels = json.loads(file.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
