"""How long the audit log is kept."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta

from app.api.audit_schemas import DroppedOut
from app.api.http import Answer, Request, json_answer
from app.api.schemas import In, Out
from app.api.table import ResponseDoc, Route
from app.errors import TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.audit_retention import MAX_MONTHS, MIN_MONTHS
from app.services.services import Services

_TAGS: Final = ("audit",)


class RetentionIn(In):
    months: Annotated[int, Meta(ge=MIN_MONTHS, le=MAX_MONTHS, description="How long events are kept.")]


class HeldOut(Out):
    """A month that is past its time and stays."""

    month: str
    why: str


class AuditRetentionOut(Out):
    """``dropped``: what went; ``held``: what is past its time but stays, and why."""

    months: int
    dropped: list[DroppedOut]
    held: list[HeldOut]
    oldest_event: datetime | None = None


async def read(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(await services.audit.retention.report(request.caller, trace_of(request)))


async def change(services: Services, request: Request, body: RetentionIn) -> Answer:
    return json_answer(await services.audit.retention.change(request.caller, body.months, trace_of(request)))


ROUTES: Final = (
    Route(
        "GET",
        "/v1/audit/retention",
        read,
        "get_audit_retention",
        "How long the audit log is kept, and what was dropped of it.",
        {200: ResponseDoc("The policy, and what came of it.", AuditRetentionOut)},
        scope=Scope.AUDIT_READ,
        tags=_TAGS,
        errors=(TenantSuspended,),
    ),
    Route(
        "PATCH",
        "/v1/audit/retention",
        change,
        "change_audit_retention",
        "Keep the audit log for 12 to 120 months.",
        {200: ResponseDoc("The policy as it stands.", AuditRetentionOut)},
        scope=Scope.TENANT_WRITE,
        body=RetentionIn,
        description=(
            "A month of events is dropped as a whole, when the longest retention of any tenant of the cell has passed,"
            " a signed checkpoint covers it, and every event of it was exported. The tree's hashes stay."
        ),
        tags=_TAGS,
        errors=(TenantSuspended,),
    ),
)
