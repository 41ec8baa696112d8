"""SQL of the sealer. It runs on the one connection that holds the leader's lock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from app.audit.merkle import Frontier, Node
from app.store.audit_tree import Head

Connection: TypeAlias = "asyncpg.Connection[Any]"

LEADER_LOCK: Final = 7_203_553


class LostRace(Exception):
    """Somebody else moved a log's head: this sealer isn't the leader, or its picture is old."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A writer whose flushes (mark, top] are not sealed. ``time``: of its last sealed event, or when it started."""

    writer: UUID
    mark: int
    top: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Leaf:
    """A sealed event's row. ``row``: the journal's, for columns that filters need."""

    tenant: UUID
    epoch: int
    number: int
    id: UUID
    time: datetime
    event: dict[str, Any]
    entry: bytes


async def try_lead(connection: Connection) -> bool:
    led: bool = await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER_LOCK)
    return led


async def now(connection: Connection) -> datetime:
    moment: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return moment


async def waiting(connection: Connection) -> list[Waiting]:
    rows = await connection.fetch("SELECT * FROM confide_audit.waiting_writers()")
    return [Waiting(row["writer"], row["mark"], row["top"], row["time"]) for row in rows]


async def unsealed(connection: Connection, since: datetime | None, step: int, writer: UUID | None = None) -> list[Any]:
    """Journal rows after the marks. ``since`` None: of any time."""
    return list(
        await connection.fetch(
            "SELECT * FROM confide_audit.unsealed(coalesce($1::timestamptz, '-infinity'), $2, $3)", since, step, writer
        )
    )


async def make_partitions(connection: Connection) -> None:
    """This month's and the next one's."""
    await connection.execute(
        "SELECT confide_audit.make_event_partitions(date_trunc('month', now() AT TIME ZONE 'UTC')::date"
        " + n * 32) FROM generate_series(0, 1) AS n"
    )


async def summarize(connection: Connection) -> None:
    await connection.execute("SELECT confide_audit.summarize_journal()")


async def see(connection: Connection, tenants: Iterable[UUID]) -> None:
    await connection.execute("SELECT set_config('confide.tenants', $1, true)", "{" + ",".join(map(str, tenants)) + "}")


async def grow(connection: Connection, before: Head, after: Frontier) -> None:
    """Move a log's head; a new log's ``before`` has size 0. Raises LostRace."""
    if before.size == 0:
        done = await connection.execute(
            "INSERT INTO confide_audit.log AS l (tenant_id, epoch, size, frontier, sealed_at)"
            " VALUES ($1, $2, $3, $4, now()) ON CONFLICT (tenant_id, epoch) DO UPDATE"
            " SET size = EXCLUDED.size, frontier = EXCLUDED.frontier,"
            " sealed_at = EXCLUDED.sealed_at WHERE l.size = 0",
            before.tenant,
            before.epoch,
            after.size,
            after.to_bytes(),
        )
    else:
        done = await connection.execute(
            "UPDATE confide_audit.log SET size = $3, frontier = $4, sealed_at = greatest(sealed_at, now())"
            " WHERE tenant_id = $1 AND epoch = $2 AND size = $5",
            before.tenant,
            before.epoch,
            after.size,
            after.to_bytes(),
            before.size,
        )
    if not done.endswith(" 1"):
        raise LostRace


async def insert_leaves(connection: Connection, leaves: Sequence[Leaf]) -> None:
    """Events and the objects that they name. Their logs' heads were moved before: ``sealed_at`` is theirs."""
    columns = tuple(
        [leaf.event.get(name) for leaf in leaves]
        for name in ("principal", "api_key", "container", "kek", "kms_request_id", "purpose")
    )
    await connection.execute(
        "INSERT INTO confide_audit.event (tenant_id, epoch, leaf, sealed_at, id, time, action, outcome, principal,"
        " api_key, container, kek, kms_request_id, purpose, entry)"
        " SELECT a.tenant, a.epoch, a.leaf, l.sealed_at, a.id, a.time, a.action, a.outcome, a.principal, a.api_key,"
        " a.container, a.kek, a.kms_request_id, a.purpose, a.entry"
        " FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::uuid[], $5::timestamptz[], $6::text[], $7::text[],"
        " $8::uuid[], $9::uuid[], $10::uuid[], $11::text[], $12::text[], $13::text[], $14::bytea[])"
        " AS a (tenant, epoch, leaf, id, time, action, outcome, principal, api_key, container, kek, kms_request_id,"
        " purpose, entry)"
        " JOIN confide_audit.log l ON l.tenant_id = a.tenant AND l.epoch = a.epoch",
        [leaf.tenant for leaf in leaves],
        [leaf.epoch for leaf in leaves],
        [leaf.number for leaf in leaves],
        [leaf.id for leaf in leaves],
        [leaf.time for leaf in leaves],
        [leaf.event["action"] for leaf in leaves],
        [leaf.event["outcome"] for leaf in leaves],
        *columns,
        [leaf.entry for leaf in leaves],
    )
    named = {
        (leaf.tenant, item, leaf.time, leaf.id, leaf.epoch)
        for leaf in leaves
        for item, _ in leaf.event.get("objects", ())
    }
    if named:
        await connection.execute(
            "INSERT INTO confide_audit.event_object (tenant_id, object, time, id, sealed_at)"
            " SELECT a.tenant, a.object, a.time, a.id, l.sealed_at"
            " FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[], $5::int[])"
            " AS a (tenant, object, time, id, epoch)"
            " JOIN confide_audit.log l ON l.tenant_id = a.tenant AND l.epoch = a.epoch ON CONFLICT DO NOTHING",
            *map(list, zip(*named, strict=True)),
        )


async def insert_nodes(connection: Connection, nodes: Sequence[tuple[UUID, int, Node]]) -> None:
    await connection.execute(
        "INSERT INTO confide_audit.node (tenant_id, epoch, level, index, hash)"
        " SELECT * FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bytea[])",
        [tenant for tenant, _, _ in nodes],
        [epoch for _, epoch, _ in nodes],
        [node[0] for _, _, node in nodes],
        [node[1] for _, _, node in nodes],
        [node[2] for _, _, node in nodes],
    )


async def set_marks(connection: Connection, marks: Sequence[tuple[UUID, int, datetime]]) -> None:
    await connection.execute(
        "INSERT INTO confide_audit.sealer_mark AS m (writer, flush, time) SELECT * FROM unnest($1::uuid[],"
        " $2::bigint[], $3::timestamptz[]) ON CONFLICT (writer)"
        " DO UPDATE SET flush = EXCLUDED.flush, time = EXCLUDED.time",
        *map(list, zip(*marks, strict=True)),
    )


async def set_swept(connection: Connection, leader: UUID, swept_to: datetime) -> None:
    await connection.execute(
        "UPDATE confide_audit.sealer SET leader = $1, swept_to = $2, seen_at = now()", leader, swept_to
    )


async def unsigned(connection: Connection, key_id: bytes) -> list[tuple[UUID, int]]:
    rows = await connection.fetch("SELECT * FROM confide_audit.unsigned_logs($1)", key_id)
    return [(row["tenant_id"], row["epoch"]) for row in rows]
