"""Real faults on a real fleet (`make chaos`): processes that die and freeze, links that break or fall silent, disks that fill.

`faults` lists what is done to a `bed` (a fleet, its engines and the links between), `clients` are the load that checks every
token, `engine` is the model server whose log is the `witness`, and `run` judges.
"""

import os

# As in `qlm.__main__`, since this process has clients of gRPC and starts others.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
