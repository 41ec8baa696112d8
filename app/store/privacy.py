# ruff: noqa: S608  what is put into the texts are column and table names of this module
"""SQL of erasures, holds, receipts and bulk reads. Nothing here opens anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from app.identity import new_id
from app.store.ledger import Transaction

# ---------------------------------------------------------------- erasure


async def exists(tx: Transaction, tenant: UUID, container: UUID) -> str | None:
    """The container's kind, also of an expired one; None where there is no such container."""
    kind: str | None = await tx.connection.fetchval(
        "SELECT kind FROM confide.container WHERE tenant_id = $1 AND id = $2", tenant, container
    )
    return kind


async def of_subject(tx: Transaction, tenant: UUID, subject: UUID, after: UUID, limit: int) -> list[UUID]:
    """Sessions of a subject, expired ones too, by id."""
    rows = await tx.connection.fetch(
        "SELECT id FROM confide.container WHERE tenant_id = $1 AND subject_id = $2 AND id > $3 ORDER BY id LIMIT $4",
        tenant,
        subject,
        after,
        limit,
    )
    return [row["id"] for row in rows]


async def any_containers(tx: Transaction, tenant: UUID, after: UUID, limit: int) -> list[tuple[UUID, str]]:
    """Id and kind of everything that a tenant has, by id."""
    rows = await tx.connection.fetch(
        "SELECT id, kind FROM confide.container WHERE tenant_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        tenant,
        after,
        limit,
    )
    return [(row["id"], row["kind"]) for row in rows]


async def note_erased(tx: Transaction, job: UUID, row: Any, event: UUID) -> None:
    await tx.connection.execute(
        "INSERT INTO confide.erased (tenant_id, job_id, container_id, kind, objects, turns, keys, event_id)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        row["tenant_id"],
        job,
        row["id"],
        row["kind"],
        row["objects"],
        row["turns"],
        row["keys"],
        event,
    )


async def erased(tx: Transaction, tenant: UUID, job: UUID) -> list[Any]:
    return list(
        await tx.connection.fetch(
            "SELECT container_id, kind, objects, turns, keys, event_id, at FROM confide.erased"
            " WHERE tenant_id = $1 AND job_id = $2 ORDER BY at, container_id",
            tenant,
            job,
        )
    )


