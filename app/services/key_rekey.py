"""Encrypting everything anew: each container under a fresh key, every look-up tag under a fresh index key, live.

The index keys are exchanged between two commits, with every statement that began before them over: for that moment
(milliseconds) the tenant's requests wait. From then on both are held. Containers move one by one, in bounded pieces: a
request that touches one which hasn't moved yet moves it first, the job moves the rest. When all have moved, the old
index key stays for 25 hours, only to find the answers to requests that may still be repeated.
"""

from __future__ import annotations

import logging
from typing import Any, Final
from uuid import UUID

import orjson

from app.crypto.keys import seal_index_key
from app.crypto.secret import SecretKey
from app.errors import ConfideError, Conflict, Tampered, TenantSealed, Unavailable
from app.identity import NO_UUID, Caller
from app.services import sealing
from app.services.auditing import Trace
from app.services.bindings import MOVES
from app.services.control import ControlPlane
from app.services.jobs import Blocked, Job, Jobs
from app.services.keyring import Keyring
from app.services.rekey_containers import Mover, Stale
from app.services.tenant_keys import TenantKeys
from app.services.unused_keys import sweep
from app.store import jobs as job_rows
from app.store import rekey as rows
from app.store.bindings import settle
from app.store.container_keys import fence
from app.store.keys import insert_index_key, lock_tenant, move_epoch, move_key_state
from app.store.ledger import Ledger
from app.store.pool import Pool

log = logging.getLogger("confide.rekey")

KIND: Final = "rekey"
BATCH: Final = 50
"""Containers between two notes of the job's progress."""


