"""After a restore: a log whose stored tree no longer holds what was signed goes on under a new origin.

The first event of the new epoch names what was lost. The old epoch stays as it is and is never signed again. So does a
log whose head contradicts itself, signed or not: nothing could be sealed behind it, and one tenant's damage must not
hold up the others, whose events come with its own.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from app.audit.event import MAX_INTEGER, VERSION, encode, format_time, leaf_hash
from app.audit.merkle import Frontier, ProofError
from app.identity import new_id
from app.services.audit_signing import Signing, check_extends
from app.services.audit_witness import Seen
from app.services.auditing import Auditing
from app.store import audit_seal as rows
from app.store.audit_seal import Connection, Encoded, Grown
from app.store.audit_tree import Broken, Head, heads

Hold = Callable[[Connection], Awaitable[None]]


async def open_epochs(connection: Connection, signing: Signing, region: str, auditing: Auditing, hold: Hold) -> int:
    """Hold every log against the witness; answers how many new epochs were opened. The leader's first work.

    ``hold``: raises where this isn't the leader, in each transaction.
    """
    opened = 0
    async with signing.witness.locked():
        stored, broken = await heads(connection)
        known = _newest(signing)
        for tenant, (epoch, seen) in known.items():
            if tenant not in broken:
                head = stored.get(tenant)
                why = await _lost(connection, head, epoch, seen)
                if why is not None:
                    at = Broken(head.epoch, head.size, why) if head is not None else Broken(0, 0, why)
                    broken[tenant] = at._replace(epoch=max(at.epoch, epoch))
        for tenant, at in broken.items():
            unsigned = Seen(signing.names.origin(tenant, at.epoch), 0, b"")
            epoch, seen = known.get(tenant, (0, unsigned))
            auditing.alarm("audit-restored", origin=seen.origin, cause=at.why)
            await _open(connection, tenant, max(epoch, at.epoch) + 1, at.size, seen, region, hold)
            opened += 1
    return opened


def _newest(signing: Signing) -> dict[UUID, tuple[int, Seen]]:
    """The newest epoch that the witness knows of each tenant."""
    newest: dict[UUID, tuple[int, Seen]] = {}
    for origin, seen in signing.witness.all().items():
        named = signing.names.parse(origin)
        if named is not None and named[1] > newest.get(named[0], (0, seen))[0]:
            newest[named[0]] = (named[1], seen)
    return newest


async def _lost(connection: Connection, head: Head | None, epoch: int, seen: Seen) -> str | None:
    """Why the stored log isn't what the witness saw, or None."""
    if head is None or head.epoch < epoch:
        return "the log is missing"
    if head.epoch > epoch:
        return None
    async with connection.transaction():
        await rows.see(connection, [head.tenant])
        try:
            await check_extends(connection, head, seen)
        except ProofError as error:
            return str(error)
    return None


async def _open(
    connection: Connection, tenant: UUID, epoch: int, kept: int, seen: Seen, region: str, hold: Hold
) -> None:
    moment = await rows.now(connection)
    event: dict[str, Any] = {
        "v": VERSION,
        "id": str(new_id()),
        "time": format_time(moment),
        "tenant": str(tenant),
        "region": region,
        "writer": str(new_id()),
        "seq": 1,
        "action": "audit.restore",
        "outcome": "allowed",
        "detail": {
            "lost_origin": seen.origin,
            "signed_size": seen.size,
            "signed_root": b64encode(seen.root).decode(),
            "stored_size": min(kept, MAX_INTEGER),
        },
    }
    entry, leaves, frontier = encode(event), rows.Leaves(), Frontier()
    leaves.add(str(tenant), str(epoch), 0, Encoded.of(event, entry))
    grown = [Grown(Head(tenant, epoch, Frontier(), moment), frontier, frontier.extend([leaf_hash(entry)]))]
    async with connection.transaction():
        await hold(connection)
        await rows.see(connection, [tenant])
        await rows.grow(connection, grown)
        await rows.insert_leaves(connection, leaves)
        await rows.insert_nodes(connection, grown)
