"""Tenants: the operator's routes under /v1/tenants, the tenant's own under /v1/tenant."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from app.api import cursors
from app.api.control_schemas import (
    CURSOR,
    LIMIT,
    EnrolmentOut,
    TenantCreated,
    TenantIn,
    TenantOut,
    TenantPatch,
    TenantsOut,
)
from app.api.http import Answer, Request, json_answer
from app.api.table import LOCATION, ResponseDoc, Route
from app.errors import BadRequest, Conflict, KeyUnavailable, NotFound, TenantSuspended
from app.identity import NO_UUID, Scope
from app.services.access import trace_of
from app.services.services import Services

_TAGS: Final = ("tenants",)


def _given(body: msgspec.Struct) -> dict[str, Any]:
    """The fields that the client sent."""
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


async def create(services: Services, request: Request, body: TenantIn) -> Answer:
    settings = _given(body)
    created = await services.tenants.create(request.caller, settings.pop("name"), settings, trace_of(request))
    answer = TenantCreated(TenantOut.of(created.row), EnrolmentOut(created.token, created.expires_at))
    return json_answer(answer, 201, ((b"location", b"/v1/tenants/%s" % str(created.row["id"]).encode()),))


async def page(services: Services, request: Request, _body: None) -> Answer:
    after = cursors.place_id(services, request) or NO_UUID
    limit = request.query["limit"]
    rows = await services.tenants.page(request.caller, after, limit, trace_of(request))
    shown = rows[:limit]
    cursor = cursors.seal(services, request, [str(shown[-1]["id"])]) if len(rows) > limit else None
    return json_answer(TenantsOut([TenantOut.of(row) for row in shown], cursor))


async def get(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(TenantOut.of(await services.tenants.get(request.caller, request.path_id(), trace_of(request))))


async def suspend(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(
        TenantOut.of(await services.tenants.suspend(request.caller, request.path_id(), trace_of(request)))
    )


async def resume(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(
        TenantOut.of(await services.tenants.resume(request.caller, request.path_id(), trace_of(request)))
    )


async def own(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(TenantOut.of(await services.tenants.own(request.caller, trace_of(request))))


async def update(services: Services, request: Request, body: TenantPatch) -> Answer:
    changes = _given(body)
    if not changes:
        raise BadRequest("The body names nothing to change.")
    return json_answer(TenantOut.of(await services.tenants.update(request.caller, changes, trace_of(request))))


_TENANT: Final = {200: ResponseDoc("The tenant.", TenantOut)}

ROUTES: Final = (
    Route(
        "POST",
        "/v1/tenants",
        create,
        "create_tenant",
        "Create a tenant, with a one-time token for its first admin key.",
        {201: ResponseDoc("Created. The token is shown this once.", TenantCreated, headers=(LOCATION,))},
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        body=TenantIn,
        errors=(KeyUnavailable, Conflict),
        request_example={"name": "acme"},
    ),
    Route(
        "GET",
        "/v1/tenants",
        page,
        "list_tenants",
        "List the cell's tenants, oldest first.",
        {200: ResponseDoc("A page of tenants.", TenantsOut)},
        scope=Scope.CELL_READ,
        tags=_TAGS,
        query=(LIMIT, CURSOR),
    ),
    Route(
        "GET",
        "/v1/tenants/{id}",
        get,
        "get_tenant",
        "Get a tenant.",
        _TENANT,
        scope=Scope.CELL_READ,
        tags=_TAGS,
        errors=(NotFound,),
    ),
    Route(
        "POST",
        "/v1/tenants/{id}/suspend",
        suspend,
        "suspend_tenant",
        "Stop serving a tenant, at the next statement of every worker.",
        _TENANT,
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        errors=(NotFound, Conflict),
    ),
    Route(
        "POST",
        "/v1/tenants/{id}/resume",
        resume,
        "resume_tenant",
        "Serve a suspended tenant again.",
        _TENANT,
        scope=Scope.CELL_WRITE,
        tags=_TAGS,
        errors=(NotFound, Conflict),
    ),
    Route(
        "GET",
        "/v1/tenant",
        own,
        "get_own_tenant",
        "Get the tenant that the API key belongs to.",
        _TENANT,
        scope=Scope.TENANT_READ,
        tags=_TAGS,
        errors=(TenantSuspended,),
    ),
    Route(
        "PATCH",
        "/v1/tenant",
        update,
        "update_own_tenant",
        "Change the tenant's settings.",
        _TENANT,
        scope=Scope.TENANT_WRITE,
        tags=_TAGS,
        body=TenantPatch,
        errors=(TenantSuspended, Conflict),
        request_example={"require_preconditions": True},
    ),
)
