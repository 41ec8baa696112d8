# ruff: noqa: S608  what is put into the texts is a column list of this module
"""SQL of key bindings: what a tenant's KEK is, how it stands, and what depends on it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import orjson

from app.store.ledger import Transaction

CHANGED: Final = "SELECT id, changed_at FROM confide.changed_tenants($1, $2)"
STANDINGS: Final = "SELECT id, epoch, state, key_state FROM confide.standings($1)"
DUE_PROBES: Final = "SELECT tenant_id, id FROM confide.due_probes($1)"
DUE_DESCRIPTIONS: Final = "SELECT tenant_id, id FROM confide.due_descriptions($1, $2)"
DUE_ROTATIONS: Final = "SELECT tenant_id FROM confide.due_rotations($1)"

COLUMNS: Final = (
    "tenant_id, id, provider, fields, external_id, state, current, report, kek, kek_version, created_at, changed_at,"
    " checked_at, activated_at, retired_at, described_at, used_at, statement, transfer_to,"
    " (transfer_to IS NULL OR confide.consent_stands(tenant_id, 'kms', transfer_to)) AS consented"
)
IN_USE: Final = ("active", "unavailable", "revoked", "retiring")


async def insert(
    tx: Transaction,
    tenant: UUID,
    binding: UUID,
    provider: str,
    fields: dict[str, Any],
    external_id: str,
    transfer_to: str | None,
) -> Any:
    return await tx.connection.fetchrow(
        "INSERT INTO confide_keys.binding (tenant_id, id, provider, fields, external_id, transfer_to, state,"
        f" created_at, changed_at) VALUES ($1, $2, $3, $4, $5, $6, 'pending', now(), now()) RETURNING {COLUMNS}",
        tenant,
        binding,
        provider,
        orjson.dumps(fields).decode(),
        external_id,
        transfer_to,
    )


async def get(tx: Transaction, tenant: UUID, binding: UUID, *, lock: bool = False) -> Any:
    return await tx.connection.fetchrow(
        f"SELECT {COLUMNS} FROM confide_keys.binding WHERE tenant_id = $1 AND id = $2"
        + (" FOR UPDATE" if lock else ""),
        tenant,
        binding,
    )


async def all_of(tx: Transaction, tenant: UUID) -> list[Any]:
    """The tenant's bindings, the oldest first."""
    return list(
        await tx.connection.fetch(
            f"SELECT {COLUMNS} FROM confide_keys.binding WHERE tenant_id = $1 ORDER BY id", tenant
        )
    )


async def move(tx: Transaction, tenant: UUID, binding: UUID, state: str, from_states: list[str]) -> str | None:
    """Set the state where it is one of ``from_states``. Answers the old one; None where nothing moved."""
    row = await tx.connection.fetchrow(
        "UPDATE confide_keys.binding b SET state = $3, changed_at = now() FROM"
        " (SELECT id, state FROM confide_keys.binding WHERE tenant_id = $1 AND id = $2 FOR UPDATE) old"
        " WHERE b.tenant_id = $1 AND b.id = old.id AND old.state = ANY($4::text[]) RETURNING old.state AS before",
        tenant,
        binding,
        state,
        from_states,
    )
    return str(row["before"]) if row is not None else None


async def is_revoked(tx: Transaction, tenant: UUID, binding: UUID) -> bool:
    row = await get(tx, tenant, binding)
    return row is not None and row["state"] == "revoked"


async def come_back(tx: Transaction, tenant: UUID, binding: UUID) -> tuple[str, str] | None:
    """From revoked or unavailable to active, or to retiring where another binding is current: (old, new) or None."""
    row = await tx.connection.fetchrow(
        "UPDATE confide_keys.binding b SET state = CASE WHEN b.current THEN 'active' ELSE 'retiring' END,"
        " changed_at = now() FROM"
        " (SELECT id, state FROM confide_keys.binding WHERE tenant_id = $1 AND id = $2 FOR UPDATE) old"
        " WHERE b.tenant_id = $1 AND b.id = old.id AND old.state IN ('revoked', 'unavailable')"
        " RETURNING old.state AS before, b.state AS after",
        tenant,
        binding,
    )
    return (row["before"], row["after"]) if row is not None else None


