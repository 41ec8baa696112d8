"""SQL of the key hierarchy: what is stored wrapped, and the tenant's key state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.store.ledger import Ledger, Transaction


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """Rows of one tenant, read in one snapshot. ``bindings`` by id: those that a root key depends on."""

    tenant: Any
    roots: list[Any]
    index: Any
    bindings: dict[UUID, Any]


class KeyStore:
    """Reads and writes ``confide_keys`` and the key state in ``confide.tenant``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def load(self, tenant: UUID) -> StoredKeys | None:
        """All that unwrapping needs, or None where there is no such tenant."""
        async with self._ledger.transaction(tenant) as tx:
            row = await tx.connection.fetchrow("SELECT * FROM confide.tenant WHERE id = $1", tenant)
            if row is None:
                return None
            roots = await tx.connection.fetch(
                "SELECT * FROM confide_keys.root_key WHERE tenant_id = $1 AND state <> 'destroyed' ORDER BY generation",
                tenant,
            )
            index = await tx.connection.fetchrow(
                "SELECT * FROM confide_keys.index_key WHERE tenant_id = $1 AND state = 'active'", tenant
            )
            bindings = await tx.connection.fetch(
                "SELECT * FROM confide_keys.binding WHERE tenant_id = $1 AND id = ANY($2::uuid[])",
                tenant,
                [root["binding_id"] for root in roots if root["binding_id"] is not None],
            )
            return StoredKeys(row, list(roots), index, {binding["id"]: binding for binding in bindings})


async def insert_root_key(
    tx: Transaction,
    *,
    tenant: UUID,
    generation: int,
    sealed: bytes,
    binding: UUID | None,
    customer: tuple[bytes, str, str] | None,
    vendor: tuple[bytes, str, str],
) -> None:
    """A new active generation. ``customer`` and ``vendor``: wrapped half, KEK URI, KEK version."""
    half, kek, version = customer or (None, None, None)
    await tx.connection.execute(
        "INSERT INTO confide_keys.root_key (tenant_id, generation, sealed, binding_id, customer_half, customer_kek,"
        " customer_kek_version, vendor_half, vendor_kek, vendor_kek_version, state, created_at, resealed_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'active', now(), now())",
        tenant,
        generation,
        sealed,
        binding,
        half,
        kek,
        version,
        *vendor,
    )


async def insert_index_key(tx: Transaction, *, tenant: UUID, number: int, trk_generation: int, sealed: bytes) -> None:
    await tx.connection.execute(
        "INSERT INTO confide_keys.index_key (tenant_id, number, trk_generation, sealed, state, created_at)"
        " VALUES ($1, $2, $3, $4, 'active', now())",
        tenant,
        number,
        trk_generation,
        sealed,
    )


async def move_key_state(tx: Transaction, tenant: UUID, state: str, from_states: list[str]) -> bool:
    """Set the tenant's key state, where it is one of ``from_states``, and move the epoch. Answers whether it moved."""
    moved = await tx.connection.fetchval(
        "UPDATE confide.tenant SET key_state = $2, epoch = epoch + 1, changed_at = now()"
        " WHERE id = $1 AND key_state = ANY($3::text[]) RETURNING true",
        tenant,
        state,
        from_states,
    )
    return bool(moved)


async def move_binding_state(tx: Transaction, tenant: UUID, binding: UUID, state: str) -> None:
    await tx.connection.execute(
        "UPDATE confide_keys.binding SET state = $3, changed_at = now() WHERE tenant_id = $1 AND id = $2",
        tenant,
        binding,
        state,
    )
