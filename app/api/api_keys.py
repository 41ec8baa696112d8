"""API keys: a tenant's under /v1/api-keys, the operators' own under /v1/operator-keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Final

from app.api import cursors
from app.api.control_schemas import (
    CURSOR,
    LIMIT,
    ApiKeyIn,
    ApiKeyIssued,
    ApiKeyOut,
    ApiKeysOut,
    OperatorKeyIn,
    RotateIn,
)
from app.api.http import Answer, Request, json_answer
from app.api.table import LOCATION, ResponseDoc, Route
from app.errors import Conflict, InvalidRequest, NotFound, TenantSuspended
from app.identity import Role, Scope
from app.services.access import trace_of
from app.services.api_keys import Issued, Wanted
from app.services.services import Services

_TAGS: Final = ("api-keys",)


def _wanted(body: ApiKeyIn | OperatorKeyIn, role: Role) -> Wanted:
    if body.expires_at is not None and body.ttl is not None:
        raise InvalidRequest("Send expires_at or ttl, not both.", "/ttl")
    expires = body.expires_at
    if body.ttl is not None:
        expires = datetime.now(UTC) + timedelta(seconds=body.ttl)
    purposes = body.purposes if isinstance(body, ApiKeyIn) else None
    return Wanted(
        body.name,
        role,
        frozenset(body.scopes) if body.scopes is not None else None,
        frozenset(purposes) if purposes is not None else None,
        expires,
        _networks(body.sources) if body.sources is not None else None,
    )


def _networks(texts: list[str]) -> tuple[str, ...]:
    """Canonical networks. Raises InvalidRequest, also for an address with bits beyond its prefix."""
    try:
        return tuple(sorted({str(ip_network(text)) for text in texts}))
    except ValueError:
        raise InvalidRequest(
            "Each source is an IPv4 or IPv6 address or network, such as 10.1.0.0/16.", "/sources"
        ) from None


def _issued(issued: Issued, base: bytes) -> Answer:
    location = (b"location", base + str(issued.row["id"]).encode())
    return json_answer(ApiKeyIssued(ApiKeyOut.of(issued.row), issued.secret), 201, (location,))


async def create(services: Services, request: Request, body: ApiKeyIn) -> Answer:
    wanted = _wanted(body, Role(body.role))
    return _issued(await services.api_keys.create(request.caller, wanted, trace_of(request)), b"/v1/api-keys/")


async def create_operator(services: Services, request: Request, body: OperatorKeyIn) -> Answer:
    wanted = _wanted(body, Role.OPERATOR)
    return _issued(await services.api_keys.create(request.caller, wanted, trace_of(request)), b"/v1/operator-keys/")


async def page(services: Services, request: Request, _body: None) -> Answer:
    limit = request.query["limit"]
    before = cursors.place_id(services, request)
    rows = await services.api_keys.page(request.caller, before, limit, trace_of(request))
    shown = rows[:limit]
    cursor = cursors.seal(services, request, [str(shown[-1]["id"])]) if len(rows) > limit else None
    return json_answer(ApiKeysOut([ApiKeyOut.of(row) for row in shown], cursor))


async def get(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(ApiKeyOut.of(await services.api_keys.get(request.caller, request.path_id(), trace_of(request))))


async def rotate(services: Services, request: Request, body: RotateIn) -> Answer:
    issued = await services.api_keys.rotate(request.caller, request.path_id(), body.overlap_seconds, trace_of(request))
    base = request.route.path.partition("{")[0].encode()
    return _issued(issued, base)


async def revoke(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(
        ApiKeyOut.of(await services.api_keys.revoke(request.caller, request.path_id(), trace_of(request)))
    )


_KEY: Final = {200: ResponseDoc("The key, without its secret.", ApiKeyOut)}
_NEW: Final = {201: ResponseDoc("The key. Its secret is shown this once.", ApiKeyIssued, headers=(LOCATION,))}
_PAGE: Final = {200: ResponseDoc("A page of keys, newest first.", ApiKeysOut)}
_OVERLAP: Final = {"overlap_seconds": 3600}

ROUTES: Final = (
    Route(
        "POST",
        "/v1/api-keys",
        create,
        "create_api_key",
        "Issue an API key.",
        _NEW,
        scope=Scope.API_KEYS,
        tags=_TAGS,
        body=ApiKeyIn,
        errors=(TenantSuspended, Conflict),
        request_example={"name": "voice-agent", "role": "runtime", "ttl": 7776000},
    ),
    Route(
        "GET",
        "/v1/api-keys",
        page,
        "list_api_keys",
        "List the tenant's API keys.",
        _PAGE,
        scope=Scope.API_KEYS,
        tags=_TAGS,
        query=(LIMIT, CURSOR),
        errors=(TenantSuspended,),
    ),
    Route(
        "GET",
        "/v1/api-keys/{id}",
        get,
        "get_api_key",
        "Get an API key.",
        _KEY,
        scope=Scope.API_KEYS,
        tags=_TAGS,
        errors=(NotFound, TenantSuspended),
    ),
    Route(
        "POST",
        "/v1/api-keys/{id}/rotate",
        rotate,
        "rotate_api_key",
        "Issue a key's successor; the old one works for the overlap.",
        _NEW,
        scope=Scope.API_KEYS,
        tags=_TAGS,
        body=RotateIn,
        errors=(NotFound, TenantSuspended, Conflict),
        request_example=_OVERLAP,
    ),
    Route(
        "POST",
        "/v1/api-keys/{id}/revoke",
        revoke,
        "revoke_api_key",
        "Revoke an API key, at the next statement of every worker.",
        _KEY,
        scope=Scope.API_KEYS,
        tags=_TAGS,
        errors=(NotFound, TenantSuspended, Conflict),
    ),
    Route(
        "POST",
        "/v1/operator-keys",
        create_operator,
        "create_operator_key",
        "Issue an operator's key.",
        _NEW,
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        body=OperatorKeyIn,
        errors=(Conflict,),
        request_example={"name": "on-call"},
    ),
    Route(
        "GET",
        "/v1/operator-keys",
        page,
        "list_operator_keys",
        "List the cell's operator keys.",
        _PAGE,
        scope=Scope.CELL_READ,
        tags=_TAGS,
        query=(LIMIT, CURSOR),
    ),
    Route(
        "POST",
        "/v1/operator-keys/{id}/rotate",
        rotate,
        "rotate_operator_key",
        "Issue an operator key's successor; the old one works for the overlap.",
        _NEW,
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        body=RotateIn,
        errors=(NotFound, Conflict),
        request_example=_OVERLAP,
    ),
    Route(
        "POST",
        "/v1/operator-keys/{id}/revoke",
        revoke,
        "revoke_operator_key",
        "Revoke an operator's key.",
        _KEY,
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        errors=(NotFound, Conflict),
    ),
)
