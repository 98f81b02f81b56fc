"""What the dashboards show: each panel in a few lines, in rows with titles. `build.py` makes them what Grafana reads."""

from __future__ import annotations

from dataclasses import dataclass

_OF = 'slo_class=~"$slo_class"'
_BOTH = f'model=~"$model",{_OF}'


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        queries: each with its legend.
        kind: Grafana's name of the kind of picture.
        width: of 24.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    thresholds: tuple[tuple[float | None, str], ...] = ()


@dataclass(frozen=True)
class Dashboard:
    """Panels in rows, each row with a title."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def _quantiles(metric: str, by: str, where: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (
            f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))",
            f"p{round(100 * share)} {{{{{by}}}}}",
        )
        for share in (0.5, 0.9, 0.99)
    )


_ATTAINED = (
    f"sum by (slo_class) (rate(qlm_slo_attained_total{{{_BOTH}}}[5m])) / "
    f'sum by (slo_class) (rate(qlm_requests_total{{{_BOTH},outcome!="cancelled"}}[5m]))'
)
_GOOD = ((None, "red"), (0.9, "orange"), (0.95, "green"))
_NONE_IS_GOOD = ((None, "green"), (1.0, "red"))

FLEET = Dashboard(
    uid="qlm-fleet",
    title="QLM fleet",
    rows=(
        (
            "At a glance",
            (
                Panel(
                    "Requests waiting",
                    (("sum(qlm_waiting_requests)", ""),),
                    kind="stat",
                    width=4,
                    height=4,
                ),
                Panel("Agents", (("max(qlm_agents)", ""),), kind="stat", width=4, height=4),
                Panel(
                    "Planned late",
                    (("max(qlm_plan_late_weight)", ""),),
                    text="Weighted requests that the plan in force has late: lateness before it happens.",
                    kind="stat",
                    width=4,
                    height=4,
                    thresholds=_NONE_IS_GOOD,
                ),
                Panel(
                    "Attainment, 5 min",
                    ((_ATTAINED, "{{slo_class}}"),),
                    unit="percentunit",
                    kind="stat",
                    width=8,
                    height=4,
                    thresholds=_GOOD,
                ),
                Panel(
                    "Solver sessions",
                    (("sum(qlm_solver_connected)", ""),),
                    kind="stat",
                    width=4,
                    height=4,
                ),
            ),
        ),
        (
            "Queues",
            (
                Panel(
                    "Waiting, by class",
                    ((f"sum by (slo_class) (qlm_waiting_requests{{{_BOTH}}})", "{{slo_class}}"),),
                    stacked=True,
                ),
                Panel(
                    "Waiting, by model",
                    ((f"sum by (model) (qlm_waiting_requests{{{_BOTH}}})", "{{model}}"),),
                    stacked=True,
                ),
                Panel(
                    "Age of the oldest waiting request",
                    (
                        (
                            f"max by (slo_class) (qlm_starvation_max_age_seconds{{{_OF}}})",
                            "{{slo_class}}",
                        ),
                    ),
                    unit="s",
                ),
            ),
        ),
        (
            "Instances",
            (
                Panel(
                    "Output tokens",
                    (
                        (
                            "sum by (instance) (rate(qlm_agent_output_tokens_total[$__rate_interval]))",
                            "{{instance}}",
                        ),
                    ),
                    unit="tokens/s",
                    stacked=True,
                ),
                Panel(
                    "Running requests",
                    (('sum by (instance) (qlm_agent_requests{state="running"})', "{{instance}}"),),
                ),
                Panel(
                    "KV cache free",
                    (("qlm_agent_kv_free_tokens", "{{instance}}"),),
                    unit="tokens",
                ),
                Panel(
                    "State",
                    (("sum by (state) (qlm_agent_state)", "{{state}}"),),
                    text="How many agents are in each state.",
                    stacked=True,
                ),
                Panel(
                    "Model changes and evictions",
                    (
                        ("sum(rate(qlm_agent_swaps_total[5m])) * 60", "changes a minute"),
                        ("sum(rate(qlm_agent_swaps_failed_total[5m])) * 60", "failed changes"),
                        (
                            'sum(rate(qlm_agent_returned_total{reason="evicted"}[5m])) * 60',
                            "evictions a minute",
                        ),
                    ),
                ),
                Panel(
                    "Engines lost",
                    (("increase(qlm_agent_engine_losses_total[15m])", "{{instance}}"),),
                    text="In 15 minutes.",
                ),
            ),
        ),
        (
            "Gateway",
            (
                Panel(
                    "Open requests",
                    (("sum by (phase) (qlm_requests_open)", "{{phase}}"),),
                    stacked=True,
                ),
                Panel(
                    "Refused, dropped and turned away",
                    (
                        (
                            "sum by (code) (rate(qlm_requests_refused_total[5m]))",
                            "refused {{code}}",
                        ),
                        (
                            "sum by (reason) (rate(qlm_requests_shed_total[5m]))",
                            "dropped {{reason}}",
                        ),
                        ("sum by (door) (rate(qlm_peers_rejected_total[5m]))", "at door {{door}}"),
                    ),
                    unit="reqps",
                ),
                Panel(
                    "Connections and memory",
                    (
                        ("sum by (state) (qlm_http_connections)", "connections {{state}}"),
                        ("sum by (budget) (qlm_held_bytes)", "bytes {{budget}}"),
                    ),
                ),
                Panel(
                    "Batches",
                    (
                        ("sum by (status) (qlm_batches_open)", "{{status}}"),
                        ("sum by (state) (qlm_batch_lines)", "lines {{state}}"),
                    ),
                ),
                Panel(
                    "Files",
                    (("sum(qlm_file_bytes)", "kept"),),
                    unit="bytes",
                ),
                Panel(
                    "What does not get through",
                    (
                        ("sum(qlm_store_ends_waiting)", "ends that wait for the store"),
                        ("sum(qlm_webhook_deliveries_waiting)", "webhooks that wait"),
                    ),
                ),
            ),
        ),
    ),
)

CLASSES = Dashboard(
    uid="qlm-classes",
    title="QLM service levels",
    rows=(
        (
            "Promises",
            (
                Panel(
                    "Attainment",
                    ((_ATTAINED, "{{slo_class}}"),),
                    unit="percentunit",
                    width=12,
                    thresholds=_GOOD,
                ),
                Panel(
                    "Requests ended",
                    (
                        (
                            f"sum by (outcome) (rate(qlm_requests_total{{{_BOTH}}}[$__rate_interval]))",
                            "{{outcome}}",
                        ),
                    ),
                    unit="reqps",
                    width=12,
                    stacked=True,
                ),
            ),
        ),
        (
            "Waits",
            (
                Panel(
                    "Time to first token",
                    _quantiles("qlm_request_ttft_seconds", "slo_class", _BOTH),
                    unit="s",
                ),
                Panel(
                    "Time in the queue",
                    _quantiles("qlm_request_queue_seconds", "slo_class", _BOTH),
                    unit="s",
                ),
                Panel(
                    "Time per output token",
                    _quantiles("qlm_request_tpot_seconds", "slo_class", _BOTH),
                    unit="s",
                ),
                Panel(
                    "Time to the end",
                    _quantiles("qlm_request_e2e_seconds", "slo_class", _BOTH),
                    unit="s",
                ),
                Panel(
                    "Evictions a request",
                    (
                        (
                            f"sum by (slo_class) (rate(qlm_request_evictions_total{{{_BOTH}}}[5m])) / "
                            f"sum by (slo_class) (rate(qlm_requests_total{{{_BOTH}}}[5m]))",
                            "{{slo_class}}",
                        ),
                    ),
                ),
                Panel(
                    "Tokens",
                    (
                        (
                            'sum by (model, kind) (rate(qlm_tokens_total{model=~"$model"}[$__rate_interval]))',
                            "{{model}} {{kind}}",
                        ),
                    ),
                    unit="tokens/s",
                ),
            ),
        ),
        (
            "Estimates",
            (
                Panel(
                    "Realised waits within the estimate",
                    (("avg by (estimate) (qlm_wait_estimate_coverage_ratio)", "{{estimate}}"),),
                    unit="percentunit",
                    text="A good estimate has 50, 90 and 99 % of the waits within its p50, p90 and p99.",
                    width=12,
                ),
                Panel(
                    "Off by",
                    _quantiles("qlm_wait_estimate_error_seconds", "slo_class", _BOTH),
                    unit="s",
                    text="Realised less estimated mean.",
                    width=12,
                ),
            ),
        ),
    ),
)

PLANNER = Dashboard(
    uid="qlm-planner",
    title="QLM planner",
    rows=(
        (
            "The plan in force",
            (
                Panel("Objective", (("qlm_plan_objective", "objective"),)),
                Panel("Weighted requests planned late", (("qlm_plan_late_weight", "late"),)),
                Panel(
                    "Gap to the bound",
                    (("qlm_plan_gap_ratio", "gap"),),
                    unit="percentunit",
                    text="Of the plan that the bound was proven for.",
                ),
                Panel("Age of the bound", (("qlm_plan_bound_age_seconds", "age"),), unit="s"),
                Panel("Groups", (("qlm_groups", "groups"),)),
                Panel("Epoch", (("qlm_epoch", "epoch"),)),
            ),
        ),
        (
            "Work",
            (
                Panel(
                    "Plans",
                    (
                        ("rate(qlm_plan_repairs_total[$__rate_interval])", "repairs"),
                        ("rate(qlm_plan_adoptions_total[$__rate_interval])", "adopted"),
                        ("rate(qlm_plan_moved_groups_total[$__rate_interval])", "groups moved"),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Solves",
                    (
                        (
                            "sum by (backend, status) (rate(qlm_solves_total[$__rate_interval]))",
                            "{{backend}} {{status}}",
                        ),
                        (
                            "sum by (backend, status) (rate(qlm_backend_step_downs_total[$__rate_interval]))",
                            "stepped down from {{backend}}: {{status}}",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Seconds a solve",
                    (
                        (
                            "sum by (backend) (rate(qlm_solver_seconds_total[5m])) / "
                            "sum by (backend) (rate(qlm_solves_total[5m]))",
                            "{{backend}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Facts taken in",
                    (
                        (
                            "sum by (fact) (rate(qlm_manager_facts_total[$__rate_interval]))",
                            "{{fact}}",
                        ),
                    ),
                    unit="ops",
                    stacked=True,
                ),
            ),
        ),
        (
            "Capacity",
            (
                Panel(
                    "Instances: there, busy, needed",
                    (
                        ("max by (gpu) (qlm_instances)", "{{gpu}} there"),
                        ("max by (gpu) (qlm_instances_busy)", "{{gpu}} busy"),
                        ("max by (gpu) (qlm_instances_needed)", "{{gpu}} needed"),
                    ),
                    text="How many keep the targets, the other GPUs as they are.",
                    width=12,
                ),
                Panel(
                    "Late requests that one more instance would save",
                    (("max by (gpu) (qlm_capacity_late_weight)", "{{gpu}}"),),
                    text="At most, weighted, by the prices of the last bound.",
                    width=12,
                ),
                Panel(
                    "Objective that one more instance would save",
                    (("max by (gpu) (qlm_capacity_value)", "{{gpu}}"),),
                    width=12,
                ),
                Panel(
                    "Real over profiled speed",
                    (("qlm_engine_speed_ratio", "{{gpu}} {{model}}"),),
                    text="Far from 1: a profile that does not fit, or an engine that is slowed down.",
                    width=12,
                ),
            ),
        ),
    ),
)

DASHBOARDS = (FLEET, CLASSES, PLANNER)
