"""The solver service: the gRPC edge around the Manager, and the planner backends.

Nothing is imported here, so that a backend process pays for its own library alone; the service is `solver.service`.
"""
