"""Changing which key rules: a new root key generation, live.

What stands under the old generation is re-sealed in the background; until that is done both open. Each container whose
key was re-sealed also gets a new one, which its next write uses. Nothing here ever falls back to another key: a move
back to the vendor's key is a binding of the provider ``vendor`` that somebody activates.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson

from app.crypto.keys import open_container_key, seal_container_key, seal_index_key, seal_root_key, wipe
from app.crypto.secret import SecretKey
from app.errors import (
    ConfideError,
    Conflict,
    KeyAccessDenied,
    KeyMisconfigured,
    KeyUnavailable,
    NotFound,
    TenantSealed,
    Unavailable,
)
from app.identity import Caller
from app.kms.doctor import may_activate
from app.kms.provider import KeyProvider, KmsError, Wrapped
from app.services import key_transfers
from app.services.auditing import Trace
from app.services.bindings import MOVES, VENDOR, Bindings, moved, policy_of
from app.services.control import ControlPlane
from app.services.jobs import Job, Jobs
from app.services.key_loading import retry_after
from app.services.keyring import Keyring
from app.services.tenant_keys import TenantKeys
from app.services.unused_keys import sweep
from app.store import bindings as rows
from app.store import jobs as job_rows
from app.store import privacy_records as consents
from app.store.container_keys import fence, store_resealed, under_other_roots
from app.store.keys import (
    destroy_roots,
    insert_root_key,
    last_generation,
    lock_tenant,
    move_epoch,
    move_index_key,
    step_down_root,
)
from app.store.ledger import Ledger, Transaction
from app.store.pool import Pool

log = logging.getLogger("confide.moves")

BATCH: Final = 200
"""Container keys that are re-sealed in one transaction."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move has begun: the new generation, and the job that re-seals the rest."""

    generation: int
    job: UUID
    binding: Any


@dataclass(slots=True)
class _Fresh:
    """A new root key with its halves wrapped, before it is stored."""

    generation: int
    trk: SecretKey
    sealed: bytes
    vendor: Wrapped
    customer: Wrapped | None


