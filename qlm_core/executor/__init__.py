"""The executor: an agent's decisions, from queue order to LLM serving operations (paper §4-5).

`Executor` is a pure machine: facts come in as events, orders go out as effects, time comes in as `now_s`. The
agent daemon drives it with a real engine, the simulator with a modelled one. `states` says how it moves.
"""

from qlm_core.executor.events import (
    Abort,
    Drain,
    Drained,
    Effect,
    EngineDown,
    EngineReady,
    Event,
    GatewayLost,
    GatewayUp,
    Granted,
    JobDone,
    JobLost,
    JobOutput,
    JobRefused,
    JobTurnedAway,
    Report,
    Send,
    Submit,
    SwapFailed,
    SwapModel,
    Wakeup,
    Warm,
)
from qlm_core.executor.machine import Executor
from qlm_core.executor.states import AttemptState, ExecutorState

__all__ = [
    "Abort",
    "AttemptState",
    "Drain",
    "Drained",
    "Effect",
    "EngineDown",
    "EngineReady",
    "Event",
    "Executor",
    "ExecutorState",
    "GatewayLost",
    "GatewayUp",
    "Granted",
    "JobDone",
    "JobLost",
    "JobOutput",
    "JobRefused",
    "JobTurnedAway",
    "Report",
    "Send",
    "Submit",
    "SwapFailed",
    "SwapModel",
    "Wakeup",
    "Warm",
]
