"""What opens a draft incident by itself. Each look covers the last minutes; what was drafted isn't drafted again.

tampered         a stored object was refused as tampered with
denied           a caller was denied so often within the window: for scope or purpose, or unknown keys were tried
revoked-api-key  an API key was used after its revocation
audit-gap        numbers of a writer are missing in the journal, or leaves in the newest part of a sealed log
bulk-opening     a caller opened unusually many containers: many more than in the hours before, and than a floor

How far was looked is kept in the database: what happened while no worker looked is looked at by the next one, window by
window, as it would have been. A draft's clock starts when it was detected, not when it happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.identity import NO_UUID
from app.services.incidents import Incidents
from app.store import incidents as rows
from app.store.ledger import Ledger

WINDOW: Final = timedelta(minutes=10)
OPENING_WINDOW: Final = timedelta(minutes=2)
BEFORE: Final = timedelta(hours=1)


AT_ONCE: Final = 60
"""Windows that one look makes up for; the next look goes on."""
LOOK_BACK: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """``denied``: denials in the window; ``bulk``: containers in the window; ``bulk_factor``: times the usual."""

    denied: int = 50
    bulk: int = 2000
    bulk_factor: float = 10.0


class Detections:
    """``look`` is called every minute by one worker."""

    def __init__(self, ledger: Ledger, incidents: Incidents, thresholds: Thresholds | None = None) -> None:
        self._ledger = ledger
        self._incidents = incidents
        self.thresholds = thresholds or Thresholds()

    async def look(self, now: datetime | None = None) -> list[UUID]:
        """Ids of the incidents that were drafted. ``now``: by the database's clock, which dates the journal."""
        async with self._ledger.transaction(NO_UUID) as tx:
            if not await rows.lead(tx):
                return []
            mark, until = await rows.looked_to(tx)
        drafted = []
        for end in window_ends(mark, now or until):
            drafted += await self._look_at(end)
            async with self._ledger.transaction(NO_UUID) as tx:
                await rows.note_looked_to(tx, end)
        return drafted

    async def _look_at(self, until: datetime) -> list[UUID]:
        since, begun = until - WINDOW, until - OPENING_WINDOW
        async with self._ledger.transaction(NO_UUID) as tx:
            recent = await rows.suspicious(tx, since, begun, until)
            usual = await rows.suspicious(tx, begun - BEFORE, begun - BEFORE, begun) if self._many(recent) else []
            gaps = await rows.gaps(tx, since, until - timedelta(seconds=30))
        found = [self._judge(row, usual) for row in recent]
        found += [("audit-gap", row["tenant_id"], str(row["writer"] or "log"), row["missing"], since) for row in gaps]
        drafted = []
        for what, tenant, who, count, first in filter(None, found):
            dedupe = f"{what}:{tenant}:{who}:{first:%Y-%m-%d}"
            detail = {"tenant": str(tenant), "who": who, "count": count, "first_at": first.isoformat(),
                      "window_seconds": int(WINDOW.total_seconds())}  # fmt: skip
            made = await self._incidents.draft(what, dedupe, detail)
            if made is not None:
                drafted.append(made)
        return drafted

    def _many(self, recent: list[Any]) -> bool:
        return any(row["what"] == "opened" and row["containers"] >= self.thresholds.bulk for row in recent)

    def _judge(self, row: Any, usual: list[Any]) -> tuple[str, UUID, str, int, datetime] | None:
        """Kind, tenant, caller, count and time of what is suspicious; None for what isn't."""
        who = row["principal"] or "unknown"
        place = (row["tenant_id"], who)
        if row["what"] in {"tampered", "revoked-api-key"}:
            return row["what"], *place, row["events"], row["first_at"]
        if row["what"] == "denied" and row["events"] >= self.thresholds.denied:
            return "denied", *place, row["events"], row["first_at"]
        if row["what"] == "opened" and row["containers"] >= self.thresholds.bulk:
            before: int = sum(
                each["containers"]
                for each in usual
                if each["what"] == "opened" and (each["tenant_id"], each["principal"] or "unknown") == place
            )
            per_window = before * (OPENING_WINDOW / BEFORE)
            if row["containers"] > self.thresholds.bulk_factor * per_window:
                return "bulk-opening", *place, row["containers"], row["first_at"]
        return None


def window_ends(mark: datetime | None, until: datetime) -> list[datetime]:
    """The ends of the windows to look at, the last one ``until`` if they aren't too many for one look.

    A mark in the future is a clock that has gone back: the present is looked at all the same.
    """
    if mark is None or mark >= until - OPENING_WINDOW:
        return [until]
    first = max(mark, until - LOOK_BACK)
    number = -(-(until - first) // OPENING_WINDOW)
    return [min(first + n * OPENING_WINDOW, until) for n in range(1, min(number, AT_ONCE) + 1)]
