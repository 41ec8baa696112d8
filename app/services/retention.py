"""The sweeper: erases what has reached the end of its time, in small batches, beside the traffic.

``expires_at`` is exact and moves with every commit; ``sweep_at`` is a lower bound of it with an index, moved here only.
So a commit costs no index write, and the sweeper looks at a container again when its bound has passed. An expired
container is invisible from the moment that it expires, whether or not it has been swept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import orjson

from app.errors import ConfideError
from app.identity import Caller
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.deletion_journal import Deletion, DeletionJournal
from app.services.journal_horizon import HorizonError, prune
from app.store import retention as rows
from app.store import tenants as tenant_rows
from app.store.ledger import Ledger

log = logging.getLogger("confide.retention")

BATCH: Final = 500
PAUSE: Final = 5.0
"""Seconds between two looks when nothing is due."""
OVERDUE_SECONDS: Final = 300
"""An expired container that is still stored after so long is overdue: the sweeper isn't keeping up."""
LOOK_BACK: Final = timedelta(hours=24)
KEEP_JOURNAL: Final = timedelta(days=400)
PRUNE_SECONDS: Final = 3600.0


class Retention:
    """One a worker; the advisory lock lets one sweep at a time, and another goes on after a crash."""

    def __init__(
        self,
        ledger: Ledger,
        control: ControlPlane,
        journal: DeletionJournal,
        *,
        observe: Callable[[float, int], None] = lambda _lag, _swept: None,
        pause: float = PAUSE,
        batch: int = BATCH,
        keep_journal: timedelta = KEEP_JOURNAL,
    ) -> None:
        self._keep_journal = keep_journal
        self._ledger = ledger
        self._control = control
        self._journal = journal
        self._observe = observe
        self._pause = pause
        self._batch = batch
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self.lag = 0.0
        """Seconds that the longest waiting container was late at the last look; 0 in workers that don't sweep."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        """Finish the batch that is under way, then stop."""
        self._ending.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    # ------------------------------------------------------------ sweeping

    async def sweep(self) -> tuple[int, int]:
        """One batch: how many containers were judged (not those in use at the moment), how many of them erased.

        (0, 0) while another worker sweeps.
        """
        gone: list[Deletion] = []
        async with self._ledger.transaction() as tx:
            if not await rows.lead(tx):
                self.lag = 0.0
                return 0, 0
            self.lag = await rows.oldest_due(tx)
            found = await rows.due(tx, self._batch)
            if not found:
                return 0, 0
            tenants = [row["tenant_id"] for row in found]
            await rows.name_tenants(tx, list(dict.fromkeys(tenants)))
            seen = await rows.remove(tx, tenants, [row["id"] for row in found], "due")
            for row in seen:
                if row["status"] == "removed":
                    facts = removal_facts(row)
                    tx.event(row["tenant_id"], "retention.expire", facts, container=row["id"])
                    gone.append(Deletion(row["tenant_id"], "retention.expire", row["id"]))
        await self._journal.append(gone)
        return len(seen), len(gone)

    async def sweep_all(self) -> int:
        """Until nothing is due. Answers how many containers were erased."""
        erased = 0
        while True:
            seen, gone = await self.sweep()
            erased += gone
            if not seen:
                return erased

    async def catch_up(self) -> int:
        """Complete the deletion journal from the audit log: a worker may have died between commit and journal."""
        known = await asyncio.to_thread(self._journal.recent, LOOK_BACK)
        async with self._ledger.transaction() as tx:
            found = [_deletion(row) for row in await rows.deleted_since(tx, known.since)]
        missing = list({each.key: each for each in found if known.lacks(each)}.values())
        await self._journal.append(missing)
        return len(missing)

    async def prune_journal(self) -> int:
        """Drop what no backup can need any more. Answers how many files of the deletion journal went."""
        return await asyncio.to_thread(prune, self._journal.folder, self._keep_journal)

    async def _run(self) -> None:
        """A failure is logged and tried again: retention never stops for good."""
        caught_up = False
        loop = asyncio.get_running_loop()
        pruned_at = loop.time() - PRUNE_SECONDS
        while not self._ending.is_set():
            try:
                if not caught_up:
                    await self.catch_up()
                    caught_up = True
                seen, gone = await self.sweep()
                self._observe(self.lag, gone)
                if seen:
                    continue  # more is due; every await above lets requests run
                async with self._ledger.transaction() as tx:
                    await rows.drop_old_answers(tx, 10_000)
                if loop.time() - pruned_at >= PRUNE_SECONDS:
                    pruned_at = loop.time()
                    await self.prune_journal()
            except (ConfideError, OSError, HorizonError) as error:
                log.error("the sweep failed", extra={"fields": {"error": type(error).__name__}})
            await pause(self._ending, self._pause)

    # ------------------------------------------------------------ what a tenant is shown

    async def report(self, caller: Caller, trace: Trace) -> dict[str, Any]:
        """Policy, oldest data, what is expired and overdue. ``overdue`` is 0 unless the sweeper has fallen behind."""
        async with self._control.look(caller, trace) as tx:
            tenant = await tenant_rows.get(tx, caller.tenant)
            kinds = await rows.summary(tx, caller.tenant, OVERDUE_SECONDS)
        return {
            "policy": {
                "session_idle_seconds": tenant["ttl_idle_seconds"],
                "longest_seconds": tenant["ttl_max_seconds"],
                "subject_idle_seconds": tenant["ttl_max_seconds"],
                "overdue_after_seconds": OVERDUE_SECONDS,
            },
            "overdue": sum(row["overdue"] for row in kinds),
            "kinds": [
                {
                    "kind": row["kind"],
                    "stored": row["stored"],
                    "held": row["held"],
                    "expired": row["expired"],
                    "overdue": row["overdue"],
                    "without_end": row["unlimited"],
                    "oldest": row["oldest"],
                    "longest_idle": row["longest_idle"],
                    "last_expiry": row["last_expiry"],
                }
                for row in kinds
            ],
        }


async def pause(ending: asyncio.Event, seconds: float) -> None:
    """Until the end is asked for, or so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ending.wait()


def removal_facts(row: Any, **more: str | int) -> str:
    """Facts of an event about a removed container: how much went with it."""
    detail = {"objects": row["objects"], "turns": row["turns"], "keys": row["keys"], "by": "service"}
    return orjson.dumps({"kind": row["kind"], "detail": detail | more}, option=orjson.OPT_SORT_KEYS).decode()


def _deletion(row: Any) -> Deletion:
    turns = (row["low"], row["high"]) if row["low"] is not None else None
    return Deletion(row["tenant_id"], row["action"], row["container"], row["object"], row["version"], turns, row["at"])
