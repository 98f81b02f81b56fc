"""In a process that has this folder on its PYTHONPATH, the time of the day is off by the seconds in a file.

The kernel's own clock stays, and with it what waits by absolute times of the day below Python. A library that lies to those as
well (libfaketime) makes gRPC's threads spin, which a clock that really jumps does not.
"""

import os
import time
from pathlib import Path

_real = time.time
_file = Path(os.environ["QLM_CHAOS_CLOCK"])


def _time() -> float:
    return _real() + float(_file.read_text() or 0.0)


time.time = _time
