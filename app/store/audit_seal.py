"""SQL of the sealer. It runs on the one connection that holds the leader's lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from app.audit.merkle import Frontier, Run
from app.store.audit_tree import Head

Connection: TypeAlias = "asyncpg.Connection[Any]"

LEADER_LOCK: Final = 7_203_553
LEASE_SECONDS: Final = 5.0


class LostRace(Exception):
    """Somebody else moved a log's head: this sealer isn't the leader, or its picture is old."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A writer whose flushes (mark, top] are not sealed. ``time``: of its last sealed event, or when it started."""

    writer: UUID
    mark: int
    top: int
    time: datetime


@dataclass(slots=True)
class Encoded:
    """An event as its table needs it. ``fault``: why it is a replacement (None: it isn't)."""

    id: str
    time: str
    action: str
    outcome: str
    principal: str | None
    api_key: str | None
    container: str | None
    kek: str | None
    kms_request_id: str | None
    purpose: str | None
    objects: Sequence[str]
    entry: bytes
    fault: str | None = None

    @classmethod
    def of(cls, event: Mapping[str, Any], entry: bytes, fault: str | None = None) -> Encoded:
        get = event.get
        return cls(
            event["id"],
            event["time"],
            event["action"],
            event["outcome"],
            get("principal"),
            get("api_key"),
            get("container"),
            get("kek"),
            get("kms_request_id"),
            get("purpose"),
            [item for item, _ in get("objects", ())],
            entry,
            fault,
        )


class Leaves:
    """Sealed events by columns, each a list of text: one value a column travels faster than an array of values."""

    __slots__ = ("columns", "objects")

    def __init__(self) -> None:
        self.columns: tuple[list[str], ...] = tuple([] for _ in range(14))
        self.objects: set[tuple[str, str, str, str, str]] = set()

    def add(self, tenant: str, epoch: str, leaf: int, event: Encoded) -> None:
        """The event is number ``leaf`` of that log. Empty text stands for NULL."""
        values = (
            tenant,
            epoch,
            str(leaf),
            event.id,
            event.time,
            event.action,
            event.outcome,
            event.principal or "",
            event.api_key or "",
            event.container or "",
            event.kek or "",
            event.kms_request_id or "",
            event.purpose or "",
            event.entry.decode(),
        )
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)
        for item in event.objects:
            self.objects.add((tenant, epoch, item, event.time, event.id))


class Grown(NamedTuple):
    """How far a log grows in one batch. ``runs``: (level, first index, hashes) of the subtrees that it completes."""

    before: Head
    after: Frontier
    runs: Sequence[Run]


async def try_lead(connection: Connection) -> bool:
    led: bool = await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER_LOCK)
    return led


async def take_lead(connection: Connection, me: UUID) -> int | None:
    """The next term, or None while another leads.

    The lock is free as soon as a leader's connection is gone. One that stands still keeps it, but not its lease; who
    then leads by the lease alone is not dethroned by whoever gets the lock.
    """
    term: int | None = await connection.fetchval(
        "UPDATE confide_audit.sealer SET leader = $1, term = term + 1, locked = $3, seen_at = now(),"
        " lease_until = clock_timestamp() + $2 * interval '1 s' WHERE ($3 AND locked)"
        " OR lease_until < clock_timestamp() RETURNING term",
        me,
        LEASE_SECONDS,
        await try_lead(connection),
    )
    return term


async def hold_lead(connection: Connection, me: UUID, term: int) -> None:
    """Renew the lease; in a transaction, keep another from taking the lead before it ends. Raises LostRace."""
    done = await connection.execute(
        "UPDATE confide_audit.sealer SET lease_until = clock_timestamp() + $3 * interval '1 s', seen_at = now()"
        " WHERE leader = $1 AND term = $2",
        me,
        term,
        LEASE_SECONDS,
    )
    if not done.endswith(" 1"):
        raise LostRace


async def now(connection: Connection) -> datetime:
    moment: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return moment


async def waiting(connection: Connection) -> list[Waiting]:
    rows = await connection.fetch("SELECT * FROM confide_audit.waiting_writers()")
    return [Waiting(row["writer"], row["mark"], row["top"], row["time"]) for row in rows]


