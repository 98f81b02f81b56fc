"""The one translator between the wire and the core's values.

Each conversation of `qlm_core.messages` has a module here, with a pair of functions for each direction:
`…_to_wire(values, now_s)` packs a batch into one protobuf message, `…_from_wire(message, now_s)` yields the values. Instants
become durations on the way out and instants of the receiver's clock on the way in. Unset oneofs, unspecified
enums and whatever is out of bounds (`protos.wire.bounds`) are refused with `WireError`: what passes here needs no further checks.
"""

from protos.wire.agent_session import (
    agent_message_from_wire,
    agent_message_to_wire,
    agent_order_from_wire,
    agent_order_to_wire,
)
from protos.wire.bounds import SECONDS_MAX, WireError
from protos.wire.bulk import (
    batch_forecast_from_wire,
    batch_forecast_to_wire,
    batch_question_from_wire,
    batch_question_to_wire,
)
from protos.wire.gateway_session import (
    fact_bytes,
    facts_from_wire,
    facts_to_wire,
    gateway_orders_from_wire,
    gateway_orders_to_wire,
    order_bytes,
)
from protos.wire.values import (
    endpoint_from_wire,
    endpoint_to_wire,
    estimate_from_wire,
    estimate_to_wire,
    meta_from_wire,
    meta_to_wire,
    phase_from_wire,
    phase_to_wire,
    slo_from_wire,
    slo_to_wire,
)
from protos.wire.work import (
    work_from_wire,
    work_orders_from_wire,
    work_orders_to_wire,
    work_to_wire,
)

__all__ = [
    "SECONDS_MAX",
    "WireError",
    "agent_message_from_wire",
    "agent_message_to_wire",
    "agent_order_from_wire",
    "agent_order_to_wire",
    "batch_forecast_from_wire",
    "batch_forecast_to_wire",
    "batch_question_from_wire",
    "batch_question_to_wire",
    "endpoint_from_wire",
    "endpoint_to_wire",
    "estimate_from_wire",
    "estimate_to_wire",
    "fact_bytes",
    "facts_from_wire",
    "facts_to_wire",
    "gateway_orders_from_wire",
    "gateway_orders_to_wire",
    "meta_from_wire",
    "meta_to_wire",
    "order_bytes",
    "phase_from_wire",
    "phase_to_wire",
    "slo_from_wire",
    "slo_to_wire",
    "work_from_wire",
    "work_orders_from_wire",
    "work_orders_to_wire",
    "work_to_wire",
]
