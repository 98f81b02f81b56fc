"""docs/autoscaling.md: its recipes are objects of their kinds, and ask for a metric that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlm import __main__ as face
from qlm.what_ifs import changes_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/autoscaling.md").read_text()
Json = dict[str, Any]


def recipes() -> dict[str, Json]:
    """The objects for Kubernetes in the page, by kind."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    documents = [one for block in blocks for one in yaml.safe_load_all(block)]
    return {one["kind"]: one for one in documents if "kind" in one}


def test_every_metric_that_is_named_is_documented() -> None:
    named = set(re.findall(r"qlm_\w+", TEXT))
    known = re.findall(r"^\| `(qlm_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert "qlm_instances_needed" in named
    assert named <= set(known)


def test_the_hpa_is_valid_and_takes_the_metric_for_the_number_of_pods() -> None:
    hpa = recipes()["HorizontalPodAutoscaler"]
    validate = pytest.importorskip("kubernetes_validate", reason="the dev extra has it")
    validate.validate(hpa, "1.31", strict=True)
    [metric] = hpa["spec"]["metrics"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert metric["external"]["metric"]["name"] == "qlm_instances_needed"


def test_the_recipe_of_keda_is_what_the_chart_renders() -> None:
    scaled = recipes()["ScaledObject"]["spec"]
    chart = (ROOT / "deploy/helm/qlm/templates/autoscaling.yaml").read_text()
    assert all(f"{key}:" in chart for key in (*scaled, *scaled["triggers"][0]["metadata"]))
    assert scaled["triggers"][0]["metricType"] == "AverageValue"


def test_the_commands_of_the_page_are_ones() -> None:
    lines = re.findall(r"^    (qlm whatif [^#\n]*)", TEXT, flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        _, *words = line.split()
        args = face._parser("whatif").parse_args(words)
        assert changes_of(args.add, args.remove)
