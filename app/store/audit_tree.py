"""SQL of the sealed log: heads, nodes, checkpoints, leaves. Reads see the tenants that their transaction has named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import asyncpg

from app.audit.merkle import Frontier, NodeSource, ProofError

Connection: TypeAlias = "asyncpg.Connection[Any]"
Proof = TypeVar("Proof")

NO_HASH: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log stands: the right edge of its tree, and when its last leaf was sealed."""

    tenant: UUID
    epoch: int
    frontier: Frontier
    sealed_at: datetime

    @property
    def size(self) -> int:
        return self.frontier.size

    @classmethod
    def of(cls, row: Any) -> Head:
        frontier = Frontier.from_bytes(row["frontier"])
        if frontier.size != row["size"]:
            raise ProofError("a log's head contradicts itself")
        return cls(row["tenant_id"], row["epoch"], frontier, row["sealed_at"])


async def head(connection: Connection, tenant: UUID, epoch: int | None = None) -> Head | None:
    """The head of that epoch, or of the newest."""
    row = await connection.fetchrow(
        "SELECT * FROM confide_audit.log WHERE tenant_id = $1 AND ($2::int IS NULL OR epoch = $2)"
        " ORDER BY epoch DESC LIMIT 1",
        tenant,
        epoch,
    )
    return Head.of(row) if row is not None else None


async def heads(connection: Connection) -> dict[UUID, Head]:
    """The newest head of every log of the cell."""
    rows = await connection.fetch("SELECT * FROM confide_audit.heads()")
    return {row["tenant_id"]: Head.of(row) for row in rows}


async def with_nodes(connection: Connection, tenant: UUID, epoch: int, build: Callable[[NodeSource], Proof]) -> Proof:
    """What ``build`` makes of the stored nodes, read in one statement. Raises ProofError where one is missing."""
    wanted: set[tuple[int, int]] = set()

    def note(level: int, index: int) -> bytes:
        wanted.add((level, index))
        return NO_HASH

    build(note)
    rows = await connection.fetch(
        "SELECT n.level, n.index, n.hash FROM unnest($3::smallint[], $4::bigint[]) AS w (level, index)"
        " JOIN confide_audit.node n ON n.tenant_id = $1 AND n.epoch = $2 AND n.level = w.level AND n.index = w.index",
        tenant,
        epoch,
        [level for level, _ in wanted],
        [index for _, index in wanted],
    )
    stored = {(row["level"], row["index"]): bytes(row["hash"]) for row in rows}

    def get(level: int, index: int) -> bytes:
        try:
            return stored[level, index]
        except KeyError:
            raise ProofError("a node of the tree is missing") from None

    return build(get)


async def last_checkpoint(connection: Connection, tenant: UUID, epoch: int, at_least: int = 0) -> Any:
    """The newest checkpoint's row of that size or larger, or None."""
    return await connection.fetchrow(
        "SELECT * FROM confide_audit.checkpoint WHERE tenant_id = $1 AND epoch = $2 AND size >= $3"
        " ORDER BY size DESC, signed_at DESC LIMIT 1",
        tenant,
        epoch,
        at_least,
    )


async def checkpoints(connection: Connection, tenant: UUID, epoch: int, below: int | None, limit: int) -> list[Any]:
    """Checkpoints below that size, largest first."""
    return list(
        await connection.fetch(
            "SELECT epoch, size, root, note, signed_at FROM confide_audit.checkpoint WHERE tenant_id = $1"
            " AND epoch = $2 AND ($3::bigint IS NULL OR size < $3) ORDER BY size DESC, signed_at DESC LIMIT $4",
            tenant,
            epoch,
            below,
            limit,
        )
    )


async def marks(connection: Connection, tenant: UUID, epoch: int, first: int, end: int, limit: int) -> list[Any]:
    """Up to ``limit`` checkpoints with sizes in (first, end), spread evenly."""
    return list(
        await connection.fetch(
            "SELECT size, note FROM (SELECT DISTINCT ON ((size - $3) * $5 / greatest($4 - $3, 1)) size, note"
            " FROM confide_audit.checkpoint WHERE tenant_id = $1 AND epoch = $2 AND size > $3 AND size < $4"
            " ORDER BY (size - $3) * $5 / greatest($4 - $3, 1), size) m ORDER BY size",
            tenant,
            epoch,
            first,
            end,
            limit,
        )
    )


async def store_checkpoints(connection: Connection, rows: Iterable[tuple[Any, ...]]) -> None:
    """(tenant, epoch, size, key id, root, note) each; one that stands already stays."""
    await connection.executemany(
        "INSERT INTO confide_audit.checkpoint (tenant_id, epoch, size, key_id, root, note)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        list(rows),
    )


async def place(connection: Connection, tenant: UUID, event: UUID) -> Any:
    """(epoch, leaf, entry) of a sealed event, or None. An event that a restore sealed again stands in two epochs."""
    return await connection.fetchrow(
        "SELECT epoch, leaf, entry FROM confide_audit.event WHERE tenant_id = $1 AND id = $2"
        " ORDER BY epoch DESC LIMIT 1",
        tenant,
        event,
    )


async def span(
    connection: Connection, tenant: UUID, epoch: int, since: datetime | None, until: datetime | None
) -> tuple[int, int] | None:
    """The smallest range of leaves with every stored event of the period; None where there is none."""
    row = await connection.fetchrow(
        "SELECT min(leaf) AS first, max(leaf) + 1 AS beyond FROM confide_audit.event WHERE tenant_id = $1"
        " AND epoch = $2 AND ($3::timestamptz IS NULL OR time >= $3) AND ($4::timestamptz IS NULL OR time < $4)",
        tenant,
        epoch,
        since,
        until,
    )
    return (row["first"], row["beyond"]) if row is not None and row["first"] is not None else None


async def leaves(connection: Connection, tenant: UUID, epoch: int, first: int, end: int) -> list[Any]:
    """(leaf, entry or None, hash as the tree has it) of [first, end), in order."""
    return list(
        await connection.fetch(
            "SELECT n.index AS leaf, e.entry, n.hash FROM confide_audit.node n LEFT JOIN confide_audit.event e"
            " ON e.tenant_id = $1 AND e.epoch = $2 AND e.leaf = n.index AND e.leaf >= $3 AND e.leaf < $4"
            " WHERE n.tenant_id = $1 AND n.epoch = $2 AND n.level = 0 AND n.index >= $3 AND n.index < $4"
            " ORDER BY n.index",
            tenant,
            epoch,
            first,
            end,
        )
    )


async def record_export(connection: Connection, tenant: UUID, epoch: int, first: int, end: int, event: UUID) -> None:
    await connection.execute(
        "INSERT INTO confide_audit.exported (tenant_id, epoch, first, beyond, event) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        epoch,
        first,
        end,
        event,
    )