class Rekey:
    """The rekey job."""

    def __init__(
        self,
        region: str,
        keyring: Keyring,
        control: ControlPlane,
        jobs: Jobs,
        ledger: Ledger,
        pool: Pool,
        mover: Mover,
    ) -> None:
        self._region = region
        self._keyring = keyring
        self._control = control
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
        self._mover = mover
        jobs.register(KIND, self.run)

    async def start(self, caller: Caller, trace: Trace) -> UUID:
        """Queue it. Raises ``Conflict`` while a move is under way, and what says that no key may be used now."""
        await self._keyring.acquire(caller.tenant)
        async with self._control.act(caller, trace, "key.rekey") as act:
            row = await lock_tenant(act.tx, caller.tenant)
            if row["key_state"] == "sealed":
                raise TenantSealed
            if await job_rows.unfinished(act.tx, caller.tenant, MOVES):
                raise Conflict("A move or a rekey is under way. Wait until its job is done.")
            job = await self._jobs.start(act.tx, caller.tenant, KIND, {}, caller)
            act.detail["job"] = str(job)
            return job

    # ------------------------------------------------------------ the job

    async def run(self, job: Job) -> None:
        """Raises what sends the job back to be tried again; its steps may be repeated."""
        if not job.done.get("exchanged"):
            await self._exchange(job)
        while True:
            keys = await self._keyring.present(job.tenant, self._ledger)
            if keys.former is None or keys.former.bound is None:
                break
            try:
                if await self._some(job, keys, keys.former.bound):
                    break
            except Stale:
                self._keyring.discard(job.tenant, at_once=False)
        await self._reasons(job)
        await sweep(job, self._ledger)
        if job.done.get("tampered"):
            await job.progress(tampered=0, after=str(NO_UUID))  # once it is let go on, it looks at all of them again
            raise Blocked("tampered")
        async with job.step() as tx:
            await lock_tenant(tx, job.tenant)
            await rows.all_moved(tx, job.tenant)
            await move_epoch(tx, job.tenant)
        self._keyring.discard(job.tenant, at_once=False)

    async def _exchange(self, job: Job) -> None:
        """The new index key rules when this returns, and nothing is under way that knows the old one only."""
        if not job.done.get("closed"):
            await self._close(job)
        # Requests wait from here on: no name is made under one key while another request looks under the other.
        await fence(self._ledger, self._pool, job.tenant)
        async with job.step(exchanged=1) as tx:
            row = await lock_tenant(tx, job.tenant)
            if row["key_state"] != "rekeying":
                raise Unavailable
            await rows.exchange(tx, job.tenant)
            await settle(tx, job.tenant, ["rekeying"])
        self._keyring.discard(job.tenant, at_once=False)

    async def _close(self, job: Job) -> None:
        """Store the next index key and have the tenant's requests wait: one step."""
        async with self._keyring.borrow(job.tenant) as (keys, _):
            index = SecretKey.generate()
            try:
                async with job.step(closed=1) as tx:
                    if not await move_key_state(tx, job.tenant, "rekeying", ["active", "unavailable"]):
                        raise Unavailable
                    keys.check()
                    number = keys.index_number + 1
                    await insert_index_key(
                        tx,
                        tenant=job.tenant,
                        number=number,
                        trk_generation=keys.active,
                        sealed=seal_index_key(
                            index,
                            keys.roots[keys.active],
                            region=self._region,
                            tenant=job.tenant,
                            generation=keys.active,
                            number=number,
                        ),
                        state="pending",
                    )
            finally:
                index.wipe()
        self._keyring.discard(job.tenant, at_once=False)

    async def _some(self, job: Job, keys: TenantKeys, bound: UUID) -> bool:
        """A batch of containers. Answers whether all were looked at. Raises ``Stale``."""
        after = UUID(str(job.done.get("after", NO_UUID)))
        async with self._ledger.transaction(job.tenant) as tx:
            found = await rows.left(tx, job.tenant, keys.index_number, bound, after, BATCH)
        if not found:
            return True
        objects, turns = int(job.done.get("objects", 0)), int(job.done.get("turns", 0))
        bad = int(job.done.get("tampered", 0))
        for container in found:
            try:
                moved = await self._mover.bring(keys, container, job.facts)
            except Tampered:
                # It is refused to everybody, and the others go on. An operator must look at it.
                bad += 1
                continue
            objects, turns = objects + moved.objects, turns + moved.turns
        count = int(job.done.get("containers", 0)) + len(found)
        known: dict[str, Any] = {"tampered": bad} if bad else {}
        await job.progress(containers=count, objects=objects, turns=turns, after=str(found[-1]), **known)
        return False

    async def _reasons(self, job: Job) -> None:
        """Why something is held, under the new index key: the old one won't be there for ever."""
        after, bad = NO_UUID, int(job.done.get("tampered", 0))
        while True:
            keys = await self._keyring.present(job.tenant, self._ledger)
            async with job.step() as tx:
                row = await lock_tenant(tx, job.tenant)
                if row["epoch"] != keys.epoch:
                    raise Unavailable
                found = await rows.reasons(tx, job.tenant, after, BATCH)
                for hold in found:
                    try:
                        reason = sealing.open_reason(keys, hold["container_id"], hold["id"], hold["reason"])
                    except Tampered:
                        bad += 1
                        continue
                    sealed = sealing.seal_reason(keys, hold["container_id"], hold["id"], reason)
                    await rows.replace_reason(tx, job.tenant, hold["id"], sealed)
                if found:
                    tx.event(job.tenant, "key.rekey", job.facts({"reasons": len(found)}))
                job.done |= {"tampered": bad} if bad else {}
            if not found:
                return
            after = found[-1]["id"]

    # ------------------------------------------------------------ a day later

    async def drop_due(self) -> None:
        """Remove index keys that find nothing any more. Raises ``Unavailable``."""
        for found in await self._pool.fetch(rows.DUE_INDEX_KEYS, 64):
            tenant, number = found["tenant_id"], found["number"]
            try:
                async with self._ledger.transaction(tenant) as tx:
                    await lock_tenant(tx, tenant)
                    if await rows.drop_index_key(tx, tenant, number):
                        await move_epoch(tx, tenant)
                        facts = {"detail": {"kind": KIND, "index_key": number, "state": "destroyed"}}
                        tx.event(tenant, "key.rekey", orjson.dumps(facts).decode())
            except ConfideError as error:
                log.info("an index key stays", extra={"fields": {"error": type(error).__name__}})
