"""SQL for reading a tenant's audit log: what is sealed, and the journal's tail that isn't yet. Nothing here writes.

Run both in one snapshot: then an event is in exactly one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from typing_extensions import override

from app.store.audit_tree import Connection

JOURNAL: Final = (
    "j.tenant_id, j.id, j.time, j.writer, j.seq, j.action, j.outcome, j.reason, j.container, j.objects, j.versions,"
    " j.turns, j.commit_number, j.facts"
)
TAIL: Final = (
    " FROM confide_audit.journal j LEFT JOIN confide_audit.sealer_mark m ON m.writer = j.writer"
    " WHERE j.tenant_id = $1 AND j.time >= (SELECT s.swept_to FROM confide_audit.sealer s)"
    " AND j.flush > coalesce(m.flush, 0)"
)
"""What the sealer has not come to. Before ``swept_to`` everything is sealed, unless a clock jumped."""


SUMMARY: Final = (
    "SELECT CASE grouping(action, purpose, principal, outcome, day) WHEN 15 THEN 'action' WHEN 23 THEN 'purpose'"  # noqa: S608
    " WHEN 27 THEN 'principal' WHEN 29 THEN 'outcome' ELSE 'day' END AS dimension,"
    " coalesce(action, purpose, principal::text, outcome, day::text) AS value, count(*) AS events FROM ("
    " SELECT action, purpose, principal, outcome, (time AT TIME ZONE 'UTC')::date AS day FROM confide_audit.event"
    "  WHERE tenant_id = $1 AND time >= $2 AND time < $3"
    " UNION ALL SELECT j.action, j.facts::jsonb ->> 'purpose', (j.facts::jsonb ->> 'principal')::uuid, j.outcome,"
    "  (j.time AT TIME ZONE 'UTC')::date" + TAIL + " AND j.time >= $2 AND j.time < $3"
    ") e GROUP BY GROUPING SETS ((action), (purpose), (principal), (outcome), (day)) ORDER BY 1, 3 DESC, 2"
)


@dataclass(frozen=True, slots=True)
class Query:
    """Which events. ``since`` is included, ``until`` isn't; ``after`` is the place (time, id) behind which to go on."""

    tenant: UUID
    newest_first: bool = True
    limit: int = 100
    since: datetime | None = None
    until: datetime | None = None
    action: str | None = None
    outcome: str | None = None
    principal: UUID | None = None
    api_key: UUID | None = None
    container: UUID | None = None
    object: UUID | None = None
    kek: str | None = None
    kms_request_id: str | None = None
    purpose: str | None = None
    after: tuple[datetime, UUID] | None = None


FILTERS: Final = (
    "since",
    "until",
    "action",
    "outcome",
    "principal",
    "api_key",
    "container",
    "object",
    "kek",
    "kms_request_id",
    "purpose",
)
_SEALED: Final = ("action", "outcome", "principal", "api_key", "container", "kek", "kms_request_id", "purpose")
_IN_FACTS: Final = ("principal", "api_key", "kek", "kms_request_id", "purpose")


@dataclass(slots=True)
class _Where:
    """Conditions and their arguments."""

    arguments: list[Any]
    conditions: list[str] = field(default_factory=list)

    def also(self, condition: str, *values: Any) -> None:
        places = [f"${len(self.arguments) + number}" for number in range(1, len(values) + 1)]
        self.arguments.extend(values)
        self.conditions.append(condition.format(*places))

    def limit(self, count: int) -> str:
        self.arguments.append(count)
        return f" LIMIT ${len(self.arguments)}"

    @override
    def __str__(self) -> str:
        return "".join(f" AND {condition}" for condition in self.conditions)


