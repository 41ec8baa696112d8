# ruff: noqa: S608  what is put into the texts is a column list of this module
"""SQL of incidents: the cell's rows (nil tenant), each tenant's own part, notices. Entries are only ever added."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.identity import NO_UUID
from app.store.ledger import Transaction

INCIDENT: Final = "id, kind, dedupe, draft, detected_at, customer_due, authority_due, opened_at"
LEADER: Final = 7_203_561
"""Advisory lock: one worker at a time raises overdue alarms, delivers notices and runs detections."""


async def lead(tx: Transaction) -> bool:
    found: bool = await tx.connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LEADER)
    return found


async def insert(
    tx: Transaction,
    incident: UUID,
    kind: str,
    dedupe: str | None,
    detected_at: datetime,
    due: tuple[datetime, datetime],
) -> Any:
    """None where a detection has drafted it before. ``due``: customers, authority."""
    return await tx.connection.fetchrow(
        "INSERT INTO confide.incident (tenant_id, id, kind, dedupe, draft, detected_at, customer_due, authority_due)"
        f" VALUES ($1, $2, $3, $4::text, $4::text IS NOT NULL, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING {INCIDENT}",
        NO_UUID,
        incident,
        kind,
        dedupe,
        detected_at,
        *due,
    )


async def get(tx: Transaction, incident: UUID, now: datetime) -> Any:
    """``now`` in the row: the later of the worker's clock, which is given, and the database's."""
    return await tx.connection.fetchrow(
        f"SELECT {INCIDENT}, greatest(now(), $3) AS now FROM confide.incident WHERE tenant_id = $1 AND id = $2",
        NO_UUID,
        incident,
        now,
    )


async def page(tx: Transaction, before: UUID | None, limit: int, now: datetime) -> list[Any]:
    """The newest first. ``now``: as in ``get``."""
    return list(
        await tx.connection.fetch(
            f"SELECT {INCIDENT}, greatest(now(), $4) AS now FROM confide.incident WHERE tenant_id = $1"
            " AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
            NO_UUID,
            before,
            limit,
            now,
        )
    )


async def add(
    tx: Transaction,
    incident: UUID,
    kind: str,
    *,
    actor: UUID | None = None,
    audience: str | None = None,
    affected: UUID | None = None,
    detail: dict[str, Any] | None = None,
    words: str | None = None,
    at: datetime,
) -> Any:
    """The next entry of an incident's history. Two writers wait for each other, so that numbers have no gap.

    It is dated by the later of the worker's clock (``at``) and the database's, and never before the entry before it.
    """
    await tx.connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1::uuid::text, 1))", incident)
    return await tx.connection.fetchrow(
        "INSERT INTO confide.incident_entry (tenant_id, incident_id, number, kind, actor, audience, affected, detail,"
        " words, at) SELECT $1, $2, coalesce(max(number), 0) + 1, $3, $4, $5, $6, $7, $8,"
        " greatest(clock_timestamp(), max(at), $9) FROM confide.incident_entry"
        " WHERE tenant_id = $1 AND incident_id = $2 RETURNING number, at",
        NO_UUID,
        incident,
        kind,
        actor,
        audience,
        affected,
        orjson.dumps(detail or {}).decode(),
        words,
        at,
    )


async def entries(tx: Transaction, incident: UUID) -> list[Any]:
    return list(
        await tx.connection.fetch(
            "SELECT number, at, kind, actor, audience, affected, detail, words FROM confide.incident_entry"
            " WHERE tenant_id = $1 AND incident_id = $2 ORDER BY number",
            NO_UUID,
            incident,
        )
    )


async def overdue(tx: Transaction, now: datetime) -> list[Any]:
    """(id, audience, due, now) of incidents whose deadline has passed with nobody told, or one of the affected tenants
    not, and no alarm raised yet.

    Passed by the worker's clock (``now``) or the database's.
    """
    return list(
        await tx.connection.fetch(
            "SELECT i.id, a.audience, a.due, now() AS now FROM confide.incident i,"
            " LATERAL (VALUES ('customer', i.customer_due), ('authority', i.authority_due)) AS a (audience, due)"
            " WHERE i.tenant_id = $1 AND a.due < greatest(now(), $2) AND NOT EXISTS ("
            "  SELECT FROM confide.incident_entry e WHERE e.tenant_id = i.tenant_id AND e.incident_id = i.id"
            "  AND (e.kind = 'closed' OR (e.kind = 'overdue' AND e.audience = a.audience)))"
            " AND (NOT EXISTS (SELECT FROM confide.incident_entry n WHERE n.tenant_id = i.tenant_id"
            "  AND n.incident_id = i.id AND n.kind = 'notified' AND n.audience = a.audience)"
            " OR (a.audience = 'customer' AND EXISTS (SELECT FROM confide.incident_entry s WHERE"
            "  s.tenant_id = i.tenant_id AND s.incident_id = i.id AND s.kind = 'scoped' AND s.affected <> i.tenant_id"
            "  AND NOT EXISTS (SELECT FROM confide.incident_entry n WHERE n.tenant_id = i.tenant_id"
            "  AND n.incident_id = i.id AND n.kind = 'notified' AND n.affected = s.affected))))",
            NO_UUID,
            now,
        )
    )


# ---------------------------------------------------------------- what a tenant sees


async def insert_part(tx: Transaction, tenant: UUID, incident: UUID, scope: Any, containers: Any) -> None:
    await tx.connection.execute(
        "INSERT INTO confide.incident_part (tenant_id, incident_id, scope, containers) VALUES ($1, $2, $3, $4)",
        tenant,
        incident,
        orjson.dumps(scope, str).decode(),
        orjson.dumps(containers, str).decode(),
    )


async def parts(tx: Transaction, tenant: UUID) -> list[Any]:
    return list(
        await tx.connection.fetch(
            "SELECT incident_id, at, scope, containers FROM confide.incident_part WHERE tenant_id = $1"
            " ORDER BY at DESC LIMIT 100",
            tenant,
        )
    )


# ---------------------------------------------------------------- notices


async def insert_notice(tx: Transaction, tenant: UUID, notice: UUID, incident: UUID, body: str) -> None:
    await tx.connection.execute(
        "INSERT INTO confide.notice (tenant_id, id, incident_id, audience, body) VALUES ($1, $2, $3, 'customer', $4)",
        tenant,
        notice,
        incident,
        body,
    )


async def waiting(tx: Transaction, limit: int) -> list[Any]:
    return list(await tx.connection.fetch("SELECT * FROM confide.waiting_notices($1)", limit))


async def notice(tx: Transaction, tenant: UUID, notice_id: UUID) -> Any:
    return await tx.connection.fetchrow(
        "SELECT id, incident_id, body, attempts, delivered_at FROM confide.notice WHERE tenant_id = $1 AND id = $2",
        tenant,
        notice_id,
    )


async def tried(tx: Transaction, tenant: UUID, notice_id: UUID, error: str | None, again: float) -> None:
    """Note one try. ``error`` None: it was delivered. ``again``: seconds until the next try."""
    await tx.connection.execute(
        "UPDATE confide.notice SET attempts = attempts + 1, last_error = $3,"
        " delivered_at = CASE WHEN $3::text IS NULL THEN now() END, next_at = now() + $4 * interval '1 second'"
        " WHERE tenant_id = $1 AND id = $2 AND delivered_at IS NULL",
        tenant,
        notice_id,
        error,
        again,
    )


async def notices(tx: Transaction, tenants: Sequence[UUID], limit: int) -> list[Any]:
    """The newest first, of tenants that the transaction sees."""
    return list(
        await tx.connection.fetch(
            "SELECT tenant_id AS tenant, id, incident_id AS incident, audience, created_at, attempts, next_at,"
            " delivered_at, last_error FROM confide.notice WHERE tenant_id = ANY ($1) ORDER BY id DESC LIMIT $2",
            list(tenants),
            limit,
        )
    )


# ---------------------------------------------------------------- what happened


async def tenants_of(tx: Transaction, principal: UUID | None, api_key: UUID | None) -> list[UUID]:
    rows = await tx.connection.fetch("SELECT * FROM confide.tenants_of($1, $2)", principal, api_key)
    return [row[0] for row in rows]


async def radius(
    tx: Transaction, tenants: Sequence[UUID], principal: UUID | None, api_key: UUID | None, trk: int | None,
    window: tuple[datetime, datetime], cuts: Sequence[tuple[UUID, datetime]] = (),
) -> list[Any]:  # fmt: skip
    """``cuts``: moments of tenants between which openings are counted apart (``periods``, from 0)."""
    await tx.connection.execute("SET LOCAL statement_timeout = '120s'")
    return list(
        await tx.connection.fetch(
            "SELECT * FROM confide.blast_radius($1, $2, $3, $4, $5, $6, $7, $8) ORDER BY tenant_id, first_at",
            list(tenants),
            principal,
            api_key,
            trk,
            *window,
            [tenant for tenant, _ in cuts],
            [moment for _, moment in cuts],
        )
    )


async def key_transitions(tx: Transaction, tenants: Sequence[UUID], until: datetime) -> list[Any]:
    """(tenant_id, time, action, detail) of what changed whether tenants' data could be opened, the oldest first."""
    return list(await tx.connection.fetch("SELECT * FROM confide.key_transitions($1, $2)", list(tenants), until))


async def suspicious(tx: Transaction, since: datetime, opened: datetime, until: datetime) -> list[Any]:
    """Denials since ``since``, openings since ``opened``."""
    return list(await tx.connection.fetch("SELECT * FROM confide.suspicious($1, $2, $3)", since, opened, until))


async def gaps(tx: Transaction, since: datetime, until: datetime) -> list[Any]:
    return list(await tx.connection.fetch("SELECT * FROM confide.audit_gaps($1, $2)", since, until))


async def looked_to(tx: Transaction) -> tuple[datetime | None, datetime]:
    """How far detections have looked (None where they never have), and the database's time."""
    found = await tx.connection.fetchrow("SELECT (SELECT looked_to FROM confide.detection_mark) AS mark, now() AS now")
    assert found is not None  # noqa: S101  a SELECT without FROM answers one row
    return found["mark"], found["now"]


async def note_looked_to(tx: Transaction, moment: datetime) -> None:
    await tx.connection.execute(
        "INSERT INTO confide.detection_mark (looked_to) VALUES ($1)"
        " ON CONFLICT (singleton) DO UPDATE SET looked_to = EXCLUDED.looked_to",
        moment,
    )
