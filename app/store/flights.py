"""SQL of what all workers of a cell share about calls to a KMS: whose turn it is, who was denied, what is due."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from app.store.ledger import Transaction
from app.store.pool import Pool

CLAIM: Final = "SELECT confide.claim_flight($1, $2, $3) AS won"
RELEASE: Final = "SELECT confide.release_flight($1, $2)"
CLAIM_VENDOR_LOOK: Final = "SELECT confide.claim_vendor_look($1) AS won"
NOTE_VENDOR_VERSION: Final = "SELECT confide.note_vendor_version($1, $2)"
DUE_VENDOR_WRAPS: Final = "SELECT tenant_id, generation FROM confide.due_vendor_wraps($1, $2, $3, $4)"


async def claim(pool: Pool, tenant: UUID, holder: UUID, seconds: float) -> bool:
    """Whether it is ``holder``'s turn to call a KMS for a tenant: then nobody else's for ``seconds``, or until it is
    released. Raises ``Unavailable``.
    """
    return bool((await pool.fetch(CLAIM, tenant, holder, seconds))[0]["won"])


async def release(pool: Pool, tenant: UUID, holder: UUID) -> None:
    """Raises ``Unavailable``; the claim then ends by itself."""
    await pool.fetch(RELEASE, tenant, holder)


async def claim_vendor_look(pool: Pool, seconds: float) -> bool:
    """Whether this worker is to ask for the version of the vendor's key. Raises ``Unavailable``."""
    return bool((await pool.fetch(CLAIM_VENDOR_LOOK, seconds))[0]["won"])


async def due_vendor_wraps(pool: Pool, kek: str, version: str, after: UUID, limit: int) -> list[tuple[UUID, int]]:
    """(tenant, generation) of root keys whose vendor half isn't wrapped by this version of the key."""
    await pool.fetch(NOTE_VENDOR_VERSION, kek, version)
    rows = await pool.fetch(DUE_VENDOR_WRAPS, kek, version, after, limit)
    return [(row["tenant_id"], row["generation"]) for row in rows]


async def note_denial(tx: Transaction, denial: UUID, owner: bytes, tenant: UUID, binding: UUID, window: float) -> None:
    await tx.connection.execute(
        "SELECT confide.note_denial($1, $2, $3, $4, $5)", denial, owner, tenant, binding, window
    )


async def denied_owners(tx: Transaction, window: float) -> int:
    """How many unrelated customers were denied within the last ``window`` seconds, in the whole cell."""
    found: int = await tx.connection.fetchval("SELECT confide.denied_owners($1)", window)
    return found


async def denied_lately(tx: Transaction, window: float) -> list[tuple[UUID, UUID]]:
    """(tenant, binding) of those."""
    rows = await tx.connection.fetch("SELECT tenant_id, binding_id FROM confide.denied_lately($1)", window)
    return [(row["tenant_id"], row["binding_id"]) for row in rows]