async def unsealed(connection: Connection, since: datetime | None, step: int, writer: UUID | None = None) -> list[Any]:
    """Journal rows after the marks, with their own ids and arrays as text. ``since`` None: of any time."""
    return list(
        await connection.fetch(
            "SELECT u.tenant_id, u.id::text, u.time, u.writer, u.seq, u.flush, u.action, u.outcome, u.reason,"
            " u.container::text, u.objects::text, u.versions::text, u.turns, u.commit_number, u.facts"
            " FROM confide_audit.unsealed(coalesce($1::timestamptz, '-infinity'), $2, $3) u",
            since,
            step,
            writer,
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


async def grow(connection: Connection, grown: Sequence[Grown]) -> None:
    """Move logs' heads; a new log's ``before`` has size 0. Raises LostRace."""
    for sql, logs in (
        (_BEGIN, [log for log in grown if log.before.size == 0]),
        (_GO_ON, [log for log in grown if log.before.size > 0]),
    ):
        if not logs:
            continue
        done = await connection.execute(
            sql,
            [log.before.tenant for log in logs],
            [log.before.epoch for log in logs],
            [log.before.size for log in logs],
            [log.after.size for log in logs],
            [log.after.to_bytes() for log in logs],
        )
        if int(done.rpartition(" ")[2]) != len(logs):
            raise LostRace


_LOGS: Final = (
    " FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[], $5::bytea[])"
    " AS a (tenant, epoch, before, size, frontier)"
)
_BEGIN: Final = (
    "INSERT INTO confide_audit.log AS l (tenant_id, epoch, size, frontier, sealed_at)"
    f" SELECT a.tenant, a.epoch, a.size, a.frontier, now(){_LOGS}"
    " ON CONFLICT (tenant_id, epoch) DO UPDATE SET size = EXCLUDED.size, frontier = EXCLUDED.frontier,"
    " sealed_at = EXCLUDED.sealed_at WHERE l.size = 0"
)
_GO_ON: Final = (
    "UPDATE confide_audit.log l SET size = a.size, frontier = a.frontier,"  # noqa: S608  fixed texts
    f" sealed_at = greatest(l.sealed_at, now()){_LOGS}"
    " WHERE l.tenant_id = a.tenant AND l.epoch = a.epoch AND l.size = a.before"
)


async def insert_leaves(connection: Connection, leaves: Leaves) -> None:
    """Events and the objects that they name. Their logs' heads were moved before: ``sealed_at`` is theirs."""
    await connection.execute(_EVENTS, *map("\n".join, leaves.columns))
    if leaves.objects:
        await connection.execute(_OBJECTS, *map("\n".join, zip(*leaves.objects, strict=True)))


def _texts(*types: str) -> str:
    """Columns out of texts with a value a line; no value holds a line's end."""
    return ", ".join(f"string_to_array(${place}, E'\\n', '')::{type_}[]" for place, type_ in enumerate(types, 1))


_EVENTS: Final = (
    "INSERT INTO confide_audit.event (tenant_id, epoch, leaf, sealed_at, id, time, action, outcome, principal,"  # noqa: S608
    " api_key, container, kek, kms_request_id, purpose, entry)"
    " SELECT a.tenant, a.epoch, a.leaf, l.sealed_at, a.id, a.time, a.action, a.outcome, a.principal, a.api_key,"
    " a.container, a.kek, a.kms_request_id, a.purpose, convert_to(a.entry, 'UTF8') FROM unnest("
    + _texts("uuid", "int", "bigint", "uuid", "timestamptz", "text", "text", "uuid", "uuid", "uuid", *["text"] * 4)
    + ") AS a (tenant, epoch, leaf, id, time, action, outcome, principal, api_key, container, kek, kms_request_id,"
    " purpose, entry) JOIN confide_audit.log l ON l.tenant_id = a.tenant AND l.epoch = a.epoch"
    " ORDER BY a.tenant, a.leaf"
)
_OBJECTS: Final = (
    "INSERT INTO confide_audit.event_object (tenant_id, object, time, id, sealed_at)"  # noqa: S608
    " SELECT a.tenant, a.object, a.time, a.id, l.sealed_at FROM unnest("
    + _texts("uuid", "int", "uuid", "timestamptz", "uuid")
    + ") AS a (tenant, epoch, object, time, id)"
    " JOIN confide_audit.log l ON l.tenant_id = a.tenant AND l.epoch = a.epoch ORDER BY a.tenant, a.object"
    " ON CONFLICT DO NOTHING"
)


async def insert_nodes(connection: Connection, grown: Sequence[Grown]) -> set[UUID]:
    """All hashes travel as one value; each run says where its own begin.

    Answers the tenants in whose trees another hash stood already where one belongs. It stays, since nothing here is
    ever changed; what it spoils is that log alone, and whoever signs, proves or verifies finds it.
    """
    runs: list[tuple[UUID, int, int, int, int, int]] = []
    hashes: list[bytes] = []
    for log in grown:
        for level, first, row in log.runs:
            runs.append((log.before.tenant, log.before.epoch, level, first, len(row), len(hashes)))
            hashes += row
    arguments = (*map(list, zip(*runs, strict=True)), b"".join(hashes))
    done = await connection.execute(
        f"INSERT INTO confide_audit.node (tenant_id, epoch, level, index, hash) {_NODES} ON CONFLICT DO NOTHING",
        *arguments,
    )
    if int(done.rpartition(" ")[2]) == len(hashes):
        return set()
    spoilt = await connection.fetch(
        f"SELECT DISTINCT tenant_id FROM confide_audit.node JOIN ({_NODES}) AS w (tenant_id, epoch, level, index, made)"  # noqa: S608
        " USING (tenant_id, epoch, level, index) WHERE hash <> made",
        *arguments,
    )
    return {row["tenant_id"] for row in spoilt}


_NODES: Final = (
    "SELECT r.tenant, r.epoch, r.level, r.first + n, substr($7::bytea, 32 * (r.start + n) + 1, 32)"
    " FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::int[], $6::int[])"
    " AS r (tenant, epoch, level, first, count, start), generate_series(0, r.count - 1) AS n"
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
        "UPDATE confide_audit.sealer SET swept_to = $2, seen_at = now() WHERE leader = $1", leader, swept_to
    )


async def unsigned(connection: Connection, key_id: bytes) -> list[tuple[UUID, int]]:
    rows = await connection.fetch("SELECT * FROM confide_audit.unsigned_logs($1)", key_id)
    return [(row["tenant_id"], row["epoch"]) for row in rows]
