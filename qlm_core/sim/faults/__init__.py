"""Runs of the production machines under faults that are drawn from a seed, with checkers outside the code.

`drawing` decides what is asked and what goes wrong (a `schedule`), `run` lets it happen, `checkers` and `audit` watch, `shrink`
finds the few events that a failure needs. The parts (`solver_part`, `gateway_part`, `agent_part`) drive Manager, Ledger and
Executor as the services' drivers do, over the streams of `network` between the processes of `process`. The same seed is the
same run.
"""
