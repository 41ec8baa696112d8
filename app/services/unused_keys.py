"""Removing container keys that open nothing any more: each rotation gives a container another one."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from app.identity import NO_UUID
from app.services.jobs import Job
from app.store.container_keys import drop, unused
from app.store.ledger import Ledger

LINGER: Final = 2.0
"""Seconds between a key's being seen unused and its end: requests that have read what it opened finish."""
LOOKED_AT: Final = 5_000
"""Containers in one look."""
DROPPED: Final = 500
"""Keys that are removed in one transaction, with one event."""


async def sweep(job: Job, ledger: Ledger) -> None:
    """As steps of ``job``. What is left out, since it is used or because the worker died, is found by the next job."""
    after: UUID | None = NO_UUID
    while after is not None:
        async with ledger.transaction(job.tenant) as tx:
            doomed, after = await unused(tx, job.tenant, after, LOOKED_AT)
        if not doomed:
            continue
        await asyncio.sleep(LINGER)
        for start in range(0, len(doomed), DROPPED):
            part = doomed[start : start + DROPPED]
            count = int(job.done.get("unused_keys", 0)) + len(part)
            async with job.step(unused_keys=count) as tx:
                dropped = await drop(tx, job.tenant, part)
                facts = {"unused_keys": dropped, "state": "destroyed", "from": str(part[0][0]), "to": str(part[-1][0])}
                tx.event(job.tenant, "key.rekey", job.facts(facts))
