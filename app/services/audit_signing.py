"""Signing checkpoints: only of a tree that extends what the witness has seen, and only after the witness knows.

Any worker may sign. What makes that safe is the order under the witness's lock: read the committed head, recompute from
stored nodes that it extends the last tree signed, write the witness, and only then store and show the checkpoint. Each
tree that is signed under an origin has the next number, which stands in the signed text: a checkpoint that somebody
deletes leaves a gap. The one that a crash left in the witness alone is stored with the next one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.audit.checkpoint import Checkpoint, NoteError, Signer, VerifierKey
from app.audit.merkle import NodeSource, ProofError, consistency_proof, root_at, verify_consistency
from app.errors import Unavailable
from app.services.audit_witness import Seen, Witness, WitnessError
from app.services.auditing import Auditing
from app.store import audit_tree as rows
from app.store.audit_pool import AuditPool
from app.store.audit_tree import Connection, Head

BATCH: Final = 64


class Forked(Exception):
    """A stored tree doesn't extend what was signed: it was restored from a backup, or rewritten.

    ``signed_before``: something was signed of one of these logs; else they just don't fit themselves.
    """

    def __init__(self, origins: Sequence[str], *, signed_before: bool) -> None:
        super().__init__(", ".join(origins))
        self.origins, self.signed_before = list(origins), signed_before


@dataclass(frozen=True, slots=True)
class Names:
    """``name`` is the signing key's, and the start of every origin: ``<name>/<tenant>``, from epoch 2 ``…/<epoch>``."""

    name: str

    def origin(self, tenant: UUID, epoch: int) -> str:
        return f"{self.name}/{tenant}" + (f"/{epoch}" if epoch > 1 else "")

    def parse(self, origin: str) -> tuple[UUID, int] | None:
        """Tenant and epoch; None for an origin of another name."""
        match = re.fullmatch(re.escape(self.name) + r"/([0-9a-f-]{36})(?:/([1-9][0-9]{0,8}))?", origin)
        return (UUID(match[1]), int(match[2] or 1)) if match else None


