"""In a process that has this folder on its PYTHONPATH, the time of the day is off by the seconds in a file.

The kernel's own clock stays, and with it what waits below Python by absolute times of the day. gRPC does, and so is told the
kernel's time: a deadline of the one clock awaited by the other is nothing that a clock which really jumps would bring about.
"""

import os
import sys
import time
from pathlib import Path

_real = time.time
_file = Path(os.environ["QLM_CHAOS_CLOCK"])


def _time() -> float:
    if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
        return _real()
    return _real() + float(_file.read_text() or 0.0)


time.time = _time
