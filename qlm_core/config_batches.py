"""The section of the configuration that bounds batches; `qlm_core.config_rules` checks its numbers."""

from __future__ import annotations

from qlm_core.config_section import Section


class BatchesConfig(Section, frozen=True, kw_only=True):
    """Bounds on batches.

    slo_class: of the lines; empty: of the classes that a tenant may use the one with the longest ttft_s.
    window_s_min, window_s_max: of a completion window.
    lines_max, embedding_inputs_max: of one batch, in all its lines. faults_max: so many faults of a file are told.
    open_batches_max, tenant_open_batches_max: batches that are not over, of all tenants and of one.
    tenant_tokens_max: estimated prompt tokens of a model in a tenant's batches, of lines that are no requests yet; 0: any number.
    waiting_lines_max: of one model so many lines wait for an engine at a time, as requests; the others wait in their files.
    open_bytes_max: bytes of all lines that are requests.
    keep_ended_s: how long a batch is remembered that is over; its files have times of their own.
    finish_wait_s_max: how long the answer to a batch that was created waits for its finish time; 0: not at all.
    """

    slo_class: str = ""
    window_s_min: float = 60.0
    window_s_max: float = 1_209_600.0
    lines_max: int = 50_000
    embedding_inputs_max: int = 50_000
    faults_max: int = 100
    open_batches_max: int = 1_000
    tenant_open_batches_max: int = 200
    tenant_tokens_max: int = 0
    waiting_lines_max: int = 512
    open_bytes_max: int = 268_435_456
    keep_ended_s: float = 2_592_000.0
    finish_wait_s_max: float = 1.0