class Moves:
    """Activation and rotation, and the job that finishes them."""

    def __init__(
        self,
        region: str,
        bindings: Bindings,
        keyring: Keyring,
        control: ControlPlane,
        jobs: Jobs,
        ledger: Ledger,
        pool: Pool,
    ) -> None:
        self._region = region
        self._bindings = bindings
        self._keyring = keyring
        self._control = control
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
        jobs.register("reseal", self.reseal)

    # ------------------------------------------------------------ what an administrator asks for

    async def activate(self, caller: Caller, binding: UUID, trace: Trace) -> Moved:
        """Make a checked binding the one that seals. The doctor looks once more before.

        Raises ``NotFound``, ``Conflict`` (also for whoever comes second), ``KeyMisconfigured``, ``KeyUnavailable``.
        """
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, caller.tenant, binding)
            tenant = await rows.tenant_row(tx, caller.tenant)
            generation = await last_generation(tx, caller.tenant) + 1
            consented = await consents.consented(tx, caller.tenant, "kms")
        if row is None:
            raise NotFound
        _check_state(row)
        policy = policy_of(tenant, self._region)
        checks, transfer_to = await self._bindings.examined(caller.tenant, row, policy, generation, consented)
        if transfer_to != row["transfer_to"]:
            raise Conflict("The key is in another region than it was. POST /v1/keys/bindings/{id}/check first.")
        if not may_activate(checks):
            raise KeyMisconfigured(
                "The doctor finds that the binding isn't right (any more), so it was not activated."
                " POST /v1/keys/bindings/{id}/check tells what to mend."
            )
        return await self._move(caller, trace, "binding.activate", row, generation)

    async def rotate(self, caller: Caller, trace: Trace) -> Moved:
        """A new generation under the same key. Raises as ``activate`` does."""
        async with self._control.look(caller, trace) as tx:
            bindings = await rows.all_of(tx, caller.tenant)
            generation = await last_generation(tx, caller.tenant) + 1
        current = next((row for row in bindings if row["current"]), None)
        return await self._move(caller, trace, "key.rotate", current, generation)

    async def rotate_due(self) -> None:
        """Tenants whose rotation period has passed get a new generation, in nobody's name. Raises ``Unavailable``."""
        for found in await self._pool.fetch(rows.DUE_ROTATIONS, 16):
            try:
                await self._rotate_by_period(found["tenant_id"])
            except ConfideError as error:
                # Another worker was first, or the KMS is out: it comes again in the next round.
                log.info("no rotation yet", extra={"fields": {"error": type(error).__name__}})

    async def _rotate_by_period(self, tenant: UUID) -> None:
        async with self._ledger.transaction(tenant) as tx:
            bindings = await rows.all_of(tx, tenant)
            generation = await last_generation(tx, tenant) + 1
        current = next((row for row in bindings if row["current"]), None)
        fresh = await self._fresh(tenant, current, generation)
        try:
            async with self._keyring.borrow(tenant) as (keys, _), self._ledger.transaction(tenant) as tx:
                await self._store(tx, tenant, keys, fresh, current)
                await self._jobs.start(tx, tenant, "reseal", {"generation": generation})
                facts = {"trk": generation, "detail": {"by": "rotation period", "generation": generation}}
                tx.event(tenant, "key.rotate", orjson.dumps(facts).decode())
        finally:
            fresh.trk.wipe()
        self._keyring.discard(tenant, at_once=False)

    # ------------------------------------------------------------ the move itself

    async def _move(self, caller: Caller, trace: Trace, action: str, target: Any, generation: int) -> Moved:
        """``target``: the binding's row; None for a tenant that never had one."""
        tenant = caller.tenant
        fresh = await self._fresh(tenant, target, generation)
        try:
            async with (
                self._keyring.borrow(tenant) as (keys, _),
                self._control.act(caller, trace, action) as act,
            ):
                await self._store(act.tx, tenant, keys, fresh, target)
                job = await self._jobs.start(act.tx, tenant, "reseal", {"generation": generation}, caller)
                act.detail |= {"generation": generation, "job": str(job), "kek": _kek(fresh)}
                if target is not None:
                    act.detail["binding"] = str(target["id"])
                    target = await rows.get(act.tx, tenant, target["id"])
        finally:
            fresh.trk.wipe()
        self._keyring.discard(tenant, at_once=False)
        return Moved(generation, job, target)

    async def _fresh(self, tenant: UUID, target: Any, generation: int) -> _Fresh:
        """A root key under both halves; each half's KMS has shown that it opens what it wrapped."""
        loader = self._keyring.loader
        customer, vendor = None, SecretKey.generate()
        wrapped = None
        if target is not None:
            key_transfers.refuse(target)
        try:
            if target is not None and target["provider"] != VENDOR:
                customer = SecretKey.generate()
                provider = loader.providers.for_binding(target["provider"], orjson.loads(target["fields"]))
                wrapped = await self._proved(provider, tenant, "customer", generation, customer)
            own = await self._proved(loader.providers.vendor, tenant, "vendor", generation, vendor)
            trk = SecretKey.generate()
            sealed = seal_root_key(trk, customer, vendor, region=self._region, tenant=tenant, generation=generation)
            return _Fresh(generation, trk, sealed, own, wrapped)
        except KmsError as error:
            raise KeyUnavailable(
                f"The key service didn't wrap the new key ({error.code}); nothing was changed.",
                retry_after=retry_after(error),
            ) from error
        finally:
            wipe(customer, vendor)

    async def _proved(
        self, provider: KeyProvider, tenant: UUID, side: str, generation: int, half: SecretKey
    ) -> Wrapped:
        calls = self._keyring.loader.calls
        wrapped = await calls.wrap(provider, tenant, side, generation, half, why="move")
        opened = await calls.unwrap(
            provider, tenant, side, generation, wrapped.ciphertext, wrapped.kek_version, why="move"
        )
        same = opened.key == half
        opened.key.wipe()
        if not same:
            raise KeyMisconfigured("The key service gave back another value than it wrapped. Nothing was changed.")
        return wrapped

    async def _store(self, tx: Transaction, tenant: UUID, keys: TenantKeys, fresh: _Fresh, target: Any) -> None:
        """Under the tenant's lock: the first one wins, the second finds the generation taken."""
        row = await lock_tenant(tx, tenant)
        _check_tenant(row)
        if await last_generation(tx, tenant) != fresh.generation - 1 or row["epoch"] != keys.epoch:
            raise Conflict("The tenant's keys have changed meanwhile. Look at GET /v1/keys and decide again.")
        if any(job["kind"] == "rekey" for job in await job_rows.unfinished(tx, tenant, MOVES)):
            raise Conflict("A rekey is under way. Wait until its job is done.")
        await step_down_root(tx, tenant)
        wrapped = fresh.customer
        await insert_root_key(
            tx,
            tenant=tenant,
            generation=fresh.generation,
            sealed=fresh.sealed,
            binding=target["id"] if wrapped is not None else None,
            customer=(wrapped.ciphertext, wrapped.kek_uri, wrapped.kek_version) if wrapped is not None else None,
            vendor=(fresh.vendor.ciphertext, fresh.vendor.kek_uri, fresh.vendor.kek_version),
        )
        keys.check()
        older = keys.former.keys if keys.former is not None else []
        for number, key in [(keys.index_number, keys.index), *older]:
            index = seal_index_key(
                key, fresh.trk, region=self._region, tenant=tenant, generation=fresh.generation, number=number
            )
            if not await move_index_key(tx, tenant, number, fresh.generation, index):
                raise Conflict
        if target is not None and not target["current"]:
            await self._take_over(tx, tenant, target, fresh)
        await move_epoch(tx, tenant)

    async def _take_over(self, tx: Transaction, tenant: UUID, target: Any, fresh: _Fresh) -> None:
        now = await rows.get(tx, tenant, target["id"], lock=True)
        _check_state(now)
        before = await rows.step_down(tx, tenant)
        if before is not None:
            moved(tx, tenant, before, "active", "retiring")
        used = fresh.customer or fresh.vendor
        await rows.make_current(tx, tenant, target["id"], used.kek_uri, used.kek_version)
        moved(tx, tenant, target["id"], "checked", "active")

    # ------------------------------------------------------------ the job: what old generations still open

    async def reseal(self, job: Job) -> None:
        """Re-seal what isn't under the active root key; remove container keys and empty root keys that open nothing."""
        fenced = False
        while True:
            keys = await self._keyring.present(job.tenant, self._ledger)
            async with self._ledger.transaction(job.tenant) as tx:
                batch = await under_other_roots(tx, job.tenant, keys.active, BATCH)
            if batch:
                await self._reseal_batch(job, keys, batch)
            elif not fenced:
                # A write that passed the gate before the move may still bring a key under the old generation.
                await fence(self._ledger, self._pool, job.tenant)
                fenced = True
            else:
                break
        await sweep(job, self._ledger)
        async with job.step() as tx:
            await lock_tenant(tx, job.tenant)
            destroyed = await destroy_roots(tx, job.tenant)
            if destroyed:
                await move_epoch(tx, job.tenant)
                for generation in destroyed:
                    facts = job.facts({"generation": generation, "state": "destroyed"}, trk=generation)
                    tx.event(job.tenant, "key.rotate", facts)
        self._keyring.discard(job.tenant, at_once=False)

    async def _reseal_batch(self, job: Job, keys: TenantKeys, batch: list[Any]) -> None:
        resealed = [self._resealed(keys, row) for row in batch]
        renewed = [_renewed(keys, row) for row in batch if row["generation"] == row["ck_generation"]]
        count = int(job.done.get("container_keys", 0)) + len(batch)
        async with job.step(container_keys=count, generation=keys.active) as tx:
            row = await lock_tenant(tx, job.tenant)
            if row["epoch"] != keys.epoch or row["key_state"] not in {"active", "unavailable"}:
                raise Unavailable
            keys.check()
            await store_resealed(tx, job.tenant, keys.active, batch, resealed, renewed)
            ends = {"from": str(batch[0]["container_id"]), "to": str(batch[-1]["container_id"])}
            facts = job.facts({"container_keys": len(batch), "new_keys": len(renewed), **ends})
            tx.event(job.tenant, "key.rekey", f"{facts[:-1]}{keys.facts()}}}")

    def _resealed(self, keys: TenantKeys, row: Any) -> bytes:
        root = keys.roots.get(row["trk_generation"])
        if root is None:
            raise Unavailable
        where = {"region": self._region, "tenant": keys.tenant, "container": row["container_id"]}
        ck = open_container_key(
            row["sealed"], root, trk_generation=row["trk_generation"], ck_generation=row["generation"], **where
        )
        try:
            return seal_container_key(
                ck, keys.roots[keys.active], trk_generation=keys.active, ck_generation=row["generation"], **where
            )
        finally:
            ck.wipe()


def _renewed(keys: TenantKeys, row: Any) -> tuple[UUID, int, bytes]:
    """A new key for a container whose present one stood under an old root key: (container, generation, sealed)."""
    generation = row["generation"] + 1
    ck, sealed = keys.new_container_key(row["container_id"], generation)
    ck.wipe()
    return row["container_id"], generation, sealed


def _check_state(row: Any) -> None:
    """Raises ``Conflict`` unless the binding may be activated, ``Forbidden`` without a consent that it needs."""
    key_transfers.refuse(row)
    state = row["state"]
    if state == "checked":
        return
    if state == "pending":
        raise Conflict("The doctor hasn't passed this binding yet. POST /v1/keys/bindings/{id}/check first.")
    if state == "retired":
        raise Conflict("The binding is retired. Make a new one.")
    raise Conflict(f"The binding is {state} already.")


def _check_tenant(row: Any) -> None:
    if row["key_state"] == "sealed":
        raise TenantSealed
    if row["key_state"] == "revoked":
        raise KeyAccessDenied
    if row["key_state"] == "rekeying":
        raise Conflict("A rekey is under way. Wait until its job is done.")


def _kek(fresh: _Fresh) -> str:
    return (fresh.customer or fresh.vendor).kek_uri
