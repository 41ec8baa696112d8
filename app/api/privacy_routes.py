"""All routes that a data protection officer, an operator in an incident, or an auditor of controls uses."""

from __future__ import annotations

from typing import Final

from app.api import incidents, privacy, privacy_policy, trust
from app.api.table import Route

ROUTES: Final[tuple[Route, ...]] = (*privacy_policy.ROUTES, *privacy.ROUTES, *incidents.ROUTES, *trust.ROUTES)