async def note_transfer(tx: Transaction, tenant: UUID, binding: UUID, transfer_to: str | None) -> None:
    """The region abroad that the key is in, as its service says; None: at home."""
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET transfer_to = $3 WHERE tenant_id = $1 AND id = $2"
        " AND transfer_to IS DISTINCT FROM $3",
        tenant,
        binding,
        transfer_to,
    )


async def unconsented(tx: Transaction, tenant: UUID) -> list[UUID]:
    """Bindings abroad whose consent doesn't stand, and that aren't stopped yet."""
    rows = await tx.connection.fetch(
        "SELECT id FROM confide_keys.binding WHERE tenant_id = $1 AND transfer_to IS NOT NULL"
        " AND state IN ('active', 'unavailable', 'retiring')"
        " AND NOT confide.consent_stands(tenant_id, 'kms', transfer_to) ORDER BY id",
        tenant,
    )
    return [row["id"] for row in rows]


async def unconsented_tenants(tx: Transaction, limit: int) -> list[UUID]:
    rows = await tx.connection.fetch("SELECT DISTINCT tenant_id FROM confide.unconsented_bindings($1)", limit)
    return [row["tenant_id"] for row in rows]


async def probe_abroad(tx: Transaction, tenant: UUID, destination: str) -> None:
    """Ask stopped bindings of that region again at once: a consent has come."""
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET probe_at = now() WHERE tenant_id = $1 AND transfer_to = $2"
        " AND state IN ('revoked', 'unavailable')",
        tenant,
        destination,
    )


async def probe_in(tx: Transaction, tenant: UUID, binding: UUID, seconds: float) -> None:
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET probe_at = now() + $3 * interval '1 second' WHERE tenant_id = $1 AND id = $2",
        tenant,
        binding,
        seconds,
    )


async def claim_probe(tx: Transaction, tenant: UUID, binding: UUID, seconds: float) -> Any:
    """The binding, ours to probe: nobody else will for ``seconds``. None where another worker was first."""
    return await tx.connection.fetchrow(
        "UPDATE confide_keys.binding SET probe_at = now() + $3 * interval '1 second'"
        " WHERE tenant_id = $1 AND id = $2 AND state IN ('revoked', 'unavailable') AND probe_at <= now()"
        " AND (transfer_to IS NULL OR confide.consent_stands(tenant_id, 'kms', transfer_to))"
        f" RETURNING {COLUMNS}",
        tenant,
        binding,
        seconds,
    )


async def claim_description(tx: Transaction, tenant: UUID, binding: UUID, seconds: float) -> Any:
    """The binding, ours to ask for its key's version. None where another worker was first."""
    return await tx.connection.fetchrow(
        "UPDATE confide_keys.binding SET described_at = now() WHERE tenant_id = $1 AND id = $2"
        " AND state IN ('active', 'retiring') AND described_at <= now() - $3 * interval '1 second'"
        f" RETURNING {COLUMNS}",
        tenant,
        binding,
        seconds,
    )


async def keep_report(tx: Transaction, tenant: UUID, binding: UUID, report: list[dict[str, Any]], *, ok: bool) -> Any:
    """The doctor's findings; a binding that isn't in use yet becomes checked, or pending again."""
    return await tx.connection.fetchrow(
        "UPDATE confide_keys.binding SET report = $3, checked_at = now(), changed_at = now(),"
        " state = CASE WHEN state NOT IN ('pending', 'checked') THEN state WHEN $4 THEN 'checked' ELSE 'pending' END"
        f" WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}",
        tenant,
        binding,
        orjson.dumps(report).decode(),
        ok,
    )


async def make_current(tx: Transaction, tenant: UUID, binding: UUID, kek: str, version: str) -> None:
    """The checked binding becomes the one that seals. The unique index lets one win."""
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET current = true, state = 'active', kek = $3, kek_version = $4,"
        " activated_at = now(), changed_at = now(), described_at = now(), used_at = now()"
        " WHERE tenant_id = $1 AND id = $2",
        tenant,
        binding,
        kek,
        version,
    )