async def leaves(tx: Transaction, tenant: UUID, events: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
    """Epoch and leaf of those events that are sealed."""
    rows = await tx.connection.fetch(
        "SELECT id, epoch, leaf FROM confide_audit.event WHERE tenant_id = $1 AND id = ANY ($2)", tenant, list(events)
    )
    return {row["id"]: (row["epoch"], row["leaf"]) for row in rows}


async def blocked_jobs(tx: Transaction, tenant: UUID, kind: str) -> list[UUID]:
    rows = await tx.connection.fetch(
        "SELECT id FROM confide.job WHERE tenant_id = $1 AND kind = $2 AND state = 'blocked'", tenant, kind
    )
    return [row["id"] for row in rows]


# ---------------------------------------------------------------- attestations


async def keep_attestation(tx: Transaction, tenant: UUID, kind: str, about: UUID, note: str) -> UUID:
    made = new_id()
    await tx.connection.execute(
        "INSERT INTO confide.attestation (tenant_id, id, kind, about, note) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        made,
        kind,
        about,
        note,
    )
    return made


async def attestation(tx: Transaction, tenant: UUID, about: UUID) -> str | None:
    note: str | None = await tx.connection.fetchval(
        "SELECT note FROM confide.attestation WHERE tenant_id = $1 AND about = $2 ORDER BY created_at LIMIT 1",
        tenant,
        about,
    )
    return note


# ---------------------------------------------------------------- legal holds

HOLD: Final = "id, container_id, reason, set_by, api_key, created_at, released_at, released_by"


async def insert_hold(
    tx: Transaction, tenant: UUID, hold: UUID, container: UUID, reason: bytes, principal: UUID, key: UUID
) -> Any:
    """The hold's row, and the flag on the container and on a subject's sessions."""
    row = await tx.connection.fetchrow(
        "INSERT INTO confide.legal_hold (tenant_id, id, container_id, reason, set_by, api_key)"
        f" VALUES ($1, $2, $3, $4, $5, $6) RETURNING {HOLD}",
        tenant,
        hold,
        container,
        reason,
        principal,
        key,
    )
    await flag_held(tx, tenant, container)
    return row


async def flag_held(tx: Transaction, tenant: UUID, container: UUID) -> None:
    """The flag on the container and on a subject's sessions; those that come later get it from a trigger."""
    for column in ("id", "subject_id"):
        await tx.connection.execute(
            f"UPDATE confide.container SET hold = true WHERE tenant_id = $1 AND {column} = $2 AND NOT hold"
            " AND EXISTS (SELECT FROM confide.legal_hold WHERE tenant_id = $1 AND container_id = $2"
            "  AND released_at IS NULL)",
            tenant,
            container,
        )


async def release_hold(tx: Transaction, tenant: UUID, hold: UUID, principal: UUID) -> Any:
    """The row, or None where there is no open hold of that id. A trigger keeps what something else still holds."""
    row = await tx.connection.fetchrow(
        "UPDATE confide.legal_hold SET released_at = now(), released_by = $3"
        f" WHERE tenant_id = $1 AND id = $2 AND released_at IS NULL RETURNING {HOLD}",
        tenant,
        hold,
        principal,
    )
    if row is not None:
        for column in ("id", "subject_id"):
            await tx.connection.execute(
                "UPDATE confide.container SET hold = false, sweep_at = least(sweep_at, expires_at)"
                f" WHERE tenant_id = $1 AND {column} = $2",
                tenant,
                row["container_id"],
            )
    return row


async def holds(tx: Transaction, tenant: UUID, *, everything: bool, limit: int) -> list[Any]:
    """Open holds, or all; the newest first."""
    return list(
        await tx.connection.fetch(
            f"SELECT {HOLD} FROM confide.legal_hold WHERE tenant_id = $1 AND ($2 OR released_at IS NULL)"
            " ORDER BY id DESC LIMIT $3",
            tenant,
            everything,
            limit,
        )
    )


async def holds_on(tx: Transaction, tenant: UUID, container: UUID) -> list[Any]:
    """Open holds on a container, its subject, or the subject's sessions: what blocks its erasure."""
    return list(
        await tx.connection.fetch(
            "SELECT h.id, h.container_id, h.set_by, h.created_at FROM confide.legal_hold h"
            " LEFT JOIN confide.container c ON c.tenant_id = h.tenant_id AND c.id = h.container_id"
            " LEFT JOIN confide.container a ON a.tenant_id = h.tenant_id AND a.id = $2"
            " WHERE h.tenant_id = $1 AND h.released_at IS NULL"
            " AND (h.container_id IN ($2, a.subject_id) OR c.subject_id = $2)",
            tenant,
            container,
        )
    )


# ---------------------------------------------------------------- bulk reads


async def begin_bulk_read(
    tx: Transaction, tenant: UUID, kind: str, purpose: str, key: UUID, principal: UUID, most: int, seconds: int
) -> UUID | None:
    """Note that a bulk read begins; None where ``most`` of its kind have begun in the last ``seconds``."""
    await tx.connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('bulk-read' || $1::uuid::text, 0))", tenant
    )
    recent: int = await tx.connection.fetchval(
        "SELECT count(*) FROM confide.bulk_read WHERE tenant_id = $1 AND kind = $2"
        " AND started_at > now() - $3 * interval '1 second'",
        tenant,
        kind,
        float(seconds),
    )
    if recent >= most:
        return None
    made = new_id()
    await tx.connection.execute(
        "INSERT INTO confide.bulk_read (tenant_id, id, kind, purpose, api_key, principal)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        tenant,
        made,
        kind,
        purpose,
        key,
        principal,
    )
    return made


async def end_bulk_read(tx: Transaction, tenant: UUID, read: UUID, containers: int) -> None:
    await tx.connection.execute(
        "UPDATE confide.bulk_read SET finished_at = now(), containers = $3 WHERE tenant_id = $1 AND id = $2",
        tenant,
        read,
        containers,
    )


# ---------------------------------------------------------------- offboarding


async def open_holds(tx: Transaction, tenant: UUID) -> int:
    """Legal holds and held containers: while there is one, a tenant can't leave."""
    found: int = await tx.connection.fetchval(
        "SELECT (SELECT count(*) FROM confide.legal_hold WHERE tenant_id = $1 AND released_at IS NULL)"
        " + (SELECT count(*) FROM (SELECT FROM confide.container WHERE tenant_id = $1 AND hold LIMIT 1) c)",
        tenant,
    )
    return found


async def destroy_keys(tx: Transaction, tenant: UUID) -> dict[str, int]:
    """Delete every wrapped key and binding of the tenant, and what its keys sealed. Answers how many of each."""
    counts = {}
    for name, table in (
        ("root_keys", "confide_keys.root_key"),
        ("index_keys", "confide_keys.index_key"),
        ("bindings", "confide_keys.binding"),
        ("answers", "confide.idempotency"),
    ):
        status: str = await tx.connection.execute(f"DELETE FROM {table} WHERE tenant_id = $1", tenant)
        counts[name] = int(status.rsplit(maxsplit=1)[-1])
    return counts


async def revoke_keys_but_auditors(tx: Transaction, tenant: UUID) -> None:
    await tx.connection.execute(
        "UPDATE confide.api_key SET revoked_at = now() WHERE tenant_id = $1 AND role <> 'auditor'"
        " AND revoked_at IS NULL",
        tenant,
    )


async def leaving_job(tx: Transaction, tenant: UUID) -> Any:
    return await tx.connection.fetchrow(
        "SELECT id, kind, state, created_at, deadline, finished_at FROM confide.job"
        " WHERE tenant_id = $1 AND kind = 'offboarding' ORDER BY created_at DESC LIMIT 1",
        tenant,
    )
