"""Erasure, legal holds, subject access, offboarding."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from app.api.control_schemas import LIMIT, Label
from app.api.convert import call_of
from app.api.http import Answer, Request, StreamAnswer, json_answer
from app.api.rules import Schema, exactly_one, one_of, shape
from app.api.schemas import In, Out
from app.api.table import LOCATION, PURPOSE, QueryParam, ResponseDoc, Route
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound, RateLimited, TenantSuspended
from app.identity import Purpose, Scope
from app.services.access import trace_of
from app.services.erasure import Target
from app.services.holds import Hold
from app.services.services import Services

_TAGS: Final = ("privacy",)
ZIP: Final = b"application/zip"

Name = Annotated[str, Meta(min_length=1, max_length=512)]


_TARGETS: Final = ("session", "external_id", "subject", "subject_id")


class TargetIn(In):
    """Exactly one of: a session by id or by the client's own name, a subject by id or by name."""

    also: ClassVar[Schema | None] = exactly_one(*_TARGETS)

    session: UUID | None = None
    external_id: Name | None = None
    subject: Name | None = None
    subject_id: UUID | None = None

    def target(self) -> Target:
        return Target(self.session, self.external_id, self.subject, self.subject_id)


class HoldIn(TargetIn, kw_only=True):
    """``reason`` is sealed under the tenant's key."""

    reason: Annotated[str, Meta(min_length=1, max_length=2000)]


class ExportIn(TargetIn):
    """One of the targets, or ``tenant``: everything that the tenant has."""

    also: ClassVar[Schema | None] = one_of(
        shape(given=("tenant",), absent=_TARGETS, tenant={"const": True}),
        shape(tenant={"const": False}) | exactly_one(*_TARGETS),
    )

    tenant: bool = False


class LeavingIn(In):
    """``confirm`` is the tenant's name."""

    confirm: Label


class RemovedOut(Out):
    containers: int
    objects: int = msgspec.field()
    turns: int = msgspec.field()
    keys: int = msgspec.field()


class BlockOut(Out):
    """A legal hold that stands in the way."""

    hold: UUID
    container: UUID
    since: datetime
    set_by: UUID


class ErasureOut(Out):
    """``state``: queued, running, blocked (a legal hold), done, failed. ``receipt``: a signed note, once it is done."""

    id: UUID
    state: str
    requested_at: datetime
    removed: RemovedOut
    deadline: datetime | None = None
    finished_at: datetime | None = None
    blocked_by: list[BlockOut] = msgspec.field(default_factory=list)
    receipt: str | None = None


class HoldOut(Out):
    id: UUID
    container: UUID
    reason: str
    set_by: UUID
    created_at: datetime
    released_at: datetime | None = None
    released_by: UUID | None = None

    @classmethod
    def of(cls, hold: Hold) -> HoldOut:
        return cls(**{name: getattr(hold, name) for name in cls.__struct_fields__})


class HoldsOut(Out):
    holds: list[HoldOut]


async def erase(services: Services, request: Request, body: TargetIn) -> Answer:
    row = await services.privacy.erasure.request(request.caller, body.target(), trace_of(request))
    found = await services.privacy.erasure.get(request.caller, row["id"], trace_of(request))
    return json_answer(found, 202, ((b"location", b"/v1/privacy/erasures/%s" % str(row["id"]).encode()),))


async def get_erasure(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.privacy.erasure.get(request.caller, request.path_id(), trace_of(request)))


async def set_hold(services: Services, request: Request, body: HoldIn) -> Answer:
    hold = await services.privacy.holds.set(request.caller, body.target(), body.reason, trace_of(request))
    return json_answer(HoldOut.of(hold), 201)


async def list_holds(services: Services, request: Request, _body: None) -> Answer:
    found = await services.privacy.holds.page(
        request.caller, everything=request.query["released"], limit=request.query["limit"], trace=trace_of(request)
    )
    return json_answer(HoldsOut([HoldOut.of(hold) for hold in found]))


async def release_hold(services: Services, request: Request, _body: None) -> Answer:
    hold = await services.privacy.holds.release(request.caller, request.path_id(), trace_of(request))
    return json_answer(HoldOut.of(hold))


