"""`make demo-vllm`: a fleet whose agents serve with a real vLLM, a short mixed load, and the report."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from pathlib import Path

import prepare

CONFIG = prepare.HERE / "config.yaml"
TRACE = prepare.ROOT / "run" / "vllm-demo.csv"
LOG = prepare.ROOT / "run" / "vllm-demo.log"
QLM = Path(sys.executable).with_name("qlm")
REQUESTS = 120
ARRIVALS_S = 30.0
SEED = 11
SHARES = {"tiny-llama": 0.4, "tiny-llama-a": 0.2, "tiny-llama-b": 0.1, "tiny-qwen": 0.3}


def write_trace() -> None:
    """A seeded load: half chats, half batches, two models and two adapters, short enough for a CPU."""
    draw = random.Random(SEED)
    with TRACE.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arrival_s", "prompt_tokens", "output_tokens", "model", "slo_class"])
        for index in range(REQUESTS):
            rows.writerow(
                [
                    f"{index * ARRIVALS_S / REQUESTS:.3f}",
                    draw.randint(16, 300),
                    draw.randint(8, 128),
                    draw.choices(list(SHARES), list(SHARES.values()))[0],
                    draw.choices(["interactive", "batch-1", "batch-2"], [0.5, 0.3, 0.2])[0],
                ]
            )


def main() -> int:
    """Prepare, start, send, report; the status is that of the replay."""
    prepare.main()
    write_trace()
    begun_s = time.monotonic()
    print("starting solver, gateway, two agents and three vLLM servers; log in run/vllm-demo.log")
    print("that takes a minute or so: each vLLM server has much to import", flush=True)
    # A supervised process says `ready`, and ends when its standard input does: nothing is left behind.
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            [QLM, "up", "--config", CONFIG, "--supervised"],
            cwd=prepare.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as fleet,
    ):
        assert fleet.stdin is not None
        assert fleet.stdout is not None
        for line in fleet.stdout:
            if line.strip() == "ready":
                break
        else:
            status = fleet.wait()
            print(LOG.read_text().splitlines()[-1], file=sys.stderr)
            return status
        print(f"ready after {time.monotonic() - begun_s:.0f} s", flush=True)
        replay = [QLM, "replay", TRACE, "--config", CONFIG, "--exact-lengths", "--seed", str(SEED)]
        status = subprocess.run(replay, cwd=prepare.ROOT, check=False).returncode
        fleet.stdin.close()
        fleet.wait()
    return status


if __name__ == "__main__":
    sys.exit(main())