async def step_down(tx: Transaction, tenant: UUID) -> UUID | None:
    """The current binding is moved away from: it only opens what is left under it. Answers its id."""
    found: UUID | None = await tx.connection.fetchval(
        "UPDATE confide_keys.binding SET current = false, changed_at = now(),"
        " state = CASE WHEN state = 'active' THEN 'retiring' ELSE state END"
        " WHERE tenant_id = $1 AND current RETURNING id",
        tenant,
    )
    return found


async def retire(tx: Transaction, tenant: UUID, binding: UUID, statement: dict[str, Any]) -> Any:
    return await tx.connection.fetchrow(
        "UPDATE confide_keys.binding SET state = 'retired', statement = $3, retired_at = now(), changed_at = now()"
        f" WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}",
        tenant,
        binding,
        orjson.dumps(statement).decode(),
    )


async def dependents(tx: Transaction, tenant: UUID) -> dict[int, tuple[int, int]]:
    """By root key generation: how many container keys and index keys it still opens."""
    rows = await tx.connection.fetch("SELECT * FROM confide.dependents($1)", tenant)
    return {row["generation"]: (row["container_keys"], row["index_keys"]) for row in rows}


async def settle(tx: Transaction, tenant: UUID, from_states: list[str]) -> tuple[str, str] | None:
    """Set the tenant's key state to what its bindings and jobs say, where it is one of ``from_states``: (old, new).

    The epoch moves where that changes who is served. None where nothing moved.
    """
    row = await tx.connection.fetchrow(
        "WITH due AS (SELECT CASE"
        " WHEN EXISTS (SELECT FROM confide_keys.binding WHERE tenant_id = $1 AND state = 'revoked') THEN 'revoked'"
        " WHEN EXISTS (SELECT FROM confide_keys.index_key WHERE tenant_id = $1 AND state = 'pending') THEN 'rekeying'"
        " WHEN EXISTS (SELECT FROM confide_keys.binding WHERE tenant_id = $1 AND state = 'unavailable')"
        " THEN 'unavailable' ELSE 'active' END AS state),"
        " old AS (SELECT id, key_state FROM confide.tenant WHERE id = $1 FOR UPDATE)"
        " UPDATE confide.tenant t SET key_state = due.state, changed_at = now(), epoch = t.epoch +"
        " (NOT (old.key_state IN ('active', 'unavailable') AND due.state IN ('active', 'unavailable')))::int"
        " FROM due, old WHERE t.id = old.id AND old.key_state = ANY($2::text[]) AND old.key_state <> due.state"
        " RETURNING old.key_state AS before, due.state AS after",
        tenant,
        from_states,
    )
    return (row["before"], row["after"]) if row is not None else None


async def set_kek_version(tx: Transaction, tenant: UUID, binding: UUID, version: str) -> None:
    """The KMS has moved to another version of the key, and what depends on it is wrapped anew."""
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET kek_version = $3 WHERE tenant_id = $1 AND id = $2", tenant, binding, version
    )


async def tenant_row(tx: Transaction, tenant: UUID) -> Any:
    return await tx.connection.fetchrow("SELECT * FROM confide.tenant WHERE id = $1", tenant)


async def set_policy(
    tx: Transaction, tenant: UUID, lease: int | None, grace: int | None, settings: str, dropped: list[str]
) -> None:
    """Change what is given (seconds; ``settings`` is JSON), drop settings by name, and move the epoch."""
    await tx.connection.execute(
        "UPDATE confide.tenant SET lease_seconds = coalesce($2, lease_seconds),"
        " grace_seconds = coalesce($3, grace_seconds), settings = (settings || $4::jsonb) - $5::text[],"
        " epoch = epoch + 1, changed_at = now() WHERE id = $1",
        tenant,
        lease,
        grace,
        settings,
        dropped,
    )
