"""Streams that push the audit log to a tenant's own receiver."""

from __future__ import annotations

from typing import Any, Final

from app.api.audit_schemas import StreamCreated, StreamIn, StreamOut, StreamsOut, StreamTested
from app.api.http import Answer, Request, json_answer, no_content
from app.api.table import LOCATION, ResponseDoc, Route
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound, TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.services import Services

_TAGS: Final = ("audit",)


def _out(row: Any, waiting: int = 0) -> StreamOut:
    state = "failing" if row["failures"] else "delivering" if waiting else "current"
    return StreamOut(
        row["id"],
        row["url"],
        row["region"],
        state,
        waiting,
        row["dropped"],
        row["failures"],
        row["created_at"],
        row["last_ok_at"],
        row["last_error"],
        row["next_try_at"] if row["failures"] else None,
    )


async def create(services: Services, request: Request, body: StreamIn) -> Answer:
    row, secret = await services.audit.streams.create(request.caller, body.url, body.region, trace_of(request))
    location = (b"location", b"/v1/audit/streams/" + str(row["id"]).encode())
    return json_answer(StreamCreated(_out(row), secret), 201, (location,))


async def every(services: Services, request: Request, _body: None) -> Answer:
    rows = await services.audit.streams.list(request.caller, trace_of(request))
    return json_answer(StreamsOut([_out(row, row["waiting"]) for row in rows]))


async def one(services: Services, request: Request, _body: None) -> Answer:
    rows = await services.audit.streams.list(request.caller, trace_of(request))
    for row in rows:
        if row["id"] == request.path_id():
            return json_answer(_out(row, row["waiting"]))
    raise NotFound


async def delete(services: Services, request: Request, _body: None) -> Answer:
    await services.audit.streams.delete(request.caller, request.path_id(), trace_of(request))
    return no_content()


async def test(services: Services, request: Request, _body: None) -> Answer:
    error = await services.audit.streams.test(request.caller, request.path_id(), trace_of(request))
    return json_answer(StreamTested(error is None, error))


ROUTES: Final = (
    Route(
        "POST",
        "/v1/audit/streams",
        create,
        "create_audit_stream",
        "Push events to an HTTPS receiver from now on, signed, in order, at least once.",
        {201: ResponseDoc("The stream and its secret, shown this once.", StreamCreated, headers=(LOCATION,))},
        body=StreamIn,
        scope=Scope.AUDIT_STREAMS,
        tags=_TAGS,
        errors=(TenantSuspended, InvalidRequest, Conflict, Forbidden),
    ),
    Route(
        "GET",
        "/v1/audit/streams",
        every,
        "list_audit_streams",
        "List the tenant's streams with their health.",
        {200: ResponseDoc("Streams.", StreamsOut)},
        scope=Scope.AUDIT_STREAMS,
        tags=_TAGS,
        errors=(TenantSuspended,),
    ),
    Route(
        "GET",
        "/v1/audit/streams/{id}",
        one,
        "get_audit_stream",
        "Get a stream with its health.",
        {200: ResponseDoc("The stream.", StreamOut)},
        scope=Scope.AUDIT_STREAMS,
        tags=_TAGS,
        errors=(TenantSuspended, NotFound),
    ),
    Route(
        "DELETE",
        "/v1/audit/streams/{id}",
        delete,
        "delete_audit_stream",
        "Delete a stream. What it had not delivered stays in the log.",
        {204: ResponseDoc("Deleted.")},
        scope=Scope.AUDIT_STREAMS,
        tags=_TAGS,
        errors=(TenantSuspended, NotFound),
    ),
    Route(
        "POST",
        "/v1/audit/streams/{id}/test",
        test,
        "test_audit_stream",
        "Send a test delivery now and tell whether the receiver took it.",
        {200: ResponseDoc("What came of it.", StreamTested)},
        scope=Scope.AUDIT_STREAMS,
        tags=_TAGS,
        errors=(TenantSuspended, NotFound),
    ),
)
