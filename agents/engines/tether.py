"""A program run in place of another, which it becomes: the other then ends when the process that started it does.

Run as `python tether.py PARENT_PID COMMAND [ARGUMENT...]`. It is a program of its own because the tie can only be made from
within the child, and Python code between fork and exec may wait for ever on a lock that a thread of the parent held.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for a signal at the parent's death, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the parent is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"cannot run {command[0]!r}: {error.strerror}")


if __name__ == "__main__":
    main()
