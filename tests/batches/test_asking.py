"""What a client asks for when it creates a batch: OpenAI's codes and messages for what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.batches import asking
from gateway.keys import Caller
from qlm_core.config import Config
from qlm_core.config_batches import BatchesConfig
from qlm_core.errors import InvalidRequest

LIMITS = BatchesConfig(window_s_min=120.0, window_s_max=86_400.0 * 2)
GOOD = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


def read(**changed: Any) -> asking.Asked:
    fields = {key: value for key, value in (GOOD | changed).items() if value is not ...}
    return asking.read(json.dumps(fields).encode(), LIMITS)


def refused(**changed: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(**changed)
    return caught.value


def test_what_is_asked_for_is_read() -> None:
    asked = read(
        metadata={"k": "v"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        unknown=1,
    )
    assert asked.window_s == 86_400.0
    assert asked.metadata == {"k": "v"}
    assert asked.output_expires_s == 3600


@pytest.mark.parametrize(
    ("window", "seconds"), [("2m", 120.0), ("36h", 129_600.0), ("2d", 172_800.0)]
)
def test_a_window_is_any_number_of_minutes_hours_or_days(window: str, seconds: float) -> None:
    assert read(completion_window=window).window_s == seconds


@pytest.mark.parametrize(
    "window", ["", "24", "1m", "49h", "3d", "0h", "-1h", "1.5h", "24H", "24h "]
)
def test_other_windows_are_refused_with_those_that_there_are(window: str) -> None:
    error = refused(completion_window=window)
    assert (error.code, error.field) == ("invalid_value", "completion_window")
    assert str(error).startswith(f"Invalid value: '{window}'. Supported values are: ")
    assert "from '2m' to '2d'" in str(error)


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"input_file_id": ...}, "missing_required_parameter", "input_file_id"),
        ({"endpoint": None}, "missing_required_parameter", "endpoint"),
        ({"completion_window": ...}, "missing_required_parameter", "completion_window"),
        ({"input_file_id": 3}, "invalid_type", "input_file_id"),
        ({"endpoint": "/v1/x"}, "invalid_value", "endpoint"),
        ({"metadata": []}, "invalid_type", "metadata"),
        ({"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, "object_above_max_properties", "metadata"),
        ({"metadata": {"k" * 65: ""}}, "string_above_max_length", f"metadata.{'k' * 64}"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k"),
        ({"output_expires_after": 3600}, "invalid_type", "output_expires_after"),
        (
            {"output_expires_after": {"seconds": 3600}},
            "invalid_value",
            "output_expires_after.anchor",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "invalid_value",
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": True}},
            "invalid_type",
            "output_expires_after.seconds",
        ),
    ],
)
def test_what_is_wrong_has_openais_code(changed: dict[str, Any], code: str, param: str) -> None:
    error = refused(**changed)
    assert (error.code, error.field) == (code, param)


def test_messages_are_openais() -> None:
    assert str(refused(endpoint=...)) == "Missing required parameter: 'endpoint'."
    assert str(refused(endpoint="/v1/x")) == (
        "Invalid value: '/v1/x'. Supported values are: '/v1/chat/completions', '/v1/completions', "
        "'/v1/embeddings' and '/v1/responses'."
    )
    assert str(refused(metadata={"k": 1})) == (
        "Invalid type for 'metadata.k': expected a string, but got an integer instead."
    )


def test_what_is_asked_for_has_a_digest_whatever_the_order_of_its_fields() -> None:
    fields = json.dumps(dict(reversed(GOOD.items()))).encode()
    assert asking.read(fields, LIMITS).fingerprint == read().fingerprint
    assert read(metadata={}).fingerprint != read().fingerprint
    assert read(completion_window="1440m").fingerprint != read().fingerprint


def config(**batches: Any) -> Config:
    return Config.from_mapping({"gateway": {"batches": batches}})


def test_lines_get_the_laxest_class_that_their_tenant_may_use() -> None:
    everybody = Caller(tenant="t")
    assert asking.lax_class(config(), everybody) == "batch-2"
    assert asking.lax_class(config(slo_class="batch-1"), everybody) == "batch-1"
    strict = Caller(tenant="t", classes=("interactive", "batch-1"))
    assert asking.lax_class(config(), strict) == "batch-1"
    assert asking.lax_class(config(slo_class="batch-2"), strict) == "batch-1"
    assert asking.lax_class(config(), Caller(tenant="t", classes=("explicit",))) == "batch-2"