async def export(services: Services, request: Request, body: ExportIn) -> StreamAnswer:
    target = None if body.tenant else body.target()
    if body.tenant and body.target() != Target():
        raise InvalidRequest("Give either tenant or one of the others.", "/tenant")
    made, chunks = await services.privacy.exports.begin(call_of(request), target)
    disposition = b'attachment; filename="confide-export-%s.zip"' % str(made).encode()
    return StreamAnswer(200, ZIP, ((b"content-disposition", disposition),), chunks)


async def leave(services: Services, request: Request, body: LeavingIn) -> Answer:
    return json_answer(await services.privacy.offboarding.request(request.caller, body.confirm, trace_of(request)), 202)


async def leaving(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.privacy.offboarding.get(request.caller, trace_of(request)))


_SUBJECT: Final[dict[str, Any]] = {"subject": "customer-19"}

ROUTES: Final = (
    Route(
        "POST",
        "/v1/privacy/erasures",
        erase,
        "request_erasure",
        "Erase a session, or a subject with all its sessions",
        {
            202: ResponseDoc(
                "Queued. It is done within seconds, at most within 30 days.", ErasureOut, headers=(LOCATION,)
            )
        },
        scope=Scope.PRIVACY_WRITE,
        tags=_TAGS,
        body=TargetIn,
        errors=(NotFound, TenantSuspended),
        request_example=_SUBJECT,
    ),
    Route(
        "GET",
        "/v1/privacy/erasures/{id}",
        get_erasure,
        "get_erasure",
        "How far an erasure is, what blocks it, and its signed receipt",
        {200: ResponseDoc("The erasure.", ErasureOut)},
        scope=Scope.PRIVACY_READ,
        tags=_TAGS,
        errors=(NotFound, TenantSuspended),
    ),
    Route(
        "POST",
        "/v1/privacy/holds",
        set_hold,
        "set_legal_hold",
        "Keep a session, or a subject with its sessions, from being erased",
        {201: ResponseDoc("The hold.", HoldOut)},
        scope=Scope.PRIVACY_WRITE,
        tags=_TAGS,
        body=HoldIn,
        errors=(NotFound, TenantSuspended),
        request_example={"subject": "customer-19", "reason": "Litigation 2026/17"},
    ),
    Route(
        "GET",
        "/v1/privacy/holds",
        list_holds,
        "list_legal_holds",
        "Legal holds with reason and actor, the newest first",
        {200: ResponseDoc("The holds.", HoldsOut)},
        scope=Scope.PRIVACY_WRITE,
        tags=_TAGS,
        query=(QueryParam("released", bool, "Also those that were released.", False), LIMIT),
        errors=(TenantSuspended,),
    ),
    Route(
        "DELETE",
        "/v1/privacy/holds/{id}",
        release_hold,
        "release_legal_hold",
        "Release a legal hold; erasures that it blocked go on",
        {200: ResponseDoc("The released hold.", HoldOut)},
        scope=Scope.PRIVACY_WRITE,
        tags=_TAGS,
        errors=(NotFound, TenantSuspended),
    ),
    Route(
        "POST",
        "/v1/privacy/exports",
        export,
        "export_data",
        "A person's data, or the tenant's, as a machine-readable archive",
        {
            200: ResponseDoc(
                "A ZIP of JSON files and a manifest, made while it is sent.", content_type="application/zip"
            )
        },
        scope=Scope.CONTEXT_EXPORT,
        purpose=True,
        purposes=(Purpose.SUBJECT_ACCESS, Purpose.TENANT_EXPORT),
        tags=_TAGS,
        body=ExportIn,
        headers=(PURPOSE,),
        errors=(NotFound, Forbidden, RateLimited),
        request_example=_SUBJECT,
    ),
    Route(
        "POST",
        "/v1/privacy/offboarding",
        leave,
        "leave",
        "Leave: erase everything of the tenant's and destroy its keys. There is no way back",
        {202: ResponseDoc("Queued; the tenant is not served any more.", ErasureOut)},
        scope=Scope.PRIVACY_WRITE,
        tags=_TAGS,
        body=LeavingIn,
        errors=(Conflict, TenantSuspended),
        request_example={"confirm": "acme"},
    ),
    Route(
        "GET",
        "/v1/privacy/offboarding",
        leaving,
        "get_offboarding",
        "How far a tenant's leaving is, and its signed certificate",
        {200: ResponseDoc("The offboarding.", ErasureOut)},
        scope=Scope.PRIVACY_READ,
        tags=_TAGS,
        errors=(NotFound,),
    ),
)
