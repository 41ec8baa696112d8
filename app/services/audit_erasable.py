"""Values behind commitments: what an event says of a person's address can be erased, and the event still verifies."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.store.audit_pool import AuditPool
from app.store.erasables import counted, forgetting


class Erasables:
    """The side table ``confide_audit.erasable``: commitment, salt and value."""

    def __init__(self, pool: AuditPool) -> None:
        self._pool = pool

    async def erase(self, tenant: UUID, commitments: Sequence[str]) -> int:
        """Erase values and salts; answers how many there were. Leaves keep the commitments, which then say nothing."""
        async with self._pool.transaction(tenant) as tx:
            return counted(await tx.connection.execute(*forgetting(tenant, commitments)))
