"""Checkpoints and proofs for those who read a log. Each answer is an event of the log that it is about."""

from __future__ import annotations

from base64 import b64encode
from typing import Any
from uuid import UUID

from app.audit.event import leaf_hash
from app.audit.merkle import NodeSource, ProofError, consistency_proof, inclusion_proof, root_at, verify_inclusion
from app.errors import InvalidRequest, NotFound, Tampered, Unavailable
from app.identity import Caller
from app.services.audit_log import AuditReading
from app.services.audit_signing import Signing
from app.services.auditing import Trace
from app.store import audit_query, audit_tree
from app.store.audit_query import Query
from app.store.audit_tree import NO_HASH, Connection


class AuditTree:
    """Answers are built from stored nodes; what doesn't add up is refused as tampering."""

    def __init__(self, reading: AuditReading, signing: Signing) -> None:
        self._reading = reading
        self._signing = signing

    async def checkpoint(self, caller: Caller, epoch: int | None, trace: Trace) -> bytes:
        """The signed note of everything sealed now. Raises Unavailable before the first."""
        async with self._reading.act(caller, trace, "audit.query", what="checkpoint") as (_, detail):
            row = await self._signing.checkpoint(caller.tenant, epoch)
            if row is None and epoch is None:
                raise Unavailable("Nothing of this log is sealed yet. Try again.")
            if row is None:
                raise NotFound
            detail["size"] = row["size"]
        return bytes(row["note"])

    async def checkpoints(
        self, caller: Caller, epoch: int | None, below: int | None, limit: int, trace: Trace
    ) -> dict[str, Any]:
        """Stored checkpoints, largest first, and the verifier keys that open them."""
        async with self._reading.act(caller, trace, "audit.query", what="checkpoints") as (connection, _):
            head = await audit_tree.head(connection, caller.tenant, epoch)
            found = []
            if head is not None:
                found = await audit_tree.checkpoints(connection, caller.tenant, head.epoch, below, limit)
        listed = [
            {
                "origin": self._signing.names.origin(caller.tenant, row["epoch"]),
                "size": row["size"],
                "root": b64encode(row["root"]).decode(),
                "signed_at": row["signed_at"],
                "note": bytes(row["note"]).decode(),
            }
            for row in found
        ]
        more = found[-1]["size"] if len(found) == limit else None
        return {"keys": self._signing.keys(), "checkpoints": listed, "epoch": head.epoch if head else 1} | (
            {"next_below": more} if more is not None else {}
        )

    async def inclusion(self, caller: Caller, event: UUID, trace: Trace) -> dict[str, Any]:
        """Proof that the event is in the tree of the checkpoint that comes with it. Unavailable: not sealed yet."""
        async with self._reading.act(caller, trace, "audit.query", what="inclusion", event_id=str(event)) as (
            connection,
            _,
        ):
            place = await audit_tree.place(connection, caller.tenant, event)
            if place is None:
                await self._absent(connection, caller.tenant, event)
            epoch, leaf, entry = place["epoch"], place["leaf"], bytes(place["entry"])
            row = await audit_tree.last_checkpoint(connection, caller.tenant, epoch, leaf + 1)
            if row is None:
                row = await self._signing.checkpoint(caller.tenant, epoch)
            if row is None or row["size"] <= leaf:
                raise Unavailable("The event is sealed, but no checkpoint covers it yet. Try again.")
            proof = await self._proved(
                connection, caller.tenant, epoch, row, lambda get: _included(leaf, entry, row, get)
            )
        return {
            "origin": self._signing.names.origin(caller.tenant, epoch),
            "leaf": leaf,
            "size": row["size"],
            "entry": entry.decode(),
            "leaf_hash": b64encode(leaf_hash(entry)).decode(),
            "proof": proof,
            "checkpoint": bytes(row["note"]).decode(),
        }

    async def consistency(
        self, caller: Caller, epoch: int | None, old: int, new: int | None, trace: Trace
    ) -> dict[str, Any]:
        """Proof that the tree of size ``new`` (by default the newest checkpoint's) extends that of size ``old``."""
        async with self._reading.act(caller, trace, "audit.query", what="consistency") as (connection, detail):
            head = await audit_tree.head(connection, caller.tenant, epoch)
            if head is None:
                raise NotFound
            size = new if new is not None else head.size
            if not 0 < old <= size <= head.size:
                raise InvalidRequest("A proof leads from a size of 1 or more to one that the log has reached.", "from")
            row = await audit_tree.last_checkpoint(connection, caller.tenant, head.epoch, size)
            if row is None:
                row = await self._signing.checkpoint(caller.tenant, head.epoch)
            if row is None:
                raise Unavailable
            size = new if new is not None else row["size"]
            proof = await self._proved(
                connection, caller.tenant, head.epoch, row, lambda get: consistency_proof(old, size, get)
            )
            detail |= {"from": old, "to": size}
        return {
            "origin": self._signing.names.origin(caller.tenant, head.epoch),
            "from": old,
            "to": size,
            "proof": proof,
            "checkpoint": bytes(row["note"]).decode(),
        }

    async def _proved(self, connection: Connection, tenant: UUID, epoch: int, row: Any, prove: Any) -> list[str]:
        """The proof in base64, from nodes that lead to the checkpoint's root. Raises Tampered."""

        def build(get: NodeSource) -> tuple[bytes, list[bytes]]:
            return root_at(row["size"], get), prove(get)

        try:
            root, proof = await audit_tree.with_nodes(connection, tenant, epoch, build)
        except ProofError:
            root, proof = b"", []
        if root != row["root"]:
            self._reading.auditing.alarm("audit-tree", tenant=str(tenant))
            raise Tampered("The stored tree doesn't lead to its signed root. The operator has been alarmed.")
        return [b64encode(hash_).decode() for hash_ in proof]

    async def _absent(self, connection: Connection, tenant: UUID, event: UUID) -> None:
        """Raises: Unavailable for an event that is about to be sealed, else NotFound."""
        for row in await audit_query.tail(connection, Query(tenant, limit=10_000)):
            if row["id"] == event:
                raise Unavailable("The event is recorded and will be in the tree within seconds. Try again.", 5)
        raise NotFound


def _included(leaf: int, entry: bytes, row: Any, get: NodeSource) -> list[bytes]:
    """The proof, after it was tried. Raises ProofError: the event or the tree isn't what was signed."""
    proof = inclusion_proof(leaf, row["size"], get)
    if get(0, leaf) != NO_HASH:  # else the nodes are only being listed
        verify_inclusion(leaf, row["size"], leaf_hash(entry), proof, bytes(row["root"]))
    return proof
