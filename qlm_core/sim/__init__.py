"""The simulator: an engine model, workloads and the world that drives the core."""
