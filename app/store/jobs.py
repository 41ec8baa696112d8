# ruff: noqa: S608  what is put into the texts is a column list of this module
"""SQL of background jobs. A job belongs to the worker that claimed it, as long as it renews its claim."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.store.ledger import Transaction

OPEN: Final = "SELECT tenant_id, id FROM confide.open_jobs($1)"
"""Jobs of all tenants that nobody works on: ids only."""

COLUMNS: Final = (
    "tenant_id, id, kind, state, api_key, principal, spec, progress, deadline, created_at, updated_at, finished_at"
)


async def insert(
    tx: Transaction,
    *,
    tenant: UUID,
    job: UUID,
    kind: str,
    spec: dict[str, Any],
    caller: tuple[UUID, UUID] | None,
    deadline: datetime | None,
) -> None:
    """A queued job. ``spec``: ids and numbers only; ``caller``: API key and principal, None for the service itself."""
    api_key, principal = caller or (None, None)
    await tx.connection.execute(
        "INSERT INTO confide.job (tenant_id, id, kind, state, api_key, principal, spec, deadline, created_at,"
        " updated_at) VALUES ($1, $2, $3, 'queued', $4, $5, $6, $7, now(), now())",
        tenant,
        job,
        kind,
        api_key,
        principal,
        orjson.dumps(spec).decode(),
        deadline,
    )


async def claim(tx: Transaction, tenant: UUID, job: UUID, worker: UUID, seconds: float) -> Any:
    """The job's row, ours for ``seconds``; None where somebody else has it or it is over."""
    return await tx.connection.fetchrow(
        "UPDATE confide.job SET state = 'running', claimed_by = $3, claimed_until = now() + $4 * interval '1 second',"
        " updated_at = now() WHERE tenant_id = $1 AND id = $2 AND state IN ('queued', 'running')"
        f" AND (claimed_until IS NULL OR claimed_until < now()) RETURNING {COLUMNS}",
        tenant,
        job,
        worker,
        seconds,
    )


async def renew(tx: Transaction, tenant: UUID, job: UUID, worker: UUID, seconds: float) -> bool:
    """Keep the claim. False: it is lost, and the work must stop."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide.job SET claimed_until = now() + $4 * interval '1 second' WHERE tenant_id = $1 AND id = $2"
            " AND state = 'running' AND claimed_by = $3 RETURNING true",
            tenant,
            job,
            worker,
            seconds,
        )
    )


async def progress(
    tx: Transaction, tenant: UUID, job: UUID, worker: UUID, counts: dict[str, int | str], seconds: float
) -> bool:
    """Merge ``counts`` into the progress, and keep the claim. False: the claim is lost; roll back."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide.job SET progress = progress || $4::jsonb, updated_at = now(),"
            " claimed_until = now() + $5 * interval '1 second' WHERE tenant_id = $1 AND id = $2"
            " AND state = 'running' AND claimed_by = $3 RETURNING true",
            tenant,
            job,
            worker,
            orjson.dumps(counts).decode(),
            seconds,
        )
    )


async def finish(tx: Transaction, tenant: UUID, job: UUID, worker: UUID, state: str) -> bool:
    """``state``: done, failed or blocked. False where the claim is lost."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide.job SET state = $4, updated_at = now(), claimed_by = NULL, claimed_until = NULL,"
            " finished_at = CASE WHEN $4 = 'blocked' THEN NULL ELSE now() END"
            " WHERE tenant_id = $1 AND id = $2 AND state = 'running' AND claimed_by = $3 RETURNING true",
            tenant,
            job,
            worker,
            state,
        )
    )


async def release(tx: Transaction, tenant: UUID, job: UUID, worker: UUID, seconds: float) -> None:
    """Give the job back: anybody may claim it after ``seconds``."""
    await tx.connection.execute(
        "UPDATE confide.job SET state = 'queued', claimed_by = NULL, claimed_until = now() + $4 * interval '1 second'"
        " WHERE tenant_id = $1 AND id = $2 AND state = 'running' AND claimed_by = $3",
        tenant,
        job,
        worker,
        seconds,
    )


async def unblock(tx: Transaction, tenant: UUID, job: UUID) -> bool:
    """A blocked job is queued again. False where it isn't blocked."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide.job SET state = 'queued', updated_at = now(), claimed_until = NULL"
            " WHERE tenant_id = $1 AND id = $2 AND state = 'blocked' RETURNING true",
            tenant,
            job,
        )
    )


async def get(tx: Transaction, tenant: UUID, job: UUID) -> Any:
    return await tx.connection.fetchrow(
        f"SELECT {COLUMNS} FROM confide.job WHERE tenant_id = $1 AND id = $2", tenant, job
    )


async def unfinished(tx: Transaction, tenant: UUID, kinds: list[str]) -> list[Any]:
    """The tenant's jobs of these kinds that aren't over, the oldest first."""
    return list(
        await tx.connection.fetch(
            f"SELECT {COLUMNS} FROM confide.job WHERE tenant_id = $1 AND kind = ANY($2::text[])"
            " AND state IN ('queued', 'running', 'blocked') ORDER BY created_at",
            tenant,
            kinds,
        )
    )
