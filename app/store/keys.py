"""SQL of the key hierarchy: what is stored wrapped, and the tenant's key state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Ledger, Transaction

STORED: Final = (
    "SELECT t AS tenant, ARRAY(SELECT r FROM confide_keys.root_key r WHERE r.tenant_id = t.id"
    " AND r.state <> 'destroyed' ORDER BY r.generation) AS roots,"
    " ARRAY(SELECT i FROM confide_keys.index_key i WHERE i.tenant_id = t.id AND i.state <> 'destroyed'"
    " ORDER BY i.number DESC) AS indexes FROM confide.tenant t WHERE t.id = $1"
)
"""One statement, so that it sees one state: of a key that rules since a moment ago, everything or nothing."""


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """Rows of one tenant. ``index``: the active one; none where the tenant is gone. ``bindings`` by id: those that a
    root key depends on. ``pending``: the next index key, at the moment of its exchange; ``former``: those before the
    active one, newest first.
    """

    tenant: Any
    roots: list[Any]
    index: Any
    bindings: dict[UUID, Any]
    pending: Any = None
    former: tuple[Any, ...] = ()


class KeyStore:
    """Reads and writes ``confide_keys`` and the key state in ``confide.tenant``."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def load(self, tenant: UUID) -> StoredKeys | None:
        """All that unwrapping needs, or None where there is no such tenant."""
        async with self._ledger.transaction(tenant) as tx:
            found = await tx.connection.fetchrow(STORED, tenant)
            if found is None:
                return None
            row, roots, indexes = found["tenant"], found["roots"], found["indexes"]
            index = next((each for each in indexes if each["state"] == "active"), None)
            pending = next((each for each in indexes if each["state"] == "pending"), None)
            former = tuple(each for each in indexes if each["state"] == "retiring")
            bound = [root["binding_id"] for root in roots if root["binding_id"] is not None]
            bindings = []
            if bound:
                bindings = await tx.connection.fetch(
                    "UPDATE confide_keys.binding SET used_at = now() WHERE tenant_id = $1 AND id = ANY($2::uuid[])"
                    " RETURNING *, (transfer_to IS NULL OR confide.consent_stands(tenant_id, 'kms', transfer_to))"
                    " AS consented",
                    tenant,
                    bound,
                )
            return StoredKeys(
                row, list(roots), index, {binding["id"]: binding for binding in bindings}, pending, former
            )


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


async def insert_index_key(
    tx: Transaction, *, tenant: UUID, number: int, trk_generation: int, sealed: bytes, state: str = "active"
) -> None:
    """``state`` pending: the next one, at the moment of its exchange."""
    await tx.connection.execute(
        "INSERT INTO confide_keys.index_key (tenant_id, number, trk_generation, sealed, state, created_at)"
        " VALUES ($1, $2, $3, $4, $5, now())",
        tenant,
        number,
        trk_generation,
        sealed,
        state,
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


async def move_epoch(tx: Transaction, tenant: UUID) -> None:
    """Every worker must read the tenant's keys again before its next statement can succeed."""
    await tx.connection.execute("UPDATE confide.tenant SET epoch = epoch + 1, changed_at = now() WHERE id = $1", tenant)


async def lock_tenant(tx: Transaction, tenant: UUID) -> Any:
    """The tenant's row, held: its keys change one after another."""
    return await tx.connection.fetchrow("SELECT * FROM confide.tenant WHERE id = $1 FOR UPDATE", tenant)


async def epoch_of(tx: Transaction, tenant: UUID) -> int:
    epoch: int = await tx.connection.fetchval("SELECT epoch FROM confide.tenant WHERE id = $1", tenant)
    return epoch


async def roots_of(tx: Transaction, tenant: UUID) -> list[Any]:
    """The tenant's root keys that aren't destroyed, by generation."""
    return list(
        await tx.connection.fetch(
            "SELECT * FROM confide_keys.root_key WHERE tenant_id = $1 AND state <> 'destroyed' ORDER BY generation",
            tenant,
        )
    )


async def last_generation(tx: Transaction, tenant: UUID) -> int:
    """The highest that was ever used, destroyed ones too."""
    last: int = await tx.connection.fetchval(
        "SELECT max(generation) FROM confide_keys.root_key WHERE tenant_id = $1", tenant
    )
    return last


async def step_down_root(tx: Transaction, tenant: UUID) -> None:
    await tx.connection.execute(
        "UPDATE confide_keys.root_key SET state = 'retiring' WHERE tenant_id = $1 AND state = 'active'", tenant
    )


async def destroy_roots(tx: Transaction, tenant: UUID) -> list[int]:
    """Empty every retiring root key that opens nothing any more. Answers their generations."""
    rows = await tx.connection.fetch(
        "UPDATE confide_keys.root_key r SET state = 'destroyed', sealed = '', vendor_half = '',"
        " customer_half = CASE WHEN r.binding_id IS NULL THEN NULL ELSE ''::bytea END"
        " WHERE r.tenant_id = $1 AND r.state = 'retiring'"
        " AND NOT EXISTS (SELECT FROM confide.container_key k WHERE k.tenant_id = $1"
        " AND k.trk_generation = r.generation)"
        " AND NOT EXISTS (SELECT FROM confide_keys.index_key i WHERE i.tenant_id = $1"
        " AND i.trk_generation = r.generation) RETURNING r.generation",
        tenant,
    )
    return sorted(row["generation"] for row in rows)


async def replace_customer_half(
    tx: Transaction, tenant: UUID, generation: int, old: bytes, new: tuple[bytes, str, str]
) -> bool:
    """The same half, wrapped anew: (wrapped, KEK URI, version). False where it isn't ``old`` any more."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide_keys.root_key SET customer_half = $4, customer_kek = $5, customer_kek_version = $6,"
            " resealed_at = now() WHERE tenant_id = $1 AND generation = $2 AND customer_half = $3 RETURNING true",
            tenant,
            generation,
            old,
            *new,
        )
    )


async def replace_vendor_half(
    tx: Transaction, tenant: UUID, generation: int, old: bytes, new: tuple[bytes, str, str]
) -> bool:
    """The same half, wrapped anew: (wrapped, KEK URI, version). False where it isn't ``old`` any more."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide_keys.root_key SET vendor_half = $4, vendor_kek = $5, vendor_kek_version = $6,"
            " vendor_wrapped_at = clock_timestamp(), resealed_at = now()"
            " WHERE tenant_id = $1 AND generation = $2 AND vendor_half = $3 RETURNING true",
            tenant,
            generation,
            old,
            *new,
        )
    )


async def move_index_key(tx: Transaction, tenant: UUID, number: int, trk_generation: int, sealed: bytes) -> bool:
    """The same index key, sealed under another root key."""
    return bool(
        await tx.connection.fetchval(
            "UPDATE confide_keys.index_key SET trk_generation = $3, sealed = $4"
            " WHERE tenant_id = $1 AND number = $2 AND state IN ('active', 'retiring') RETURNING true",
            tenant,
            number,
            trk_generation,
            sealed,
        )
    )
