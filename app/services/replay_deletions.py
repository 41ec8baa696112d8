"""After a restore, before anybody is served: erase again what was erased since, and recompute every end of life."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import orjson

from app.identity import NO_UUID, new_id
from app.services.deletion_journal import Deletion, DeletionJournal, former_ids, read_journal
from app.services.erasure import DEADLINE, KIND, REQUESTED
from app.services.journal_horizon import check
from app.services.retention import Retention
from app.store import backup as rows
from app.store import jobs as job_rows
from app.store import privacy as privacy_rows
from app.store import tenants as tenant_rows
from app.store.ledger import Ledger, Transaction
from app.store.retention import remove

BATCH: Final = 500
OFFBOARD: Final = "offboard"


@dataclass(slots=True)
class Replayed:
    """What the replay did. ``requests``: erasures that were accepted but not done, queued again."""

    entries: int = 0
    containers: int = 0
    objects: int = 0
    turns: int = 0
    tenants: int = 0
    requests: int = 0
    expired: int = 0
    by_tenant: dict[UUID, Counter[str]] = field(default_factory=dict)

    def count(self, tenant: UUID, what: str, number: int) -> None:
        setattr(self, what, getattr(self, what) + number)
        if number:
            self.by_tenant.setdefault(tenant, Counter())[what] += number


async def replay(
    ledger: Ledger, retention: Retention, journal: DeletionJournal, folder: Path, state_of: datetime | None = None
) -> Replayed:
    """Apply the whole journal in ``folder``; it may be applied again. Leaves an event in each tenant's log.

    ``state_of``: when the backup was taken; else the last event that the database knows of tells how old its state is.
    Raises HorizonError for a database that is older than the journal; Unavailable: run it again then.
    """
    if state_of is None:
        async with ledger.transaction() as tx:
            state_of = await rows.last_event(tx)
    if state_of is not None:
        await asyncio.to_thread(check, folder, state_of)
    done = Replayed()
    former = await asyncio.to_thread(former_ids, folder)
    waiting: dict[UUID, list[Deletion]] = {}
    for entry in read_journal(folder):
        if entry.former is not None:
            continue
        done.entries += 1
        waiting.setdefault(entry.tenant, []).append(entry)
        if len(waiting[entry.tenant]) >= BATCH:
            await _apply(ledger, entry.tenant, waiting.pop(entry.tenant), former, done)
    for tenant, entries in waiting.items():
        await _apply(ledger, tenant, entries, former, done)
    await _recompute(ledger)
    done.expired = await retention.sweep_all()
    for tenant, counts in done.by_tenant.items():
        detail = {"step": "replayed", **counts}
        async with ledger.transaction(tenant) as tx:
            tx.event(tenant, "privacy.erasure", orjson.dumps({"detail": detail}).decode())
    return done


async def _apply(
    ledger: Ledger, tenant: UUID, entries: list[Deletion], former: Mapping[UUID, UUID], done: Replayed
) -> None:
    """``former``: objects' ids until a rekey, under which a backup from before it holds them."""
    async with ledger.transaction(tenant) as tx:
        if any(each.why == OFFBOARD and each.container is None for each in entries):
            await _leave(tx, tenant, done)
            return
        whole = [
            each.container
            for each in entries
            if each.container is not None and each.object is None and each.turns is None and each.why != REQUESTED
        ]
        if whole:
            gone = await remove(tx, [tenant] * len(whole), list(dict.fromkeys(whole)), "replay")
            done.count(tenant, "containers", len(gone))
        for each in entries:
            if each.container is None:
                continue
            if each.object is not None and each.version is not None:
                item: UUID | None = each.object
                while item is not None:
                    number = await rows.delete_object(tx, tenant, each.container, item, each.version)
                    done.count(tenant, "objects", number)
                    item = former.get(item)
            elif each.turns is not None:
                number = await rows.remove_turns(tx, tenant, each.container, each.turns, each.at)
                done.count(tenant, "turns", number)
            elif each.why == REQUESTED:
                await _ask_again(tx, tenant, each, done)


async def _ask_again(tx: Transaction, tenant: UUID, entry: Deletion, done: Replayed) -> None:
    """An erasure was accepted: it must be carried out, whether or not its job is in the backup."""
    container = entry.container or NO_UUID
    kind = await privacy_rows.exists(tx, tenant, container)
    if kind is None:
        return
    spec = {"kind": kind, "container": str(container)}
    deadline = (entry.at or datetime.now(UTC)) + DEADLINE
    await job_rows.insert(tx, tenant=tenant, job=new_id(), kind=KIND, spec=spec, caller=None, deadline=deadline)
    done.count(tenant, "requests", 1)


async def _leave(tx: Transaction, tenant: UUID, done: Replayed) -> None:
    after = NO_UUID
    while found := await privacy_rows.any_containers(tx, tenant, after, BATCH):
        ids = [each for each, _ in found]
        done.count(tenant, "containers", len(await remove(tx, [tenant] * len(ids), ids, "replay")))
        after = ids[-1]
    await privacy_rows.destroy_keys(tx, tenant)
    await privacy_rows.revoke_keys_but_auditors(tx, tenant)
    await tenant_rows.set_state(tx, tenant, "active", "leaving")
    await tenant_rows.set_state(tx, tenant, "leaving", "gone")
    done.count(tenant, "tenants", 1)


async def _recompute(ledger: Ledger) -> None:
    after = NO_UUID
    while True:
        async with ledger.transaction() as tx:
            tenants = await rows.all_tenants(tx, after, 100)
        if not tenants:
            return
        for tenant in tenants:
            async with ledger.transaction(tenant) as tx:
                await rows.recompute_ends(tx, tenant)
        after = tenants[-1]
