"""The solver's side of QLM: groups, virtual queues, when to plan, what to tell whom (`machine`)."""

from qlm_core.manager.machine import Manager

__all__ = ["Manager"]
