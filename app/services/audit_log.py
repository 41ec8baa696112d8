"""Reading a tenant's audit log. The reading is an event too, committed before the answer leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from app.audit.event import VERSION, format_time
from app.identity import Caller
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.store import audit_query as rows
from app.store.audit_query import Query

_SORTED: Final = orjson.OPT_SORT_KEYS


def event_of(row: Any, region: str) -> dict[str, Any]:
    """A journal row as the event that ``app.audit.event.encode`` takes.

    What the statement knew stands in columns and wins over what the worker knew, ``facts``. Fields that say nothing are
    left out, as the format has no null.
    """
    known = orjson.loads(row["facts"])
    event: dict[str, Any] = {name: value for name, value in known.items() if value is not None and value != ""}
    event |= {
        "v": VERSION,
        "id": str(row["id"]),
        "time": format_time(row["time"]),
        "tenant": str(row["tenant_id"]),
        "region": region,
        "writer": str(row["writer"]),
        "seq": row["seq"],
        "action": row["action"],
        "outcome": row["outcome"],
    }
    if row["reason"] is not None:
        if row["outcome"] == "allowed":  # e.g. a commit's answer that was given again
            event["detail"] = event.get("detail", {}) | {"note": row["reason"]}
        else:
            event["reason"] = row["reason"]
    if row["container"] is not None:
        event["container"] = str(row["container"])
    if row["objects"]:
        event["objects"] = [
            [str(item), str(version)] for item, version in zip(row["objects"], row["versions"], strict=True)
        ]
    if row["turns"] and None not in row["turns"]:
        event["turns"] = [[row["turns"][0], row["turns"][1]]]
    if row["commit_number"] is not None:
        event["commit"] = row["commit_number"]
    return event


class AuditLog:
    """Queries over the journal."""

    def __init__(self, region: str, control: ControlPlane) -> None:
        self._region = region
        self._control = control

    async def query(self, caller: Caller, query: Query, trace: Trace) -> tuple[list[bytes], Any]:
        """Canonical JSON of up to ``query.limit`` events, and the row to go on behind where there are more, or None."""
        filters = [
            name for name in ("since", "until", "action", "outcome", "principal", "container") if getattr(query, name)
        ]
        wide = replace(query, limit=query.limit + 1)
        async with self._control.act(caller, trace, "audit.query", filters=",".join(filters)) as act:
            found = await rows.page(act.tx, wide)
            shown = found[: query.limit]
            act.detail["events"] = len(shown)
        events = [orjson.dumps(event_of(row, self._region), option=_SORTED) for row in shown]
        return events, shown[-1] if len(found) > query.limit else None
