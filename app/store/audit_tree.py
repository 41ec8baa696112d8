"""SQL of the sealed log: heads, nodes, checkpoints, leaves. Reads see the tenants that their transaction has named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import asyncpg

from app.audit.merkle import Frontier, NodeSource, ProofError

Connection: TypeAlias = "asyncpg.Connection[Any]"
Proof = TypeVar("Proof")

NO_HASH: Final = bytes(32)
DAYS_AHEAD: Final = 27
"""The next month's partition is there: what would be sealed later than that has no place."""


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


class Broken(NamedTuple):
    """What stands in the row of a head that contradicts itself."""

    epoch: int
    size: int
    why: str


async def heads(connection: Connection) -> tuple[dict[UUID, Head], dict[UUID, Broken]]:
    """The newest head of every log of the cell, and of those where it is none, what is wrong."""
    whole: dict[UUID, Head] = {}
    broken: dict[UUID, Broken] = {}
    for row in await connection.fetch(
        "SELECT *, sealed_at > clock_timestamp() + $1 * interval '1 day' AS ahead FROM confide_audit.heads()",
        DAYS_AHEAD,
    ):
        try:
            head = Head.of(row)
        except ProofError as error:
            broken[row["tenant_id"]] = Broken(row["epoch"], row["size"], str(error))
            continue
        if row["ahead"]:
            broken[head.tenant] = Broken(head.epoch, head.size, "the log's head is of a time that is to come")
        else:
            whole[head.tenant] = head
    return whole, broken


async def with_nodes(
    connection: Connection, tenant: UUID, epoch: int, build: Callable[[NodeSource], Proof], lost: bytes | None = None
) -> Proof:
    """What ``build`` makes of the stored nodes, read in one statement. ``lost`` stands for one that is missing; without
    it, raises ProofError.
    """
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
        found = stored.get((level, index), lost)
        if found is None:
            raise ProofError("a node of the tree is missing")
        return found

    return build(get)


