"""Incidents: operators' routes, and each tenant's own part."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

from msgspec import Meta, field

from app.api.audit_schemas import Url
from app.api.control_schemas import LIMIT, Aware, check_times
from app.api.http import Answer, Request, json_answer
from app.api.rules import Schema, one_of, shape
from app.api.schemas import In, Out
from app.api.table import LOCATION, QueryParam, ResponseDoc, Route
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound, TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.blast_radius import Part, Suspect
from app.services.services import Services

_TAGS: Final = ("incidents",)
Words = Annotated[str, Meta(max_length=4000, description="Sealed; shown to operators only.")]


class IncidentIn(In):
    """``detected_at``: when a potential breach was detected, not when it was confirmed: not in the future. The clock
    starts there.
    """

    kind: Annotated[str, Meta(pattern="^[a-z][a-z-]{0,62}$")]
    detected_at: Aware
    words: Words = ""


class EntryIn(In):
    """A note, or a new phase; ``closed`` ends it."""

    also: ClassVar[Schema | None] = {
        "anyOf": [shape(given=("phase",)), shape(given=("words",), words={"minLength": 1})]
    }

    phase: Literal["investigating", "confirmed", "contained", "recovered", "dismissed", "closed"] | None = None
    words: Words = ""


class NoticeIn(In):
    """``customer`` needs the tenants to tell; ``authority`` records that it was told."""

    also: ClassVar[Schema | None] = one_of(
        shape(given=("tenants",), audience={"const": "customer"}, tenants={"minItems": 1}),
        shape(audience={"const": "authority"}, tenants={"maxItems": 0}),
    )

    audience: Literal["customer", "authority"]
    tenants: Annotated[list[UUID], Meta(max_length=1000)] = field(default_factory=list)
    words: Words = ""


class ScopeIn(In):
    """What leaked or is feared to have: any of principal, API key and key generation, in a window of time.

    ``since`` is before ``until``.
    """

    also: ClassVar[Schema | None] = one_of(shape(absent=("generation",)), shape(given=("generation", "tenant")))

    since: Aware
    until: Aware
    principal: UUID | None = None
    api_key: UUID | None = None
    generation: Annotated[int, Meta(ge=1, le=2147483647)] | None = None
    tenant: UUID | None = None


class ContactIn(In):
    """Where notices go, and the region in which the receiver stands."""

    url: Url
    region: Annotated[str, Meta(pattern="^[a-z0-9-]{2,32}$")]


class ContactOut(Out):
    host: str
    region: str
    set_by: UUID
    changed_at: datetime


class ClockOut(Out):
    due: datetime
    overdue: bool
    kept: bool
    told_at: datetime | None = None


class CustomersClockOut(ClockOut):
    """Told is who was found affected, all of them. ``untold``: tenants that have yet to be."""

    untold: list[UUID] = field(default_factory=list)


class IncidentOut(Out):
    """``history`` has every entry: number, at, kind, actor, audience, affected, detail, words."""

    id: UUID
    kind: str
    phase: str
    detected_at: datetime
    opened_at: datetime
    customer: CustomersClockOut
    authority: ClockOut
    history: list[dict[str, Any]] = field(default_factory=list)


class IncidentsOut(Out):
    incidents: list[IncidentOut]


class PartOut(Out):
    """One tenant's part. ``key_states``: openings by the key state at the moment of each: available, unavailable (the
    KMS was out), revoked, sealed. ``key_history``: states over the window, since when. ``key_state_now``: today's.
    ``dropped_to``: events of the window up to then were dropped from the log by retention, and are in no count.
    """

    tenant: UUID
    key_states: dict[str, int]
    key_history: list[dict[str, Any]]
    key_state_now: str
    containers: int
    subjects: int
    events: int
    listed: list[dict[str, Any]]
    dropped_to: datetime | None = None


class PartsOut(Out):
    parts: list[PartOut]


class OwnPartsOut(Out):
    parts: list[dict[str, Any]]


class NoticesOut(Out):
    notices: list[dict[str, Any]]


async def create(services: Services, request: Request, body: IncidentIn) -> Answer:
    check_times(body.detected_at)
    made = await services.privacy.incidents.open(
        request.caller, body.kind, body.detected_at, body.words, trace_of(request)
    )
    return json_answer(made, 201, ((b"location", b"/v1/incidents/%s" % str(made["id"]).encode()),))


async def page(services: Services, request: Request, _body: None) -> Answer:
    asked = request.query
    found = await services.privacy.incidents.page(request.caller, asked["before"], asked["limit"], trace_of(request))
    return json_answer({"incidents": found})


async def get(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.privacy.incidents.get(request.caller, request.path_id(), trace_of(request)))


async def add(services: Services, request: Request, body: EntryIn) -> Answer:
    if body.phase is None and not body.words:
        raise InvalidRequest("Give a phase, words or both.")
    return json_answer(
        await services.privacy.incidents.add(
            request.caller, request.path_id(), body.phase, body.words, trace_of(request)
        ),
        201,
    )


async def notify(services: Services, request: Request, body: NoticeIn) -> Answer:
    told = await services.privacy.incidents.notify(
        request.caller, request.path_id(), body.audience, body.tenants, body.words, trace_of(request)
    )
    return json_answer(told, 201)


async def scope(services: Services, request: Request, body: ScopeIn) -> Answer:
    check_times(body.since, body.until)
    suspect = Suspect(body.since, body.until, body.principal, body.api_key, body.generation, body.tenant)
    parts = await services.privacy.incidents.scope(request.caller, request.path_id(), suspect, trace_of(request))
    return json_answer({"parts": [_as_dict(part) for part in parts]})


def _as_dict(part: Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in PartOut.__struct_fields__}


async def own(services: Services, request: Request, _body: None) -> Answer:
    return json_answer({"parts": await services.privacy.incidents.own_parts(request.caller, trace_of(request))})


async def notices(services: Services, request: Request, _body: None) -> Answer:
    found = await services.privacy.outbox.page(request.caller, request.query["limit"], trace_of(request))
    return json_answer({"notices": [dict(row) for row in found]})


async def set_contact(services: Services, request: Request, body: ContactIn) -> Answer:
    row = await services.privacy.outbox.set_contact(request.caller, body.url, body.region, trace_of(request))
    return json_answer(dict(row))


_ONE: Final = ResponseDoc("The incident with its history.", IncidentOut)
_WRONG: Final = (NotFound, Conflict)

ROUTES: Final = (
    Route(
        "POST", "/v1/incidents", create, "open_incident", "Open an incident; its clock has run since detection",
        {201: ResponseDoc("The incident.", IncidentOut, headers=(LOCATION,))},
        scope=Scope.CELL_WRITE, tags=_TAGS, body=IncidentIn,
        request_example={"kind": "leaked-api-key", "detected_at": "2026-03-29T00:30:00Z"},
    ),
    Route(
        "GET", "/v1/incidents", page, "list_incidents", "List incidents, the newest first",
        {200: ResponseDoc("Incidents without their history.", IncidentsOut)},
        scope=Scope.CELL_READ, tags=_TAGS, query=(QueryParam("before", UUID, "Older than this incident."), LIMIT),
    ),
    Route(
        "GET", "/v1/incidents/{id}", get, "get_incident", "An incident with its whole history", {200: _ONE},
        scope=Scope.CELL_READ, tags=_TAGS, errors=(NotFound,),
    ),
    Route(
        "POST", "/v1/incidents/{id}/entries", add, "add_incident_entry", "Add a note or a phase; none is ever changed",
        {201: _ONE}, scope=Scope.CELL_WRITE, tags=_TAGS, body=EntryIn, errors=_WRONG,
        request_example={"phase": "confirmed", "words": "The key was in a public repository."},
    ),
    Route(
        "POST", "/v1/incidents/{id}/notices", notify, "notify_of_incident",
        "Tell customers, or record telling the authority",
        {201: _ONE}, scope=Scope.CELL_WRITE, tags=_TAGS, body=NoticeIn, errors=_WRONG,
        request_example={"audience": "authority", "words": "Told by telephone, reference 4711."},
    ),
    Route(
        "POST", "/v1/incidents/{id}/scope", scope, "scope_incident", "Which sessions and subjects were opened",
        {200: ResponseDoc("Parts by tenant; each tenant reads its own.", PartsOut)},
        scope=Scope.CELL_WRITE, tags=_TAGS, body=ScopeIn, errors=_WRONG,
        request_example={"since": "2026-03-28T00:00:00Z", "until": "2026-03-29T00:00:00Z"},
    ),
    Route(
        "GET", "/v1/notices", notices, "list_notices", "The outbox: notices, tries, errors",
        {200: ResponseDoc("The newest first.", NoticesOut)}, scope=Scope.CELL_READ, tags=_TAGS, query=(LIMIT,),
    ),
    Route(
        "GET", "/v1/privacy/incidents", own, "list_own_incidents", "What incidents have touched of the tenant's data",
        {200: ResponseDoc("The tenant's own part of each blast radius.", OwnPartsOut)},
        scope=Scope.PRIVACY_READ, tags=_TAGS, errors=(TenantSuspended,),
    ),
    Route(
        "PUT", "/v1/privacy/contact", set_contact, "set_incident_contact", "Where notices of incidents go",
        {200: ResponseDoc("The contact, without the address's path.", ContactOut)},
        scope=Scope.PRIVACY_WRITE, tags=_TAGS, body=ContactIn, errors=(Forbidden, TenantSuspended),
        request_example={"url": "https://hooks.example.com/confide", "region": "eu-central-1"},
    ),
)  # fmt: skip
