"""Gurobi's licence: how one is taken, and what it means when there is none.

Licences come from the configuration, or from Gurobi's own environment; without either, the licence
bundled with gurobipy solves models of up to 2000 rows and columns.
"""

from __future__ import annotations

from typing import Any

from qlm_core.planning import Termination
from solver.backends.order import GurobiLicence

_LICENCE_ERRORS = (10009, 10012, 10013, 10022, 10024, 10030)
"""No licence, expired, token or web licence service out of reach (Gurobi's error codes)."""

_TOO_LARGE_ERROR = 10010


def environment(licence: GurobiLicence) -> Any:
    """A started, silent, single-threaded Gurobi environment; raises GurobiError without a licence."""
    import gurobipy as gp

    params: dict[str, Any] = {"OutputFlag": 0, "Threads": 1}
    if licence.access_id:
        params["WLSACCESSID"] = licence.access_id
        params["WLSSECRET"] = licence.secret
        params["LICENSEID"] = int(licence.license)
    return gp.Env(params=params)


def termination_of(error: Any) -> Termination:
    """What a GurobiError means to the ladder."""
    if error.errno in _LICENCE_ERRORS:
        return Termination.UNAVAILABLE
    if error.errno == _TOO_LARGE_ERROR:
        return Termination.TOO_LARGE
    return Termination.ERROR
