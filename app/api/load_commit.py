"""POST /v1/load and POST /v1/commit: all that a dialogue turn needs, and all that it changes."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from app.api.convert import (
    call_of,
    committed_out,
    deletes_in,
    loaded_out,
    making_in,
    merges_in,
    puts_in,
    selects_in,
    turn_out,
    turns_in,
)
from app.api.http import Answer, Request, json_answer
from app.api.schemas_turn import AppChanges, CommitIn, CommitOut, LoadIn, LoadOut, SubjectChanges
from app.api.table import IDEMPOTENCY_KEY, PURPOSE, ResponseDoc, Route
from app.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    NumberNotRepresentable,
    PreconditionFailed,
    PreconditionRequired,
)
from app.identity import Kind, Purpose, Scope
from app.services.changes import Changes, Making, Select, TurnRange, Where
from app.services.dialogue import Loading
from app.services.services import Services


def session_of(session: UUID | None, external_id: str | None) -> Where:
    """The session that a body names: by exactly one of its two names."""
    if (session is None) == (external_id is None):
        raise InvalidRequest("Name the session by either session or external_id.")
    return Where(Kind.SESSION, session, external_id)


async def load(services: Services, request: Request, body: LoadIn) -> Answer:
    where = session_of(body.session, body.external_id)
    turns = TurnRange(body.turns.last) if body.turns is not None else None
    parts = [Loading(where, "context.load", selects_in(body.context, "/context"), turns)]
    if body.subject_context is not None and not body.subject:
        raise InvalidRequest("subject_context goes with subject: true.", "/subject_context")
    if body.app_context is not None and body.app is None:
        raise InvalidRequest("app_context goes with app.", "/app_context")
    if body.subject:
        selects = [Select()] if body.subject_context is None else selects_in(body.subject_context, "/subject_context")
        parts.append(Loading(where, "context.load", selects, hop=True))
    if body.app is not None:
        selects = [Select()] if body.app_context is None else selects_in(body.app_context, "/app_context")
        parts.append(Loading(Where(Kind.APP, external=body.app), "context.load", selects))
    opened = await services.dialogue.load(call_of(request), parts)
    session = opened[0]
    if session is None:
        raise NotFound
    rest = iter(opened[1:])
    subject = next(rest) if body.subject else None
    app = next(rest) if body.app is not None else None
    return json_answer(
        LoadOut(
            loaded_out(session),
            [turn_out(turn) for turn in session.turns],
            loaded_out(subject) if subject is not None else None,
            loaded_out(app) if app is not None else None,
        )
    )


async def commit(services: Services, request: Request, body: CommitIn) -> Answer:
    call = call_of(request, body)
    where = session_of(body.session, body.external_id)
    if body.create is not None and body.session is not None:
        raise InvalidRequest("A session is created under an external_id; one with an id exists.", "/create")
    largest = services.limits.object
    parts = [
        Changes(
            where,
            "context.commit",
            puts_in(body.put, "/put", largest),
            merges_in(body.merge, largest),
            deletes_in(body.delete, "/delete"),
            turns_in(body.turns, "/turns", largest),
            body.expected_commit,
        )
    ]
    if body.create is not None:
        parts[0].make = making_in(body.create.subject, body.create.labels, body.create.ttl)
    if body.subject is not None:
        parts.append(_subject_part(services, body, where, body.subject))
    if body.app is not None:
        app = Where(Kind.APP, external=body.app.name)
        parts.append(_changes_of(services, app, body.app, "/app"))
    applied = await services.dialogue.commit(call, parts)
    rest = iter(applied[1:])
    return json_answer(
        CommitOut(
            committed_out(applied[0]),
            committed_out(next(rest)) if body.subject is not None else None,
            committed_out(next(rest)) if body.app is not None else None,
        )
    )


def _subject_part(services: Services, body: CommitIn, where: Where, changes: SubjectChanges) -> Changes:
    """The subject by the name that ``create`` gives, else the session's."""
    if body.create is not None and body.create.subject is not None:
        subject = Where(Kind.SUBJECT, external=body.create.subject)
    else:
        subject = Where(Kind.SUBJECT, session=where)
    return _changes_of(services, subject, changes, "/subject")


def _changes_of(services: Services, where: Where, changes: SubjectChanges | AppChanges, pointer: str) -> Changes:
    return Changes(
        where,
        "context.commit",
        puts_in(changes.put, f"{pointer}/put", services.limits.object),
        merges_in(changes.merge, services.limits.object),
        deletes_in(changes.delete, f"{pointer}/delete"),
        expected_commit=changes.expected_commit,
        make=Making() if where.external is not None else None,
    )


_TAGS: Final = ("dialogue",)

ROUTES: Final = (
    Route(
        "POST",
        "/v1/load",
        load,
        "load",
        "Load all that a dialogue turn needs",
        {200: ResponseDoc("The session's selected context and turns; its subject's and an app's.", LoadOut)},
        scope=Scope.CONTEXT_READ,
        purpose=True,
        purposes=(Purpose.SERVE,),
        body=LoadIn,
        headers=(PURPOSE,),
        errors=(NotFound,),
        tags=_TAGS,
        description="One round trip. Turns come oldest first, objects newest first.",
        request_example={"external_id": "call-7281", "context": [{"collection": "state"}], "turns": {"last": 10}},
    ),
    Route(
        "POST",
        "/v1/commit",
        commit,
        "commit",
        "Commit a dialogue turn, all or nothing",
        {200: ResponseDoc("The new versions and commit numbers.", CommitOut)},
        scope=Scope.CONTEXT_WRITE,
        purpose=True,
        purposes=(Purpose.SERVE,),
        body=CommitIn,
        limit="envelope",
        headers=(IDEMPOTENCY_KEY, PURPOSE),
        errors=(
            NotFound,
            Conflict,
            PreconditionFailed,
            PreconditionRequired,
            IdempotencyMismatch,
            NumberNotRepresentable,
        ),
        tags=_TAGS,
        request_example={
            "external_id": "call-7281",
            "create": {"subject": "customer-19"},
            "put": [{"collection": "state", "key": "slots", "json": {"city": "Bern"}}],
            "turns": [{"json": {"role": "user", "text": "A table in Bern, please."}}],
        },
    ),
)
