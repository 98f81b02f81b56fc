"""Agents: the daemon beside each serving instance, and the engines that it can wrap."""

from agents.daemon import serve

__all__ = ["serve"]

# Says whose package this is to `qlm.overwritten`, since others have the same name.
DISTRIBUTION = "qlm-serving"
