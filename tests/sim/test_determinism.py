"""Runs are the same to the last byte, whatever the interpreter's hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import hashlib
from qlm_core.profile_catalog import find_profile
from qlm_core.sim.batch import ContinuousBatch
from qlm_core.sim.workload import generate, workload_a

engine = ContinuousBatch(find_profile("vicuna-13b", "a10"), policy="priority")
digest = hashlib.sha256()
for index, one in enumerate(generate(workload_a(interactive_rps=1.0, cv=2), seed=11, requests=800)):
    for outcome in engine.advance(one.arrival_s):
        digest.update(repr(outcome).encode())
    engine.add(f"{index}", prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens,
               priority=len(one.slo_class), now_s=one.arrival_s)
while (at_s := engine.next_event_s) is not None:
    for outcome in engine.advance(at_s):
        digest.update(repr(outcome).encode())
assert engine.preemptions > 0
print(digest.hexdigest())
"""


def test_the_hash_seed_does_not_show() -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4711")
    ]
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0].strip()) == 64
