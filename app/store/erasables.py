"""SQL of ``confide_audit.erasable``: values that a leaf only commits to, and that may have to go."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.store.ledger import Transaction


async def keep_value(tx: Transaction, tenant: UUID, commitment: str, salt: bytes, value: str) -> None:
    """Store a value beside its commitment, before the commitment is first used."""
    await tx.connection.execute(
        "INSERT INTO confide_audit.erasable (tenant_id, commitment, salt, value) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING",
        tenant,
        commitment,
        salt,
        value,
    )


FORGET = "DELETE FROM confide_audit.erasable WHERE tenant_id = $1 AND commitment = ANY($2)"


def counted(status: str) -> int:
    """How many rows a command touched, from its status line."""
    return int(status.rpartition(" ")[2])


def forgetting(tenant: UUID, commitments: Sequence[str]) -> tuple[str, UUID, list[str]]:
    """The command that erases values and salts, with its arguments."""
    return FORGET, tenant, list(commitments)
