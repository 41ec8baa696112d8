"""Encrypting everything anew: each container under a fresh key, every look-up tag under a fresh index key.

While it runs nobody could look anything up, since tags of both index keys stand side by side: so the tenant's requests
are answered 503 with Retry-After until it is done. Container by container, each in one transaction with the job's
cursor, so that a worker's death costs at most the container that it was at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.crypto.keys import open_index_key, seal_index_key
from app.crypto.secret import SecretKey
from app.errors import Conflict, Tampered, TenantSealed, Unavailable
from app.identity import NO_UUID, Caller, Kind, Purpose, new_id
from app.services import sealing
from app.services.auditing import Trace
from app.services.bindings import MOVES
from app.services.changes import NewTurn, Put
from app.services.control import ControlPlane
from app.services.jobs import Job, Jobs
from app.services.keyring import Keyring
from app.services.tenant_keys import TenantKeys
from app.store import jobs as job_rows
from app.store import rekey as rows
from app.store.bindings import settle
from app.store.container_keys import fence
from app.store.keys import StoredKeys, insert_index_key, lock_tenant, move_key_state
from app.store.ledger import Ledger, Transaction
from app.store.pool import Pool

KIND: Final = "rekey"


@dataclass(slots=True)
class _Sides:
    """What a container is opened with and what it is sealed with: the same root keys, another index key."""

    old: TenantKeys
    new: TenantKeys


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
    ) -> None:
        self._region = region
        self._keyring = keyring
        self._control = control
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
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
        if not job.done.get("closed"):
            await self._close(job)
        await fence(self._ledger, self._pool, job.tenant)  # nobody still writes under the old index key
        while True:
            async with self._keyring.borrow(job.tenant) as (keys, stored):
                sides = _Sides(keys, self._new_side(keys, stored))
                try:
                    if await self._some(job, sides):
                        break
                finally:
                    sides.new.index.wipe()
                    sides.new.answers.wipe()
        await self._open_again(job)

    async def _close(self, job: Job) -> None:
        """Store the next index key and stop the tenant's requests: one step."""
        async with self._keyring.borrow(job.tenant) as (keys, _):
            index = SecretKey.generate()
            try:
                async with job.step(closed=1) as tx:
                    if not await move_key_state(tx, job.tenant, "rekeying", ["active", "unavailable"]):
                        raise Unavailable
                    keys.check()
                    await insert_index_key(
                        tx,
                        tenant=job.tenant,
                        number=keys.index_number + 1,
                        trk_generation=keys.active,
                        sealed=seal_index_key(
                            index,
                            keys.roots[keys.active],
                            region=self._region,
                            tenant=job.tenant,
                            generation=keys.active,
                            number=keys.index_number + 1,
                        ),
                        state="pending",
                    )
            finally:
                index.wipe()
        self._keyring.discard(job.tenant, at_once=False)

    def _new_side(self, keys: TenantKeys, stored: StoredKeys) -> TenantKeys:
        row = stored.pending
        if row is None:
            raise Unavailable
        index = open_index_key(
            row["sealed"],
            keys.roots[row["trk_generation"]],
            region=self._region,
            tenant=keys.tenant,
            generation=row["trk_generation"],
            number=row["number"],
        )
        return TenantKeys(
            tenant=keys.tenant,
            region=self._region,
            epoch=keys.epoch,
            policy=keys.policy,
            clock=keys.clock,
            roots=keys.roots,
            active=keys.active,
            index=index,
            index_number=row["number"],
            kek=keys.kek,
            granted_at=keys.granted_at,
            until=keys.until,
        )

    async def _some(self, job: Job, sides: _Sides) -> bool:
        """Containers one after another, as long as the lease holds. Answers whether all are done."""
        while sides.old.valid:
            after = UUID(str(job.done.get("after", NO_UUID)))
            async with self._ledger.transaction(job.tenant) as tx:
                found = await rows.next_container(tx, job.tenant, after)
            if found is None:
                return True
            await self._container(job, sides, found)
        return False

    async def _container(self, job: Job, sides: _Sides, container: UUID) -> None:
        """One container, whole: opened, sealed anew, its old keys removed, and the event of it."""
        count = int(job.done.get("containers", 0)) + 1
        async with job.step(containers=count, after=str(container)) as tx:
            tenant = await lock_tenant(tx, job.tenant)
            if tenant["key_state"] != "rekeying" or tenant["epoch"] != sides.old.epoch:
                raise Unavailable
            stored = await rows.container(tx, job.tenant, container)
            if stored is None:
                return
            sides.old.check()
            objects, turns = await self._rewrite(tx, sides, stored)
            facts = job.facts({"objects": objects, "turns": turns}, purpose=Purpose.MAINTENANCE.value)
            tx.event(job.tenant, "key.rekey", f"{facts[:-1]}{sides.old.facts()}}}", container=container)

    async def _rewrite(self, tx: Transaction, sides: _Sides, stored: rows.Stored) -> tuple[int, int]:
        row, tenant = stored.row, sides.old.tenant
        container: UUID = row["id"]
        kind = Kind(row["kind"])
        held = {
            key["generation"]: sides.old.open_container_key(
                container, key["generation"], key["trk_generation"], key["sealed"]
            )
            for key in stored.keys
        }
        generation = max(held) + 1
        ck, sealed = sides.new.new_container_key(container, generation)
        try:
            objects = [_object(sides, held, ck, generation, container, each) for each in stored.objects]
            turns = [_turn(sides, held, ck, generation, container, each) for each in stored.turns]
            meta = _meta(sides, held, ck, generation, kind, row)
            await rows.replace(tx, tenant, container, generation, sides.new.active, sealed, objects, turns, meta)
        finally:
            ck.wipe()
            sides.old.erase(container)
        return len(objects), len(turns)

    async def _open_again(self, job: Job) -> None:
        """The new index key rules; what only the old one could find (remembered answers) is gone."""
        async with job.step() as tx:
            await lock_tenant(tx, job.tenant)
            await rows.switch_index(tx, job.tenant)
            await settle(tx, job.tenant, ["rekeying"])
        self._keyring.discard(job.tenant, at_once=False)


