"""Reading the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from app.api import cursors
from app.api.control_schemas import CURSOR, Aware
from app.api.http import JSON, Answer, Request
from app.api.schemas import Out
from app.api.table import QueryParam, ResponseDoc, Route
from app.audit.event import format_time
from app.errors import TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.services import Services
from app.store.audit_query import Query


class EventsOut(Out):
    """Events with the field names of docs/format-audit.md, in canonical form."""

    events: list[dict[str, Any]]
    cursor: str | None = None


async def events(services: Services, request: Request, _body: None) -> Answer:
    asked = request.query
    place = cursors.place(services, request)
    query = Query(
        request.caller.tenant,
        asked["order"] == "newest",
        asked["limit"],
        asked["from"],
        asked["to"],
        asked["action"],
        asked["outcome"],
        asked["principal"],
        asked["container"],
        (datetime.fromisoformat(place[0]), UUID(place[1])) if place is not None else None,
    )
    found, last = await services.audit_log.query(request.caller, query, trace_of(request))
    body = b'{"events":[' + b",".join(found) + b"]"
    if last is not None:
        cursor = cursors.seal(services, request, [format_time(last["time"]), str(last["id"])])
        body += b',"cursor":' + msgspec.json.encode(cursor)
    return Answer(200, body + b"}", JSON)


ROUTES: Final = (
    Route(
        "GET",
        "/v1/audit/events",
        events,
        "list_audit_events",
        "Read the tenant's audit log. The reading is an event too.",
        {200: ResponseDoc("A page of events.", EventsOut)},
        scope=Scope.AUDIT_READ,
        description=(
            "An event's time is that of its authorisation, so one may show up beside or before a page that was read"
            " just before. Who must miss nothing, checks that each writer's numbers (`seq`) have no gap."
        ),
        tags=("audit",),
        query=(
            QueryParam("from", Aware, "Events at this time or later (RFC 3339)."),
            QueryParam("to", Aware, "Events before this time (RFC 3339)."),
            QueryParam(
                "action", Annotated[str, Meta(pattern="^[a-z][a-z.-]{0,63}$(?!\n)")], "One action, e.g. context.load."
            ),
            QueryParam("outcome", Literal["allowed", "denied", "failed"], "One outcome."),
            QueryParam("principal", UUID, "One caller."),
            QueryParam("container", UUID, "One container."),
            QueryParam("order", Literal["newest", "oldest"], "Which come first.", "newest"),
            QueryParam("limit", Annotated[int, Meta(ge=1, le=1000)], "How many, at most.", 100),
            CURSOR,
        ),
        errors=(TenantSuspended,),
    ),
)
