"""Opaque cursors of the control plane's lists: sealed, and bound to tenant, route and the query they belong to."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import orjson

from app.api.http import Request
from app.crypto.tokens import open_token, seal_token
from app.errors import BadRequest
from app.services.services import Services

_STALE: Final = "The cursor belongs to another query. Send the same parameters, or start again without a cursor."


def seal(services: Services, request: Request, place: list[Any]) -> str:
    """``place``: where to go on, JSON values."""
    payload = orjson.dumps([_filters(request), place])
    return seal_token(services.secrets.cursors, request.caller.tenant, request.route.name, payload)


def place(services: Services, request: Request) -> list[Any] | None:
    """What ``seal`` was given, or None without a cursor. Raises BadRequest."""
    text = request.query["cursor"]
    if text is None:
        return None
    payload = open_token(services.secrets.cursors, request.caller.tenant, request.route.name, text)
    filters, found = orjson.loads(payload)
    if filters != _filters(request):
        raise BadRequest(_STALE)
    stood: list[Any] = found
    return stood


def place_id(services: Services, request: Request) -> UUID | None:
    """The one id of a place that is only that."""
    found = place(services, request)
    return UUID(found[0]) if found is not None else None


def _filters(request: Request) -> dict[str, str]:
    """The query without what may differ from page to page."""
    kept = {name: str(value) for name, value in request.query.items() if value is not None}
    return {name: value for name, value in kept.items() if name not in {"cursor", "limit"}}