def _bounds(where: _Where, query: Query, place: str) -> str:
    """Time, and where to go on; answers the order. ``place``: alias of the table whose index gives it."""
    if query.since is not None:
        where.also(f"{place}.time >= {{}}", query.since)
    if query.until is not None:
        where.also(f"{place}.time < {{}}", query.until)
    if query.after is not None:
        sign = "<" if query.newest_first else ">"
        where.also(f"({place}.time, {place}.id) {sign} ({{0}}, {{1}})", *query.after)
    down = " DESC" if query.newest_first else ""
    return f" ORDER BY {place}.time{down}, {place}.id{down}"


async def sealed(connection: Connection, query: Query) -> list[Any]:
    """(time, id, entry) of sealed events, in the order of (time, id)."""
    where = _Where([query.tenant])
    for name in _SEALED:
        value = getattr(query, name)
        if value is not None:
            where.also(f"e.{name} = {{}}", value)
    if query.outcome in {"denied", "failed"}:
        where.also("e.outcome <> 'allowed'")  # lets the partial index serve
    if query.purpose not in {None, "serve"}:
        where.also("e.purpose <> 'serve'")
    if query.object is not None:
        return await _naming(connection, query, where)
    order = _bounds(where, query, "e")
    sql = f"SELECT e.time, e.id, e.entry FROM confide_audit.event e WHERE e.tenant_id = $1{where}{order}"  # noqa: S608
    sql += where.limit(query.limit)
    return list(await connection.fetch(sql, *where.arguments))


async def _naming(connection: Connection, query: Query, where: _Where) -> list[Any]:
    """Events that name an object: from the side table in its order, each event by its id. OFFSET fixes that order of
    doing, however common the planner takes the object to be.
    """
    named = _Where(where.arguments)
    named.also("o.object = {}", query.object)
    order = _bounds(named, query, "o")
    sql = (
        "SELECT o.time, o.id, e.entry FROM (SELECT o.time, o.id, o.sealed_at FROM confide_audit.event_object o"  # noqa: S608
        f" WHERE o.tenant_id = $1{named}{order} OFFSET 0) o CROSS JOIN LATERAL (SELECT e.entry"
        f" FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.id = o.id AND e.sealed_at = o.sealed_at{where}"
        f" OFFSET 0) e{order}{named.limit(query.limit)}"
    )
    return list(await connection.fetch(sql, *named.arguments))


async def tail(connection: Connection, query: Query) -> list[Any]:
    """Journal rows that are not sealed, in the order of (time, id)."""
    where = _Where([query.tenant])
    for name in ("action", "outcome", "container"):
        value = getattr(query, name)
        if value is not None:
            where.also(f"j.{name} = {{}}", value)
    for name in _IN_FACTS:
        value = getattr(query, name)
        if value is not None:
            where.also(f"j.facts::jsonb ->> '{name}' = {{}}", str(value))
    if query.object is not None:
        where.also("{} = ANY (j.objects)", query.object)
    order = _bounds(where, query, "j")
    sql = f"SELECT {JOURNAL}{TAIL}{where}{order}{where.limit(query.limit)}"
    return list(await connection.fetch(sql, *where.arguments))


async def any_unsealed(connection: Connection, tenant: UUID, until: datetime | None) -> bool:
    """Whether an event before ``until`` waits to be sealed."""
    sql = f"SELECT EXISTS (SELECT{TAIL} AND ($2::timestamptz IS NULL OR j.time < $2))"
    found: bool = await connection.fetchval(sql, tenant, until)
    return found


async def summary(connection: Connection, tenant: UUID, since: datetime, until: datetime) -> Sequence[Any]:
    """Counts, a row for each value of each ``dimension``; ``value`` is None where an event has none."""
    return await connection.fetch(SUMMARY, tenant, since, until)


async def counts(connection: Connection, since: datetime, until: datetime) -> Sequence[Any]:
    """Sealed events of the whole cell by tenant, action and outcome: no event, no principal."""
    return await connection.fetch("SELECT * FROM confide_audit.counts($1, $2) ORDER BY 1, 2, 3", since, until)