async def last_checkpoint(
    connection: Connection, tenant: UUID, epoch: int, at_least: int = 0, key_id: bytes = b""
) -> Any:
    """The newest checkpoint's row of that size or larger, or None; that of ``key_id`` before another of its size.

    A row that claims more than the log holds is no checkpoint of it.
    """
    return await connection.fetchrow(
        "SELECT c.* FROM confide_audit.checkpoint c JOIN confide_audit.log l ON l.tenant_id = c.tenant_id"
        " AND l.epoch = c.epoch WHERE c.tenant_id = $1 AND c.epoch = $2 AND c.size >= $3 AND c.size <= l.size"
        " ORDER BY c.size DESC, c.key_id = $4 DESC, c.signed_at DESC LIMIT 1",
        tenant,
        epoch,
        at_least,
        key_id,
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


async def marks(
    connection: Connection, tenant: UUID, epoch: int, first: int, end: int, but: Any, limit: int
) -> list[Any]:
    """Up to ``limit`` checkpoints with sizes in (first, end], spread evenly where there are more, and rows whose sizes
    are impossible; without ``but``, a row. ``place`` counts the sizes, also of those that are left out.
    """
    return list(
        await connection.fetch(
            "WITH c AS (SELECT size, key_id, root, note, row_number() OVER (ORDER BY size, key_id) AS n,"
            " dense_rank() OVER (ORDER BY size) AS place, count(*) OVER () AS total"
            " FROM confide_audit.checkpoint WHERE tenant_id = $1 AND epoch = $2"
            " AND size > $3 AND size <= $4 AND (size, key_id) <> ($5, $6))"
            " SELECT size, key_id, root, note, place FROM c WHERE total <= $7 OR n * $7 / total > (n - 1) * $7 / total"
            " UNION ALL (SELECT c.size, c.key_id, c.root, c.note, NULL FROM confide_audit.checkpoint c"
            " WHERE c.tenant_id = $1 AND c.epoch = $2 AND (c.size < 1 OR c.size > (SELECT size FROM confide_audit.log"
            " WHERE tenant_id = $1 AND epoch = $2)) LIMIT $7) ORDER BY 1, 2",
            tenant,
            epoch,
            first,
            end,
            but["size"],
            but["key_id"],
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
    connection: Connection, tenant: UUID, epoch: int, since: datetime | None, until: datetime | None, size: int
) -> tuple[int, int] | None:
    """The smallest range of leaves below ``size`` with every event of the period; None where there is none.

    Leaves beside it whose rows are lost belong to it, since they may be of the period. What retention dropped doesn't.
    """
    row = await connection.fetchrow(
        "WITH kept AS (SELECT coalesce(max(beyond), 0) AS first FROM confide_audit.dropped"
        "  WHERE tenant_id = $1 AND epoch = $2),"
        " found AS (SELECT min(leaf) AS first, max(leaf) + 1 AS beyond FROM confide_audit.event WHERE tenant_id = $1"
        "  AND epoch = $2 AND leaf >= (SELECT first FROM kept) AND leaf < $5"
        "  AND ($3::timestamptz IS NULL OR time >= $3) AND ($4::timestamptz IS NULL OR time < $4))"
        " SELECT CASE WHEN $3::timestamptz IS NULL THEN kept.first ELSE coalesce((SELECT max(leaf) + 1"
        "  FROM confide_audit.event WHERE tenant_id = $1 AND epoch = $2 AND leaf >= kept.first"
        "  AND leaf < found.first), kept.first) END AS first,"
        " CASE WHEN $4::timestamptz IS NULL THEN $5 ELSE coalesce((SELECT min(leaf) FROM confide_audit.event"
        "  WHERE tenant_id = $1 AND epoch = $2 AND leaf >= found.beyond AND leaf < $5), $5) END AS beyond,"
        " found.first IS NOT NULL AS any FROM kept, found",
        tenant,
        epoch,
        since,
        until,
        size,
    )
    if row is None or not row["any"]:
        return None
    return row["first"], row["beyond"]


async def leaves(connection: Connection, tenant: UUID, epoch: int, first: int, end: int) -> list[Any]:
    """Event rows and leaf hashes (either may be None) of [first, end), in order; a leaf with two rows stands twice."""
    return list(
        await connection.fetch(
            "SELECT coalesce(n.index, e.number) AS leaf, n.hash, e.entry, e.time, e.id, e.action, e.outcome,"
            " e.principal, e.api_key, e.container, e.kek, e.kms_request_id, e.purpose"
            " FROM (SELECT index, hash FROM confide_audit.node"
            " WHERE tenant_id = $1 AND epoch = $2 AND level = 0 AND index >= $3 AND index < $4) n FULL JOIN"
            " (SELECT leaf AS number, id::text, time, action, outcome, principal::text, api_key::text, container::text,"
            " kek, kms_request_id, purpose, entry FROM confide_audit.event WHERE tenant_id = $1 AND epoch = $2"
            " AND leaf >= $3 AND leaf < $4) e ON e.number = n.index ORDER BY 1",
            tenant,
            epoch,
            first,
            end,
        )
    )


async def inner_nodes(connection: Connection, tenant: UUID, epoch: int, first: int, end: int) -> bytes:
    """The stored hashes of the subtrees of two or more leaves that [first, end) complete, leaf by leaf and from small
    to large. A lost one is all zeros. OFFSET makes it a range of the index for each level: the planner would read every
    node of the log for each page.
    """
    found: bytes | None = await connection.fetchval(
        "SELECT string_agg(coalesce(n.hash, $5), ''::bytea ORDER BY (w.index + 1) << w.level, w.level) FROM"
        " (SELECT level, index FROM generate_series(1, 62) level,"
        " generate_series($3::bigint >> level, ($4::bigint >> level) - 1) index) w LEFT JOIN"
        " (SELECT n.* FROM generate_series(1, 62) l, LATERAL (SELECT level, index, hash FROM confide_audit.node"
        " WHERE tenant_id = $1 AND epoch = $2 AND level = l AND index >= $3::bigint >> l AND index < $4::bigint >> l"
        " OFFSET 0) n) n USING (level, index)",
        tenant,
        epoch,
        first,
        end,
        NO_HASH,
    )
    return found or b""


async def surplus(connection: Connection, tenant: UUID, epoch: int, limit: int) -> tuple[list[bytes], list[bytes]]:
    """Entries of events, and hashes of nodes, that have no place in the tree of any size that the log has had; and of
    events where retention has dropped everything.
    """
    events = await connection.fetch(
        "SELECT e.entry FROM confide_audit.event e, confide_audit.log l WHERE l.tenant_id = $1 AND l.epoch = $2"
        " AND e.tenant_id = $1 AND e.epoch = $2 AND (e.leaf < (SELECT coalesce(max(beyond), 0)"
        " FROM confide_audit.dropped WHERE tenant_id = $1 AND epoch = $2) OR e.leaf >= l.size) LIMIT $3",
        tenant,
        epoch,
        limit,
    )
    nodes = await connection.fetch(
        "SELECT n.hash FROM confide_audit.log l, generate_series(0, 62) w JOIN confide_audit.node n"
        " ON n.tenant_id = $1 AND n.epoch = $2 AND n.level = w WHERE l.tenant_id = $1 AND l.epoch = $2"
        " AND (n.index < 0 OR n.index >= l.size >> w)"
        " UNION ALL SELECT hash FROM confide_audit.node WHERE tenant_id = $1 AND epoch = $2"
        " AND (level < 0 OR level > 62) LIMIT $3",
        tenant,
        epoch,
        limit,
    )
    return [bytes(row["entry"]) for row in events], [bytes(row["hash"]) for row in nodes]


async def record_export(connection: Connection, tenant: UUID, epoch: int, first: int, end: int, event: UUID) -> None:
    await connection.execute(
        "INSERT INTO confide_audit.exported (tenant_id, epoch, first, beyond, event) VALUES ($1, $2, $3, $4, $5)",
        tenant,
        epoch,
        first,
        end,
        event,
    )
