"""What is possible: upper bounds on the attainment of any policy on a simulated bed, with all arrivals and lengths known."""

from qlm_core.sim.bound.upper import Bound, Shares, upper_bound

__all__ = ["Bound", "Shares", "upper_bound"]
