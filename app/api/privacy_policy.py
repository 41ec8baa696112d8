"""Retention and legal holds: what a tenant's data protection officer asks first."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from app.api.http import Answer, Request, json_answer
from app.api.schemas import Out
from app.api.table import ResponseDoc, Route
from app.errors import TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.services import Services

_TAGS: Final = ("privacy",)


class PolicyOut(Out):
    """Seconds. A session lasts ``session_idle_seconds`` after its last commit unless it says otherwise; nothing of a
    person's lasts longer than ``longest_seconds`` without a commit."""

    session_idle_seconds: int
    subject_idle_seconds: int
    longest_seconds: int
    overdue_after_seconds: int


class StoredOut(Out):
    """Of one kind. ``expired`` ones are invisible and wait for the sweeper; ``overdue`` ones wait too long."""

    kind: str
    stored: int
    held: int = msgspec.field()
    expired: int = msgspec.field()
    overdue: int = msgspec.field()
    without_end: int = msgspec.field()
    oldest: datetime = msgspec.field()
    longest_idle: datetime = msgspec.field()
    last_expiry: datetime | None = None


class RetentionOut(Out):
    policy: PolicyOut
    overdue: int
    kinds: list[StoredOut]


async def retention(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.privacy.retention.report(request.caller, trace_of(request)))


ROUTES: Final = (
    Route(
        "GET",
        "/v1/privacy/retention",
        retention,
        "get_retention",
        "How long data is kept, the oldest there is, and how much is overdue",
        {200: ResponseDoc("Policy and counts.", RetentionOut)},
        scope=Scope.PRIVACY_READ,
        tags=_TAGS,
        errors=(TenantSuspended,),
    ),
)
