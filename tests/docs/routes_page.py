"""docs/routes.md, written from the route table: ``.venv/bin/python -m tests.docs.routes_page``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from app.api.docs_page import docs_routes
from app.api.health import health_routes
from app.api.table import Route
from app.assembly import RESOURCES
from app.observability.metrics import Metrics

PAGE: Final = Path(__file__).parents[2] / "docs" / "routes.md"

HEAD: Final = """# Routes

Every route of the service, from its route table; bodies and answers are in `/openapi.json` and, to try out, at `/docs`.
*Scope* is what the API key must carry, *purpose* what context may be opened for there. Roles and their scopes:
[tenant-admins.md](tenant-admins.md#roles).

| route | does | scope | purpose |
| --- | --- | --- | --- |
"""


async def _never() -> None:
    """Stands in for the readiness check: the page calls no handler."""


def routes() -> list[Route]:
    """Documented routes, in the order of their paths."""
    table = tuple(route for resource in RESOURCES for route in resource.ROUTES)
    table += health_routes(_never, Metrics())
    table += docs_routes(table, version="")
    return sorted((route for route in table if route.documented), key=lambda route: (route.path, route.method))


def page() -> str:
    return HEAD + "".join(_row(route) for route in routes())


def _row(route: Route) -> str:
    scope = "none" if route.public else f"`{route.scope.value}`" if route.scope is not None else "any key"
    purposes = ", ".join(f"`{purpose.value}`" for purpose in route.purposes) if route.purpose else ""
    return f"| `{route.method} {route.path}` | {route.summary.rstrip('.')} | {scope} | {purposes} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
