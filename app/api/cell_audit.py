"""The cell's own audit log, for operators: what has no tenant. The routes of a tenant's log, under ``/v1/cell``.

An operator's own tenant is the nil UUID, and so is the cell's log: the same handlers serve both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from app.api import audit
from app.identity import Scope

_OF_THE_CELL: Final = frozenset(
    {"events", "summary", "checkpoint", "checkpoints", "proof/inclusion", "proof/consistency", "export"}
)

ROUTES: Final = tuple(
    replace(
        route,
        path=route.path.replace("/v1/audit/", "/v1/cell/audit/"),
        name=f"{route.name}_of_cell",
        summary=f"Of the cell's own log: {route.summary[0].lower()}{route.summary[1:]}".replace(
            "the tenant's audit log", "it"
        ),
        scope=Scope.CELL_READ,
    )
    for route in audit.ROUTES
    if route.path.removeprefix("/v1/audit/") in _OF_THE_CELL
)
