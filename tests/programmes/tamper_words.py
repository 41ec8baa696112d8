"""A log as it was sealed, and the words that mutations of it are made of."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from app.audit.checkpoint import Signer
from app.audit.event import decode, encode
from app.audit.merkle import Frontier, cover, node_hash

Connection = asyncpg.Connection
EVENT, NODE, NOTE = "confide_audit.event", "confide_audit.node", "confide_audit.checkpoint"


@dataclass
class Expected:
    """``leaf``: must be named. ``within``: must lie in the reported range. ``end``: the leaf behind the last is named.
    ``codes``: the verifier's exit codes that will do.
    """

    leaf: int | None = None
    within: int | None = None
    end: bool = False
    codes: tuple[int, ...] = (1,)


@dataclass
class Log:
    """A log as it was sealed. ``sizes`` are those of its checkpoints."""

    tenant: UUID
    entries: list[bytes]
    nodes: dict[tuple[int, int], bytes]
    sizes: list[int]

    @property
    def size(self) -> int:
        return len(self.entries)


class Words:
    """``kept`` is the size of the checkpoint that the auditor has. ``large``: the share of changes of many rows."""

    def __init__(self, rng: random.Random, log: Log, other: Log, kept: int, name: str, large: float = 0.04) -> None:
        self.rng, self.log, self.other, self.kept, self.large = rng, log, other, kept, large
        self.thief = Signer(name, rng.randbytes(32))

    def pick(self) -> int:
        return self.rng.randrange(self.log.size)

    def pick_inner(self) -> tuple[int, int]:
        return self.rng.choice([node for node in self._sample() if node[0] > 0])

    def _sample(self) -> list[tuple[int, int]]:
        leaf = self.pick()
        path = [(level, leaf >> level) for level in range(1, self.log.size.bit_length())]
        return [node for node in path if node in self.log.nodes] or [(1, 0)]

    def near_the_end(self) -> int:
        """A place where moving everything behind it moves little; rarely, anywhere."""
        span = self.log.size if self.rng.random() < self.large else min(200, self.log.size)
        return self.log.size - 1 - self.rng.randrange(span)

    def forged(self, leaf: int) -> bytes:
        """A well-formed event that was never sealed, in the place of a true one."""
        event = decode(self.log.entries[leaf])
        event["detail"] = {"forged": self.rng.randrange(1 << 30)}
        event["action"] = self.rng.choice(["context.read", "context.export"])
        return encode(event)

    def flipped(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data))
        return data[:at] + bytes([self.rng.choice([n for n in range(32, 127) if n != data[at]])]) + data[at + 1 :]

    async def set_entry(self, db: Connection[Any], leaf: int, entry: bytes) -> None:
        await db.execute(
            f"UPDATE {EVENT} SET entry = $3 WHERE tenant_id = $1 AND leaf = $2", self.log.tenant, leaf, entry
        )

    async def set_node(self, db: Connection[Any], level: int, index: int, hash_: bytes) -> None:
        await db.execute(
            f"UPDATE {NODE} SET hash = $4 WHERE tenant_id = $1 AND level = $2 AND index = $3",
            self.log.tenant,
            level,
            index,
            hash_,
        )

    async def fit(self, db: Connection[Any], changed: dict[int, bytes]) -> None:
        """Make every hash above these leaves agree with them, and the log's head too."""
        known, row = dict(self.log.nodes), {(0, leaf): hash_ for leaf, hash_ in changed.items()}
        while row:
            known |= row
            await db.executemany(
                f"UPDATE {NODE} SET hash = $4 WHERE tenant_id = $1 AND level = $2 AND index = $3",
                [(self.log.tenant, *node, hash_) for node, hash_ in row.items()],
            )
            above = {(level + 1, index >> 1) for level, index in row}
            row = {
                (level, index): node_hash(known[level - 1, 2 * index], known[level - 1, 2 * index + 1])
                for level, index in above
                if (level, index) in self.log.nodes
            }
        size = self.log.size
        edge = Frontier(size, [known[node] for node in cover(0, size)])
        await db.execute(
            "UPDATE confide_audit.log SET frontier = $2 WHERE tenant_id = $1", self.log.tenant, edge.to_bytes()
        )

    async def move(self, db: Connection[Any], order: Iterable[tuple[int, int]]) -> None:
        """Rows to other places of their log: (from, to)."""
        pairs = list(order)
        shift = 1 << 40
        await db.execute(
            f"UPDATE {EVENT} SET leaf = leaf + $2 WHERE tenant_id = $1 AND leaf = ANY($3)",
            self.log.tenant,
            shift,
            [old for old, _ in pairs],
        )
        await db.execute(
            f"UPDATE {EVENT} e SET leaf = m.new FROM unnest($2::bigint[], $3::bigint[]) AS m (old, new)"
            f" WHERE e.tenant_id = $1 AND e.leaf = m.old + {shift}",
            self.log.tenant,
            [old for old, _ in pairs],
            [new for _, new in pairs],
        )

    async def checkpoint(self, db: Connection[Any]) -> Any:
        return await db.fetchrow(
            f"SELECT * FROM {NOTE} WHERE tenant_id = $1 AND size = $2", self.log.tenant, self.rng.choice(self.log.sizes)
        )

    async def set_note(self, db: Connection[Any], size: int, note: bytes) -> None:
        await db.execute(f"UPDATE {NOTE} SET note = $3 WHERE tenant_id = $1 AND size = $2", self.log.tenant, size, note)
