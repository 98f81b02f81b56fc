"""The solver service: the gRPC edge around the Manager, and the planner backends.

Nothing is imported here, so that a backend process pays for its own library alone; the service is `solver.service`.
"""

# Says whose package this is to `qlm.overwritten`, since others may have the same name.
DISTRIBUTION = "qlm-serving"