def _key(held: dict[int, SecretKey], generation: int) -> SecretKey:
    found = held.get(generation)
    if found is None:
        raise Tampered
    return found


def _object(
    sides: _Sides, held: dict[int, SecretKey], ck: SecretKey, generation: int, container: UUID, row: Any
) -> tuple[Any, ...]:
    """Old id, new id, collection tag, tags, fingerprint, body. The version stays: its ETag means the same content."""
    found = sealing.open_object(sides.old, _key(held, row["ck_generation"]), container, row)
    item = sealing.object_id(sides.new, container, found.collection, found.key)
    put = Put(found.collection, found.key, found.content_type, found.body, tuple(found.tags), found.inline)
    tags = b"".join(sealing.object_tag(sides.new, container, tag).bytes for tag in found.tags)
    mark = None
    if row["fingerprint"] is not None:
        mark = sealing.fingerprint(sides.new, container, found.content_type.encode(), found.body)
    body = sealing.seal_object(sides.new, ck, generation, container, item, row["version"], put)
    return row["id"], item, sealing.collection_tag(sides.new, container, found.collection), tags, mark, body


def _turn(
    sides: _Sides, held: dict[int, SecretKey], ck: SecretKey, generation: int, container: UUID, row: Any
) -> tuple[int, bytes]:
    """Number and body."""
    turn = sealing.open_turn(sides.old, _key(held, row["ck_generation"]), container, row)
    new = NewTurn(turn.content_type, turn.body, turn.inline)
    return turn.number, sealing.seal_turn(sides.new, ck, generation, container, turn.id, turn.number, new)


def _meta(
    sides: _Sides, held: dict[int, SecretKey], ck: SecretKey, generation: int, kind: Kind, row: Any
) -> tuple[UUID, bytes, UUID | None, list[UUID]]:
    """Version, sealed names, external tag, label tags."""
    container = row["id"]
    meta = sealing.open_meta(
        sides.old, _key(held, row["meta_ck"]), row["meta_ck"], container, row["meta_version"], row["meta"]
    )
    version = new_id()
    tag = sealing.external_tag(sides.new, kind, meta.external_id) if meta.external_id is not None else None
    label_tags = [sealing.label_tag(sides.new, label) for label in dict.fromkeys(meta.labels)]
    return version, sealing.seal_meta(sides.new, ck, generation, container, version, meta), tag, label_tags
