"""Policies: who decides in a simulation. Ours, the paper's, and the rivals, behind one contract.

A policy is a *brain*, which answers events as the Manager does (`handle`, `wakeup_s`), and what engines and executors under it
can do. All brains hear the same: metadata of requests, what agents report, never a true output length, except for the
clairvoyant one, which is there to show how much better anyone could do.
"""

from qlm_core.sim.policies.base import Brain, Context, Foreseen, Policy
from qlm_core.sim.policies.catalog import REMOVABLE, policy_named, policy_names

__all__ = ["REMOVABLE", "Brain", "Context", "Foreseen", "Policy", "policy_named", "policy_names"]
