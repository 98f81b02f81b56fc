"""The Helm chart: what it renders is valid for Kubernetes, its configuration for QLM, and each part of it finds the others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qlm import __main__ as face
from qlm import config_file
from qlm_core.config import Config
from qlm_core.config_doors import open_doors

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/qlm"
HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not installed")
VALUES = {"defaults": None, "simulated": "ci/simulated.yaml", "everything": "ci/everything.yaml"}
# Kinds of the Prometheus operator and of KEDA, which Kubernetes does not know.
_OPERATORS = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
KUBERNETES = "1.31"
Json = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run([HELM, *arguments], cwd=CHART, capture_output=True, text=True)


def rendered(name: str, *more: str) -> list[Json]:
    values = VALUES[name]
    given = [] if values is None else ["--values", values]
    ran = helm("template", "prod", ".", "--namespace", "llm", *given, *more)
    assert ran.returncode == 0, ran.stderr
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


@pytest.fixture(params=VALUES)
def documents(request: pytest.FixtureRequest) -> list[Json]:
    return rendered(request.param)


def of_kind(documents: list[Json], *kinds: str) -> list[Json]:
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[Json], kind: str, name: str) -> Json:
    [found] = [one for one in of_kind(documents, kind) if one["metadata"]["name"] == name]
    return found


def workloads(documents: list[Json]) -> list[Json]:
    return of_kind(documents, "Deployment", "StatefulSet")


def pod(workload: Json) -> Json:
    return dict(workload["spec"]["template"]["spec"])


def container(workload: Json) -> Json:
    [only] = pod(workload)["containers"]
    return dict(only)


def pod_names(workload: Json) -> list[str]:
    name = workload["metadata"]["name"]
    return [f"{name}-{number}" for number in range(workload["spec"].get("replicas", 1))]


def chosen(documents: list[Json], labels: Json) -> list[Json]:
    """The workloads whose pods have all of these labels."""
    return [
        one
        for one in workloads(documents)
        if labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()
    ]


def configuration(documents: list[Json], workload: Json) -> Config:
    """What a pod of a workload reads, with the variables that it has, and no others."""
    arguments = container(workload)["args"]
    at = " ".join(arguments).replace("=", " ").split("--config ")[1].split()[0]
    [config_map] = of_kind(documents, "ConfigMap")
    environ = {
        one["name"]: f"secret-{one['name']}-0123456789"
        for one in container(workload)["env"]
        if "secretKeyRef" in one["valueFrom"]
    }
    return config_file.parse(config_map["data"][Path(at).name], environ=environ)


# --------------------------------------------------------------------------- without helm


@pytest.mark.parametrize("file", ["values.yaml", "ci/simulated.yaml", "ci/everything.yaml"])
def test_values_are_as_their_schema_has_them(file: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values | yaml.safe_load((CHART / file).read_text()), schema)
    for wrong in ({"tenants": {}}, {"agents": [{"name": "A B"}]}, {"image": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | wrong, schema)


def test_every_value_has_a_reader() -> None:
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    templates = templates.replace("$section", ".Values.gateway").replace("$group", "agents")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, value in values.items():
        assert f".Values.{name}" in templates, name
        for key in value if isinstance(value, dict) and name not in ("tenants", "log") else ():
            # Where a whole section is handed on, its keys are read there.
            assert re.search(rf"\.{key}\b", templates), f"{name}.{key}"


def test_its_rules_are_those_of_prometheus() -> None:
    rules = CHART.parents[1] / "prometheus/rules.yml"
    assert (CHART / "rules.yml").read_text() == rules.read_text(), f"copy {rules} there"


# --------------------------------------------------------------------------- with helm


@needs_helm
@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_wrong(name: str) -> None:
    values = VALUES[name]
    ran = helm("lint", ".", "--strict", *([] if values is None else ["--values", values]))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_helm
def test_it_is_valid_for_kubernetes(documents: list[Json]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="the dev extra has it")
    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)
    for document in documents:
        if document["kind"] not in _OPERATORS:
            validate.validate(document, KUBERNETES, strict=True)


@needs_helm
def test_every_part_reads_a_configuration_that_is_sound_and_shut(documents: list[Json]) -> None:
    for workload in workloads(documents):
        config = configuration(documents, workload)
        assert not config.insecure
        assert list(open_doors(config)) == []
        command, *arguments = container(workload)["args"]
        words = [command, *arguments]
        if command == "agent":
            words = [word.replace("$(POD_NAME)", "x") for word in words]
        face._parser(command).parse_args(words)
        overrides = [one.removeprefix("--set=") for one in arguments if one.startswith("--set=")]
        for name in pod_names(workload):
            told = [one.replace("$(POD_NAME)", name) for one in overrides]
            seen = config_file.override(config, told)
            if command == "gateway":
                assert seen.gateway.id == name


@needs_helm
def test_agents_have_the_names_of_their_pods_and_reach_the_solver(documents: list[Json]) -> None:
    agents = chosen(documents, {"app.kubernetes.io/component": "agent"})
    assert agents
    for workload in agents:
        config = configuration(documents, workload)
        known = {agent.name: agent for agent in config.agents}
        group = workload["metadata"]["labels"]["qlm/group"]
        for name in pod_names(workload):
            assert known[name].gpu == group
            assert_reached(documents, known[name].solver)
    for workload in chosen(documents, {"app.kubernetes.io/component": "gateway"}):
        assert_reached(documents, configuration(documents, workload).gateway.solver)
        [advertised] = [one for one in container(workload)["args"] if "advertise" in one]
        address = advertised.rpartition("=")[2]
        # $(POD_NAME).SERVICE.NAMESPACE.svc:PORT, of the service that names its pods.
        _, service, _ = address.split(".", 2)
        assert service == workload["spec"]["serviceName"]
        assert_reached(documents, address.split(".", 1)[1])


def assert_reached(documents: list[Json], address: str) -> None:
    """That a Service has the port, and pods behind it that listen there."""
    host, _, port = address.rpartition(":")
    service_name, namespace, kind = host.split(".")
    assert (namespace, kind) == ("llm", "svc")
    service = named(documents, "Service", service_name)
    [target] = [one["targetPort"] for one in service["spec"]["ports"] if one["port"] == int(port)]
    behind = chosen(documents, service["spec"]["selector"])
    assert behind
    for workload in behind:
        ports = {one["name"]: one["containerPort"] for one in container(workload)["ports"]}
        config = configuration(documents, workload)
        listeners = {
            config.solver.listen,
            config.solver.metrics_listen,
            config.gateway.http_listen,
            config.gateway.grpc_listen,
            config.gateway.agents_listen,
            *(agent.metrics_listen for agent in config.agents),
        }
        assert f"0.0.0.0:{ports[target]}" in listeners


@needs_helm
def test_services_and_budgets_have_pods_behind_them(documents: list[Json]) -> None:
    for service in of_kind(documents, "Service"):
        behind = chosen(documents, service["spec"]["selector"])
        assert behind, service["metadata"]["name"]
        for workload in behind:
            ports = {one["name"] for one in container(workload)["ports"]}
            assert {one["targetPort"] for one in service["spec"]["ports"]} <= ports
    for other in of_kind(documents, "PodDisruptionBudget"):
        assert chosen(documents, other["spec"]["selector"]["matchLabels"])
    for policy in of_kind(documents, "NetworkPolicy"):
        [workload, *_] = chosen(documents, policy["spec"]["podSelector"]["matchLabels"])
        named_ports = {one["name"] for one in container(workload)["ports"]}
        told = {one["port"] for rule in policy["spec"]["ingress"] for one in rule["ports"]}
        assert told == named_ports


@needs_helm
def test_pods_may_little_and_are_probed(documents: list[Json]) -> None:
    for workload in workloads(documents):
        assert pod(workload)["securityContext"]["runAsNonRoot"] is True
        assert pod(workload)["automountServiceAccountToken"] is False
        only = container(workload)
        assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not only["image"].endswith((":latest", ":"))
        ports = {one["name"] for one in only["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            how = only[probe].get("tcpSocket") or only[probe]["httpGet"]
            assert how["port"] in ports
        volumes = {one["name"] for one in pod(workload)["volumes"]}
        claims = workload["spec"].get("volumeClaimTemplates", ())
        volumes |= {one["metadata"]["name"] for one in claims}
        assert {one["name"] for one in only["volumeMounts"]} == volumes


@needs_helm
def test_a_stop_gets_the_time_that_it_takes(documents: list[Json]) -> None:
    for workload in workloads(documents):
        config = configuration(documents, workload)
        component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
        takes_s = {
            "solver": 5.0,
            "gateway": config.gateway.drain_s + 5,
            "agent": max(
                (one.drain_s + one.engine.vllm.stop_timeout_s for one in config.agents), default=0
            ),
        }[component]
        assert pod(workload)["terminationGracePeriodSeconds"] > takes_s


@needs_helm
def test_keys_go_where_they_are_needed_and_nowhere_else() -> None:
    documents = rendered("everything")
    [secret] = of_kind(documents, "Secret")
    assert set(secret["data"]) == {"auth", "admin", "alice.b"}
    for workload in workloads(documents):
        taken = {
            one["valueFrom"]["secretKeyRef"]["key"]
            for one in container(workload)["env"]
            if "secretKeyRef" in one["valueFrom"]
        }
        gateway = workload["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
        assert taken == {"auth", "admin", *(["alice.b"] if gateway else [])}
    [config_map] = of_kind(documents, "ConfigMap")
    assert "an-operators-key" not in json.dumps(config_map)
    for monitor in of_kind(documents, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["authorization"]["credentials"] == {
                "name": secret["metadata"]["name"],
                "key": "admin",
            }


@needs_helm
def test_monitors_find_every_part() -> None:
    documents = rendered("everything")
    seen: list[str] = []
    for monitor in of_kind(documents, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        [service] = [
            one
            for one in of_kind(documents, "Service")
            if labels.items() <= one["metadata"]["labels"].items()
        ]
        ports = {one["name"] for one in service["spec"]["ports"]}
        assert {one["port"] for one in monitor["spec"]["endpoints"]} <= ports
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]].startswith("qlm")
        seen += [one["metadata"]["name"] for one in chosen(documents, service["spec"]["selector"])]
    assert sorted(seen) == sorted(one["metadata"]["name"] for one in workloads(documents))
    [rule] = of_kind(documents, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "rules.yml").read_text())


@needs_helm
def test_autoscalers_go_by_what_the_solver_says() -> None:
    documents = rendered("everything")
    [scaled] = of_kind(documents, "ScaledObject")
    target = named(documents, "StatefulSet", scaled["spec"]["scaleTargetRef"]["name"])
    # Whoever scales it says how many there are, at an upgrade too.
    assert "replicas" not in target["spec"]
    assert "replicas" in named(documents, "StatefulSet", "prod-qlm-a10")["spec"]
    config = configuration(documents, target)
    mine = [one for one in config.agents if one.name.startswith(target["metadata"]["name"])]
    assert scaled["spec"]["minReplicaCount"] == 2
    assert scaled["spec"]["maxReplicaCount"] == len(mine) == 4
    [trigger] = scaled["spec"]["triggers"]
    [(metric, gpu)] = re.findall(r'(qlm_\w+)\{gpu="(\w+)"\}', trigger["metadata"]["query"])
    assert metric == "qlm_instances_needed"
    assert {one.gpu for one in mine} == {gpu}
    # A count for each unit of the threshold: the metric is the number of pods.
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "1")
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"]["serverAddress"] == "http://prometheus-operated.monitoring:9090"
    behaviour = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 900


@needs_helm
@pytest.mark.parametrize(
    ("setting", "blamed"),
    [
        ("tenants.admin.operator=false", "tenants"),
        ("agents[0].name=Big_GPU", "agents"),
        ("gateway.replicas=0", "replicas"),
    ],
)
def test_what_makes_no_sense_is_refused(setting: str, blamed: str) -> None:
    ran = helm("template", ".", "--set", setting)
    assert ran.returncode != 0
    assert blamed in ran.stderr


@needs_helm
def test_scaling_needs_somewhere_to_ask() -> None:
    ran = helm("template", ".", "--values=ci/everything.yaml", "--set=autoscaling.prometheus=")
    assert ran.returncode != 0
    assert "autoscaling.prometheus is missing" in ran.stderr
