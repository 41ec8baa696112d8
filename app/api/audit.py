"""Reading the audit log: events, summaries, checkpoints, proofs, exports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from app.api import cursors
from app.api.audit_schemas import (
    CheckpointsOut,
    ConsistencyOut,
    CountsOut,
    EventsOut,
    InclusionOut,
    SummaryOut,
)
from app.api.control_schemas import CURSOR, Aware
from app.api.http import JSON, Answer, Request, StreamAnswer, json_answer
from app.api.table import QueryParam, ResponseDoc, Route
from app.audit.event import format_time
from app.errors import InvalidRequest, NotFound, Tampered, TenantSuspended, Unavailable
from app.identity import Scope
from app.services.access import trace_of
from app.services.audit_export import Wanted
from app.services.services import Services
from app.store.audit_query import Query

Size = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Epoch = Annotated[int, Meta(ge=1, le=1_000_000)]
Visible = Annotated[str, Meta(pattern="^[\x21-\x7e]{1,2048}$(?!\n)")]

_NOTE: Final = b"text/plain; charset=utf-8"
_NDJSON: Final = b"application/x-ndjson"
_TAGS: Final = ("audit",)
_FROM: Final = QueryParam("from", Aware, "Events at this time or later (RFC 3339).")
_TO: Final = QueryParam("to", Aware, "Events before this time (RFC 3339).")
_EPOCH: Final = QueryParam("epoch", Epoch, "An older origin of the log, from before a restore; by default the newest.")
_PERIOD: Final = timedelta(days=30)


async def events(services: Services, request: Request, _body: None) -> Answer:
    asked = request.query
    place = cursors.place(services, request)
    query = Query(
        request.caller.tenant,
        asked["order"] == "newest",
        asked["limit"],
        since=asked["from"],
        until=asked["to"],
        action=asked["action"],
        outcome=asked["outcome"],
        principal=asked["principal"],
        api_key=asked["api_key"],
        container=asked["container"],
        object=asked["object"],
        kek=asked["kek"],
        kms_request_id=asked["kms_request_id"],
        purpose=asked["purpose"],
        after=(datetime.fromisoformat(place[0]), UUID(place[1])) if place is not None else None,
    )
    found, last, dropped = await services.audit_log.query(request.caller, query, trace_of(request))
    body = b'{"events":[' + b",".join(found) + b"]"
    if last is not None:
        cursor = cursors.seal(services, request, [format_time(last.time), str(last.id)])
        body += b',"cursor":' + msgspec.json.encode(cursor)
    if dropped:
        body += b',"dropped":' + msgspec.json.encode(dropped)
    return Answer(200, body + b"}", JSON)


def _period(request: Request) -> tuple[datetime, datetime]:
    """From and to; by default the last thirty days. Raises InvalidRequest."""
    until = request.query["to"] or datetime.now(UTC) + timedelta(minutes=1)
    since = request.query["from"] or until - _PERIOD
    if since > until:
        raise InvalidRequest("The period ends before it begins.", "/from")
    return since, until


async def summary(services: Services, request: Request, _body: None) -> Answer:
    since, until = _period(request)
    return json_answer(await services.audit.log.summary(request.caller, since, until, trace_of(request)))


async def counts(services: Services, request: Request, _body: None) -> Answer:
    since, until = _period(request)
    return json_answer({"counts": await services.audit.log.counts(request.caller, since, until, trace_of(request))})


async def checkpoint(services: Services, request: Request, _body: None) -> Answer:
    note = await services.audit.tree.checkpoint(request.caller, request.query["epoch"], trace_of(request))
    return Answer(200, note, _NOTE)


async def checkpoints(services: Services, request: Request, _body: None) -> Answer:
    asked = request.query
    return json_answer(
        await services.audit.tree.checkpoints(
            request.caller, asked["epoch"], asked["below"], asked["limit"], trace_of(request)
        )
    )


async def inclusion(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.audit.tree.inclusion(request.caller, request.query["event"], trace_of(request)))


async def consistency(services: Services, request: Request, _body: None) -> Answer:
    asked = request.query
    return json_answer(
        await services.audit.tree.consistency(
            request.caller, asked["epoch"], asked["from"], asked["to"], trace_of(request)
        )
    )


async def export(services: Services, request: Request, _body: None) -> Answer | StreamAnswer:
    asked = request.query
    wanted = Wanted(asked["format"], asked["from"], asked["to"], asked["first"], asked["epoch"], asked["known"])
    chunks = await services.audit.exports.open(request.caller, wanted, trace_of(request))
    name = f"attachment; filename=confide-audit-{request.caller.tenant}.{asked['format']}"
    return StreamAnswer(200, _NDJSON, ((b"content-disposition", name.encode()),), chunks)


_READ_ERRORS: Final = (TenantSuspended, NotFound, Unavailable)

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
            " just before. Who must miss nothing, checks that each writer's numbers (`seq`) have no gap. Events that"
            " are not in the tree yet are shown too."
        ),
        tags=_TAGS,
        query=(
            _FROM,
            _TO,
            QueryParam(
                "action", Annotated[str, Meta(pattern="^[a-z][a-z.-]{0,63}$(?!\n)")], "One action, e.g. context.load."
            ),
            QueryParam("outcome", Literal["allowed", "denied", "failed"], "One outcome."),
            QueryParam("principal", UUID, "One caller."),
            QueryParam("api_key", UUID, "One API key, by its id."),
            QueryParam("container", UUID, "One container."),
            QueryParam("object", UUID, "Events that name this context object."),
            QueryParam("kek", Visible, "One key-encryption key, by its URI."),
            QueryParam("kms_request_id", Visible, "The key management service's own id of a call."),
            QueryParam(
                "purpose", Literal["serve", "subject-access", "tenant-export", "maintenance"], "One purpose of opening."
            ),
            QueryParam("order", Literal["newest", "oldest"], "Which come first.", "newest"),
            QueryParam("limit", Annotated[int, Meta(ge=1, le=1000)], "How many, at most.", 100),
            CURSOR,
        ),
        errors=(TenantSuspended,),
    ),
    Route(
        "GET",
        "/v1/audit/summary",
        summary,
        "summarize_audit_events",
        "Count the log's events by action, purpose, principal, outcome and day: a reader's first look.",
        {200: ResponseDoc("Counts; by default of the last thirty days.", SummaryOut)},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        query=(_FROM, _TO),
        errors=(TenantSuspended, InvalidRequest),
    ),
    Route(
        "GET",
        "/v1/audit/counts",
        counts,
        "count_cell_events",
        "Count every tenant's sealed events, for operators: no event, no principal.",
        {200: ResponseDoc("Counts; by default of the last thirty days.", CountsOut)},
        scope=Scope.CELL_READ,
        tags=_TAGS,
        errors=(InvalidRequest,),
        query=(_FROM, _TO),
    ),
    Route(
        "GET",
        "/v1/audit/checkpoint",
        checkpoint,
        "get_audit_checkpoint",
        "Get a signed checkpoint of everything that is sealed now. Keep it: the next export is held against it.",
        {200: ResponseDoc("A C2SP signed note.", content_type=_NOTE.decode())},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        query=(_EPOCH,),
        errors=_READ_ERRORS,
    ),
    Route(
        "GET",
        "/v1/audit/checkpoints",
        checkpoints,
        "list_audit_checkpoints",
        "List signed checkpoints, the largest first, and the verifier keys that open them.",
        {200: ResponseDoc("Checkpoints.", CheckpointsOut)},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        query=(
            _EPOCH,
            QueryParam("below", Size, "Only checkpoints of a smaller size: `next_below` of the page before."),
            QueryParam("limit", Annotated[int, Meta(ge=1, le=1000)], "How many, at most.", 100),
        ),
        errors=(TenantSuspended, Unavailable),
    ),
    Route(
        "GET",
        "/v1/audit/proof/inclusion",
        inclusion,
        "prove_audit_inclusion",
        "Prove that an event is in the tree of a signed checkpoint (RFC 9162 section 2.1.3).",
        {200: ResponseDoc("The proof, with the event and the checkpoint.", InclusionOut)},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        query=(QueryParam("event", UUID, "The event's id.", required=True),),
        errors=(*_READ_ERRORS, Tampered),
    ),
    Route(
        "GET",
        "/v1/audit/proof/consistency",
        consistency,
        "prove_audit_consistency",
        "Prove that the log extends what it was at an older size (RFC 9162 section 2.1.4).",
        {200: ResponseDoc("The proof, with a checkpoint of the new size or a larger one.", ConsistencyOut)},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        query=(
            QueryParam("from", Annotated[int, Meta(ge=1, le=(1 << 53) - 1)], "The older size.", required=True),
            QueryParam("to", Size, "The newer size; by default the newest checkpoint's."),
            _EPOCH,
        ),
        errors=(*_READ_ERRORS, Tampered, InvalidRequest),
    ),
    Route(
        "GET",
        "/v1/audit/export",
        export,
        "export_audit_log",
        "Export the log, or a period of it, with what the offline verifier needs.",
        {200: ResponseDoc("Lines; see docs/format-audit.md.", content_type=_NDJSON.decode())},
        scope=Scope.AUDIT_READ,
        description=(
            "The answer begins once every event of the period is sealed and signed, and it holds the smallest range of"
            " leaves with all of them. A stream that broke off is resumed with `first`, the number of the next leaf."
        ),
        tags=_TAGS,
        query=(
            QueryParam("format", Literal["ndjson", "ocsf"], "ndjson verifies offline; ocsf is for a SIEM.", "ndjson"),
            _FROM,
            _TO,
            QueryParam("first", Size, "Resume: the first leaf to send."),
            QueryParam(
                "known",
                Annotated[int, Meta(ge=1, le=(1 << 53) - 1)],
                "Size of a checkpoint that you kept: the export proves that it extends it.",
                many=True,
                max_items=16,
            ),
            _EPOCH,
        ),
        errors=(*_READ_ERRORS, Tampered, InvalidRequest),
    ),
)
