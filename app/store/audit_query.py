"""SQL for reading the audit journal. Nothing here writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.store.ledger import Transaction

COLUMNS: Final = (
    "tenant_id, id, time, writer, seq, action, outcome, reason, container, objects, versions, turns, commit_number,"
    " facts"
)


@dataclass(frozen=True, slots=True)
class Query:
    """Which events. ``since`` is included, ``until`` isn't; ``after`` is the place (time, id) behind which to go on."""

    tenant: UUID
    newest_first: bool
    limit: int
    since: datetime | None = None
    until: datetime | None = None
    action: str | None = None
    outcome: str | None = None
    principal: UUID | None = None
    container: UUID | None = None
    after: tuple[datetime, UUID] | None = None


async def page(tx: Transaction, query: Query) -> list[Any]:
    """Journal rows in the order of (time, id)."""
    # The journal is read through its BRIN index, which needs the bitmap scans that the dialogue statements do without.
    await tx.connection.execute("SET LOCAL enable_bitmapscan = on; SET LOCAL enable_seqscan = on")
    arguments: list[Any] = [query.tenant]
    wheres = ["tenant_id = $1"]

    def also(condition: str, *values: Any) -> None:
        places = [f"${len(arguments) + number}" for number in range(1, len(values) + 1)]
        arguments.extend(values)
        wheres.append(condition.format(*places))

    for condition, value in (
        ("time >= {}", query.since),
        ("time < {}", query.until),
        ("action = {}", query.action),
        ("outcome = {}", query.outcome),
        ("container = {}", query.container),
    ):
        if value is not None:
            also(condition, value)
    if query.principal is not None:
        also("facts::jsonb ->> 'principal' = {}", str(query.principal))
    down = query.newest_first
    if query.after is not None:
        also(
            "time " + ("<=" if down else ">=") + " {0} AND (time, id) " + ("<" if down else ">") + " ({0}, {1})",
            *query.after,
        )
    order = "time DESC, id DESC" if down else "time, id"
    arguments.append(query.limit)
    sql = (
        f"SELECT {COLUMNS} FROM confide_audit.journal WHERE {' AND '.join(wheres)}"  # noqa: S608  fixed conditions
        f" ORDER BY {order} LIMIT ${len(arguments)}"
    )
    return list(await tx.connection.fetch(sql, *arguments))
