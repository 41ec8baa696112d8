"""Journal rows as leaf entries. What can't be encoded becomes a small event that says so: it is never dropped."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import orjson

from app.audit.event import ACTIONS, MAX_INTEGER, OUTCOMES, VERSION, EventError, encode, format_time
from app.identity import new_id

UNKNOWN_ACTION = "audit.quarantine"


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


def entry_of(row: Any, region: str) -> tuple[dict[str, Any], bytes, str | None]:
    """The event, its leaf entry, and why it is a replacement (None: it isn't)."""
    try:
        event = event_of(row, region)
        return event, encode(event), None
    except (EventError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Only an EventError's text is made for showing: it names fields and never values.
        fault = str(error) if isinstance(error, EventError) else type(error).__name__
    event = replacement(row, region, fault)
    return event, encode(event), fault


def replacement(row: Any, region: str, fault: str) -> dict[str, Any]:
    """What stands for a row that can't be encoded: its action, outcome, sequence, the fault, a hash of its facts."""
    ident: UUID = row["id"]
    action, outcome = row["action"], row["outcome"]
    detail: dict[str, str | int] = {
        "quarantine": fault[:200],
        "facts_sha256": hashlib.sha256(str(row["facts"]).encode("utf-8", "replace")).hexdigest(),
    }
    event: dict[str, Any] = {
        "v": VERSION,
        "id": str(ident),
        "time": format_time(row["time"]),
        "tenant": str(row["tenant_id"]),
        "region": region,
        "writer": str(row["writer"]),
        "seq": min(max(row["seq"], 1), MAX_INTEGER),
        "action": action if action in ACTIONS else UNKNOWN_ACTION,
        "outcome": outcome if outcome in OUTCOMES else "failed",
        "detail": detail,
    }
    if ident.version != 7:
        event["id"], detail["row_id"] = str(new_id()), str(ident)
    if action not in ACTIONS:
        detail["action"] = str(action)[:64].encode("ascii", "replace").decode()
    if event["outcome"] != "allowed":
        event["reason"] = "unencodable"
    if row["container"] is not None:
        event["container"] = str(row["container"])
    return event
