"""Background jobs: what became of what a request has started."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.api.http import Answer, Request, json_answer
from app.api.schemas import Out
from app.api.table import ResponseDoc, Route
from app.errors import NotFound, TenantSuspended
from app.identity import Scope
from app.services.access import trace_of
from app.services.services import Services


class JobOut(Out):
    """A job. ``state``: queued, running, done, failed, or blocked (something outside must change first).

    ``progress`` has counts and cursors particular to the kind.
    """

    id: UUID
    kind: str
    state: str
    progress: dict[str, int | str]
    created_at: datetime
    updated_at: datetime
    deadline: datetime | None = None
    finished_at: datetime | None = None

    @classmethod
    def of(cls, row: Any) -> JobOut:
        values = {name: row[name] for name in cls.__struct_fields__}
        values["progress"] = orjson.loads(row["progress"])
        return cls(**values)


async def get(services: Services, request: Request, _body: None) -> Answer:
    row = await services.jobs.get(request.caller, request.path_id(), trace_of(request))
    headers = () if row["state"] in {"done", "failed"} else ((b"retry-after", b"1"),)
    return json_answer(JobOut.of(row), headers=headers)


ROUTES: Final = (
    Route(
        "GET",
        "/v1/jobs/{id}",
        get,
        "get_job",
        "Get a background job of the tenant's: its state and how far it is.",
        {200: ResponseDoc("The job.", JobOut)},
        scope=Scope.TENANT_READ,
        tags=("jobs",),
        errors=(NotFound, TenantSuspended),
    ),
)
