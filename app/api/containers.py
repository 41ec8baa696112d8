"""Sessions, subjects and apps themselves: get or create, read, change, delete, look up, branch."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final
from uuid import UUID

from msgspec import UNSET

from app.api.convert import article, call_of, container_out, kind_path, making_in
from app.api.http import Answer, Request, json_answer, no_content
from app.api.schemas import (
    AppIn,
    BranchIn,
    BranchOut,
    ContainerOut,
    SessionIn,
    SessionLookup,
    SessionPatch,
    SessionsOut,
    SubjectIn,
)
from app.api.table import LOCATION, PURPOSE, ResponseDoc, Route
from app.crypto.tokens import open_token, seal_token
from app.errors import Conflict, InvalidRequest, NotFound
from app.identity import Kind, Purpose, Scope
from app.services.changes import Making, Where
from app.services.services import Services

Run = Callable[[Services, Request, Any], Coroutine[Any, Any, Answer]]


async def _get_or_create(services: Services, request: Request, where: Where, making: Making) -> Answer:
    container, created = await services.dialogue.get_or_create(call_of(request), where, making)
    path = f"{kind_path(where.kind)}/{container.id}".encode()
    return json_answer(container_out(container), 201 if created else 200, ((b"location", path),))


async def create_session(services: Services, request: Request, body: SessionIn) -> Answer:
    making = making_in(body.subject, body.labels, body.ttl)
    return await _get_or_create(services, request, Where(Kind.SESSION, external=body.external_id), making)


async def create_subject(services: Services, request: Request, body: SubjectIn) -> Answer:
    return await _get_or_create(services, request, Where(Kind.SUBJECT, external=body.external_id), Making())


async def create_app(services: Services, request: Request, body: AppIn) -> Answer:
    return await _get_or_create(services, request, Where(Kind.APP, external=body.name), Making())


def _getter(kind: Kind) -> Run:
    async def get(services: Services, request: Request, _body: None) -> Answer:
        action = "session.read" if kind is Kind.SESSION else "context.read"
        found = await services.dialogue.record(call_of(request), Where(kind, request.path_id()), action)
        return json_answer(container_out(found))

    return get


def _deleter(kind: Kind) -> Run:
    async def delete(services: Services, request: Request, _body: None) -> Answer:
        await services.dialogue.delete_container(call_of(request), Where(kind, request.path_id()))
        return no_content()

    return delete


async def update_session(services: Services, request: Request, body: SessionPatch) -> Answer:
    if body.labels is UNSET and body.ttl is UNSET and body.hold is UNSET:
        raise InvalidRequest("Name at least one of labels, ttl and hold.")
    ttl = None
    if body.ttl is not UNSET:
        ttl = (body.ttl.idle, body.ttl.absolute)
        if ttl == (None, None):
            raise InvalidRequest("Give ttl.idle, ttl.absolute or both.", "/ttl")
    container = await services.dialogue.update(
        call_of(request),
        Where(Kind.SESSION, request.path_id()),
        labels=None if body.labels is UNSET else body.labels,
        ttl=ttl,
        hold=None if body.hold is UNSET else body.hold,
    )
    return json_answer(container_out(container))


async def lookup_sessions(services: Services, request: Request, body: SessionLookup) -> Answer:
    if sum(name is not None for name in (body.external_id, body.subject, body.label)) != 1:
        raise InvalidRequest("Give exactly one of external_id, subject and label.")
    tenant = request.caller.tenant
    after = None
    if body.cursor is not None:
        after = UUID(bytes=open_token(services.secrets.cursors, tenant, "lookup", body.cursor))
    found = await services.dialogue.find_sessions(
        call_of(request),
        external=body.external_id,
        subject=body.subject,
        label=body.label,
        after=after,
        limit=body.limit,
    )
    cursor = None
    if body.external_id is None and len(found) == body.limit:
        cursor = seal_token(services.secrets.cursors, tenant, "lookup", found[-1].id.bytes)
    return json_answer(SessionsOut([container_out(each) for each in found], cursor))


async def branch_session(services: Services, request: Request, body: BranchIn) -> Answer:
    if body.turn is not None and body.commit is not None:
        raise InvalidRequest("Give either turn or commit.")
    done = await services.branching.branch(
        call_of(request),
        Where(Kind.SESSION, request.path_id()),
        body.external_id,
        making_in(None, body.labels, body.ttl),
        turn=body.turn,
        commit=body.commit,
    )
    answer = BranchOut(container_out(done.container), done.objects, done.turns, done.omitted)
    return json_answer(answer, 201, ((b"location", f"/v1/sessions/{done.container.id}".encode()),))


# ---------------------------------------------------------------- routes

_SERVE: Final = (Purpose.SERVE,)


def _creation(kind: Kind, run: Any, body: Any, example: Any) -> Route:
    name = kind.value
    return Route(
        "POST",
        kind_path(kind),
        run,
        f"create_{name}",
        f"Get or create {article(kind)} {name}",
        {
            200: ResponseDoc(f"The {name} that was there, unchanged.", ContainerOut, headers=(LOCATION,)),
            201: ResponseDoc(f"The new {name}.", ContainerOut, headers=(LOCATION,)),
        },
        scope=Scope.CONTEXT_WRITE,
        purpose=True,
        purposes=_SERVE,
        body=body,
        headers=(PURPOSE,),
        errors=(Conflict,),
        tags=(f"{name}s",),
        request_example=example,
    )


def _single(kind: Kind) -> tuple[Route, ...]:
    name, path = kind.value, f"{kind_path(kind)}/{{id}}"
    return (
        Route(
            "GET",
            path,
            _getter(kind),
            f"get_{name}",
            f"Read the record of {article(kind)} {name}",
            {200: ResponseDoc("The record with its names opened.", ContainerOut)},
            scope=Scope.CONTEXT_READ,
            purpose=True,
            purposes=_SERVE,
            headers=(PURPOSE,),
            errors=(NotFound,),
            tags=(f"{name}s",),
        ),
        Route(
            "DELETE",
            path,
            _deleter(kind),
            f"delete_{name}",
            f"Delete {article(kind)} {name} with its rows and its keys",
            {204: ResponseDoc("It is gone.")},
            scope=Scope.CONTEXT_WRITE,
            purpose=True,
            purposes=_SERVE,
            headers=(PURPOSE,),
            errors=(NotFound, Conflict),
            tags=(f"{name}s",),
        ),
    )


ROUTES: Final = (
    _creation(
        Kind.SESSION,
        create_session,
        SessionIn,
        {"external_id": "call-7281", "subject": "customer-19", "labels": ["billing"], "ttl": {"idle": 86400}},
    ),
    _creation(Kind.SUBJECT, create_subject, SubjectIn, {"external_id": "customer-19"}),
    _creation(Kind.APP, create_app, AppIn, {"name": "booking-assistant"}),
    *_single(Kind.SESSION),
    *_single(Kind.SUBJECT),
    *_single(Kind.APP),
    Route(
        "PATCH",
        "/v1/sessions/{id}",
        update_session,
        "update_session",
        "Change a session's labels, time to live or legal hold",
        {200: ResponseDoc("The record as it is now.", ContainerOut)},
        scope=Scope.CONTEXT_WRITE,
        purpose=True,
        purposes=_SERVE,
        body=SessionPatch,
        headers=(PURPOSE,),
        errors=(NotFound, Conflict),
        tags=("sessions",),
        request_example={"labels": ["billing", "escalated"]},
    ),
    Route(
        "POST",
        "/v1/sessions/lookup",
        lookup_sessions,
        "lookup_sessions",
        "Find sessions by external id, subject or label",
        {200: ResponseDoc("The sessions, oldest first; none where the name is unknown.", SessionsOut)},
        scope=Scope.CONTEXT_READ,
        purpose=True,
        purposes=_SERVE,
        body=SessionLookup,
        headers=(PURPOSE,),
        tags=("sessions",),
        request_example={"label": "billing"},
    ),
    Route(
        "POST",
        "/v1/sessions/{id}/branch",
        branch_session,
        "branch_session",
        "Copy a session up to a turn or a commit into a new one",
        {201: ResponseDoc("The new session.", BranchOut, headers=(LOCATION,))},
        scope=Scope.CONTEXT_WRITE,
        purpose=True,
        purposes=_SERVE,
        body=BranchIn,
        headers=(PURPOSE,),
        errors=(NotFound, Conflict),
        tags=("sessions",),
        request_example={"turn": 6},
    ),
)
