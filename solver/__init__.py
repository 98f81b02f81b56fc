"""The solver service: the gRPC edge around the Manager, and the planner backends."""

from solver.service import serve

__all__ = ["serve"]
