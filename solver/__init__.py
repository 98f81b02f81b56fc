"""The solver service: the gRPC edge around the Manager, and the planner backends."""