class Signing:
    """The cell's signing key, its witness, and what they put their names to."""

    def __init__(
        self, signer: Signer, retired: Sequence[VerifierKey], witness: Witness, pool: AuditPool, auditing: Auditing
    ) -> None:
        self._signer = signer
        self._retired = tuple(retired)
        self.witness = witness
        self._pool = pool
        self._auditing = auditing
        self.names = Names(signer.verifier.name)
        self.signed = 0

    @property
    def key_id(self) -> bytes:
        return self._signer.verifier.id

    def keys(self) -> list[str]:
        """Verifier keys, the present one first: every checkpoint that is still stored opens under one of them."""
        return [self._signer.verifier.text(), *(key.text() for key in self._retired)]

    async def checkpoint(self, tenant: UUID, epoch: int | None = None) -> Any:
        """The row of a checkpoint of everything that is sealed now, signed if there is none yet; None for an empty log.

        An older epoch grows no more: its last checkpoint is answered. Raises Unavailable.
        """
        async with self._pool.transaction(tenant) as tx:
            newest = await self._head(tx.connection, tenant)
            if newest is None or (epoch is not None and epoch > newest.epoch):
                return None
            found = await rows.last_checkpoint(tx.connection, tenant, epoch or newest.epoch, 0, self.key_id)
        old = epoch is not None and epoch < newest.epoch
        if not old:
            await self._not_behind(newest)
        if old or (found is not None and found["size"] >= newest.size and found["key_id"] == self.key_id):
            return found
        if newest.size == 0:
            return None
        try:
            await self.sign([(tenant, newest.epoch)])
        except Forked:
            raise Unavailable(
                "The stored log doesn't extend what was signed before. The operator has been alarmed."
            ) from None
        async with self._pool.transaction(tenant) as tx:
            return await rows.last_checkpoint(tx.connection, tenant, newest.epoch, 0, self.key_id)

    async def _head(self, connection: Connection, tenant: UUID, epoch: int | None = None) -> Head | None:
        """Raises Unavailable where it contradicts itself: until the sealer has opened a new epoch."""
        try:
            return await rows.head(connection, tenant, epoch)
        except ProofError as error:
            self._auditing.alarm("audit-tree", tenant=str(tenant), cause=str(error))
            raise Unavailable("The stored log's head contradicts itself. The operator has been alarmed.") from None

    async def _not_behind(self, head: Head) -> None:
        """Raises Unavailable where more was signed than is stored: until the sealer has opened a new epoch.

        Since the head was read others may have sealed and signed more; while the witness is held nobody signs.
        """
        origin = self.names.origin(head.tenant, head.epoch)
        try:
            async with self.witness.locked():
                seen = self.witness.latest(origin)
                if seen is not None and seen.size > head.size:
                    async with self._pool.transaction(head.tenant) as tx:
                        head = await self._head(tx.connection, head.tenant, head.epoch) or head
        except WitnessError as error:
            raise Unavailable from error
        if seen is not None and seen.size > head.size:
            self._auditing.alarm("audit-fork", origin=origin, cause="the log is smaller than what was signed")
            raise Unavailable("More was signed of this log than is stored. The operator has been alarmed.")

    async def sign(self, logs: Sequence[tuple[UUID, int]]) -> None:
        """Sign the heads of these logs as they stand. Raises Forked (after signing those that may be), Unavailable."""
        forked: list[str] = []
        for start in range(0, len(logs), BATCH):
            batch = logs[start : start + BATCH]
            try:
                async with self.witness.locked(), self._pool.transaction(*{tenant for tenant, _ in batch}) as tx:
                    made = [await self._judge(tx.connection, tenant, epoch, forked) for tenant, epoch in batch]
                    found = [(head, checkpoint) for head, checkpoint in filter(None, made)]
                    before = [(head, self._before(checkpoint)) for head, checkpoint in found]
                    await self.witness.append(Seen(c.origin, c.size, c.root, c.number) for _, c in found)
                    await rows.store_checkpoints(
                        tx.connection,
                        [
                            (h.tenant, h.epoch, c.size, self.key_id, c.root, c.sign(self._signer))
                            for h, c in (*before, *found)
                            if c is not None
                        ],
                    )
                    self.signed += len(found)
            except WitnessError as error:
                self._auditing.alarm("audit-witness", cause=str(error))
                raise Unavailable from error
        if forked:
            raise Forked(forked, signed_before=any(self.witness.latest(origin) is not None for origin in forked))

    async def _judge(
        self, connection: Connection, tenant: UUID, epoch: int, forked: list[str]
    ) -> tuple[Head, Checkpoint] | None:
        origin = self.names.origin(tenant, epoch)
        seen = self.witness.latest(origin)
        try:
            head = await rows.head(connection, tenant, epoch)
            if head is None or head.size == 0:
                return None
            await check_extends(connection, head, seen)
        except ProofError as error:
            first = "" if seen is not None else "; nothing of this log was signed before"
            self._auditing.alarm("audit-fork", origin=origin, cause=f"{error}{first}")
            forked.append(origin)
            return None
        number = seen.number if seen is not None else await self._last_number(connection, tenant, epoch)
        if seen is None or seen.size < head.size:
            number += 1
        return head, Checkpoint.numbered(origin, head.size, head.frontier.root(), number)

    async def _last_number(self, connection: Connection, tenant: UUID, epoch: int) -> int:
        """Where the witness knows nothing of a log: what the last stored checkpoint says."""
        row = await rows.last_checkpoint(connection, tenant, epoch)
        try:
            return 0 if row is None else Checkpoint.open(row["note"], (self._signer.verifier, *self._retired)).number
        except NoteError:
            return 0

    def _before(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """What was signed before it, as it was: stored again where a crash came before its row."""
        seen = self.witness.latest(checkpoint.origin)
        if seen is None or seen.size >= checkpoint.size:
            return None
        return Checkpoint.numbered(*seen)


async def check_extends(connection: Connection, head: Head, seen: Seen | None) -> None:
    """Raises ProofError unless the stored nodes make the head's root and extend the tree that was seen."""
    root = head.frontier.root()
    if seen is not None and seen.size > head.size:
        raise ProofError("the log is smaller than what was signed")

    def build(get: NodeSource) -> tuple[bytes, list[bytes]]:
        return root_at(head.size, get), consistency_proof(seen.size, head.size, get) if seen is not None else []

    stored, proof = await rows.with_nodes(connection, head.tenant, head.epoch, build)
    if stored != root:
        raise ProofError("the stored nodes don't lead to the head's root")
    if seen is not None:
        verify_consistency(seen.size, head.size, proof, seen.root, root)
