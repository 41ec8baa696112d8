# ruff: noqa: S608  what is put into the texts are column lists of this module
"""SQL of consents, contacts, acceptances, and of the account of openings. Nothing here opens anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Transaction

CONSENT: Final = (
    "id, scope, destination, safeguard, granted_by, api_key, granted_at, expires_at, revoked_at, revoked_by"
)
ACCEPTANCE: Final = "id, document, version, digest, accepted_by, api_key, accepted_at"


async def insert_consent(
    tx: Transaction, tenant: UUID, consent: UUID, scope: str, destination: str, safeguard: str,
    who: tuple[UUID, UUID], expires_at: datetime,
) -> Any:  # fmt: skip
    """``who``: principal and API key."""
    return await tx.connection.fetchrow(
        "INSERT INTO confide.consent (tenant_id, id, scope, destination, safeguard, granted_by, api_key, expires_at)"
        f" VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {CONSENT}",
        tenant,
        consent,
        scope,
        destination,
        safeguard,
        *who,
        expires_at,
    )


async def revoke_consent(tx: Transaction, tenant: UUID, consent: UUID, principal: UUID) -> Any:
    """The row; None where there is no consent of that id that stands."""
    return await tx.connection.fetchrow(
        "UPDATE confide.consent SET revoked_at = now(), revoked_by = $3"
        f" WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL RETURNING {CONSENT}",
        tenant,
        consent,
        principal,
    )


async def consents(tx: Transaction, tenant: UUID, limit: int) -> list[Any]:
    """The newest first, those that have ended too."""
    return list(
        await tx.connection.fetch(
            f"SELECT {CONSENT} FROM confide.consent WHERE tenant_id = $1 ORDER BY id DESC LIMIT $2", tenant, limit
        )
    )


async def consent_stands(tx: Transaction, tenant: UUID, scope: str, destination: str) -> bool:
    found: bool = await tx.connection.fetchval(
        "SELECT EXISTS (SELECT FROM confide.consent WHERE tenant_id = $1 AND scope = $2 AND destination = $3"
        " AND revoked_at IS NULL AND expires_at > now())",
        tenant,
        scope,
        destination,
    )
    return found


async def consented(tx: Transaction, tenant: UUID, scope: str) -> frozenset[str]:
    """Where something may go now: destinations of consents of ``scope`` that stand."""
    found = await tx.connection.fetch(
        "SELECT destination FROM confide.consent WHERE tenant_id = $1 AND scope = $2"
        " AND revoked_at IS NULL AND expires_at > now()",
        tenant,
        scope,
    )
    return frozenset(row["destination"] for row in found)


# ---------------------------------------------------------------- contacts and acceptances


async def put_contact(tx: Transaction, tenant: UUID, url: str, host: str, region: str, principal: UUID) -> Any:
    """``url`` is sealed."""
    return await tx.connection.fetchrow(
        "INSERT INTO confide.notice_contact (tenant_id, url, host, region, set_by) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (tenant_id) DO UPDATE SET url = EXCLUDED.url, host = EXCLUDED.host, region = EXCLUDED.region,"
        " set_by = EXCLUDED.set_by, changed_at = now() RETURNING host, region, set_by, changed_at",
        tenant,
        url,
        host,
        region,
        principal,
    )


async def contact(tx: Transaction, tenant: UUID) -> Any:
    return await tx.connection.fetchrow(
        "SELECT url, host, region, set_by, changed_at FROM confide.notice_contact WHERE tenant_id = $1", tenant
    )


async def insert_acceptance(
    tx: Transaction, tenant: UUID, acceptance: UUID, document: str, version: str, digest: str, who: tuple[UUID, UUID]
) -> Any:
    return await tx.connection.fetchrow(
        "INSERT INTO confide.trust_acceptance (tenant_id, id, document, version, digest, accepted_by, api_key)"
        f" VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {ACCEPTANCE}",
        tenant,
        acceptance,
        document,
        version,
        digest,
        *who,
    )


async def acceptances(tx: Transaction, tenant: UUID) -> list[Any]:
    return list(
        await tx.connection.fetch(
            f"SELECT {ACCEPTANCE} FROM confide.trust_acceptance WHERE tenant_id = $1 ORDER BY id DESC LIMIT 500", tenant
        )
    )


# ---------------------------------------------------------------- the account of openings

# An opening is an allowed event that names a purpose: every use of a key for somebody's context does.
SEARCH: Final = "SET LOCAL enable_bitmapscan = on; SET LOCAL enable_seqscan = on; SET LOCAL statement_timeout = '120s'"
OPENINGS: Final = """
SELECT e.purpose, e.principal::text AS principal, e.action,
       coalesce(x.v ->> 'region', '') AS region, coalesce(x.v ->> 'role', 'service') AS role,
       coalesce(x.v #>> '{detail,job}', '') AS job, count(*) AS openings
FROM confide_audit.event e, LATERAL (SELECT convert_from(e.entry, 'UTF8')::jsonb AS v OFFSET 0) x
WHERE e.tenant_id = $1 AND e.time >= $2 AND e.time < $3 AND e.outcome = 'allowed' AND e.purpose IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
"""
COUNTED: Final = """
SELECT e.epoch, min(e.leaf) AS first, max(e.leaf) AS last, count(*) AS events,
       count(*) FILTER (WHERE e.outcome = 'allowed' AND e.purpose IS NOT NULL) AS openings
FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.time >= $2 AND e.time < $3 GROUP BY 1 ORDER BY 1
"""
UNSEALED: Final = """
SELECT count(*) FROM confide_audit.journal j WHERE j.tenant_id = $1 AND j.time >= $2 AND j.time < $3
AND NOT EXISTS (SELECT FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.id = j.id)
"""


async def account(tx: Transaction, tenant: UUID, since: datetime, until: datetime) -> tuple[list[Any], list[Any], int]:
    """Groups of openings; ranges of leaves with their counts; and how many events of the period aren't sealed yet."""
    await tx.connection.execute(SEARCH)
    groups = list(await tx.connection.fetch(OPENINGS, tenant, since, until))
    ranges = list(await tx.connection.fetch(COUNTED, tenant, since, until))
    waiting: int = await tx.connection.fetchval(UNSEALED, tenant, since, until)
    return groups, ranges, waiting


async def dropped(tx: Transaction, tenants: Sequence[UUID], since: datetime, until: datetime) -> list[Any]:
    """(tenant_id, epoch, first, beyond, newest) of leaves with events of the period that retention has dropped."""
    return list(await tx.connection.fetch("SELECT * FROM confide.dropped_log($1, $2, $3)", list(tenants), since, until))
