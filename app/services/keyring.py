"""Leases on tenants' keys: who may be served from memory, until when, and what a KMS's answer means for that.

``get`` is the hot path: a dictionary look-up and a clock. ``acquire`` loads: one flight a tenant, whatever the number
of requests that wait. A lease runs from the moment that the KMS call was sent. At half of it, while in use, a real
unwrap renews it in the background, so that requests don't wait for a KMS.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final
from uuid import UUID

from app.crypto.keys import seal_index_key, seal_root_key
from app.crypto.secret import SecretKey
from app.errors import KeyAccessDenied, KeyUnavailable, NotFound, Tampered, TenantSealed, TenantSuspended
from app.kms.provider import KmsError, Wrapped
from app.services.clock import Clock, boottime
from app.services.key_loading import IndexKeyExchanged, KeyLoader, KmsOutage, Sending, retry_after
from app.services.tenant_keys import Former, Seen, TenantKeys
from app.store.keys import StoredKeys, epoch_of, insert_index_key, insert_root_key
from app.store.ledger import Ledger, Transaction

LOADS: Final = 16
"""Loads that requests wait for, at one time in a worker, over all tenants."""
REFRESHES: Final = 8
"""Renewals in the background at one time; they never take a request's place."""
LINGER: Final = 2.0
"""Seconds until keys that were replaced, not revoked, are wiped: requests that hold them finish."""
PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 10.0
"""Seconds between loads that fail: the first, and the most. Requests in between are answered without a KMS call."""

EXCHANGE: Final = 5.0
"""Seconds that a request waits while the tenant's index key is exchanged, which takes some milliseconds."""

WIPED_BY: Final = (KeyAccessDenied, TenantSealed, TenantSuspended, NotFound, Tampered)
"""What says that keys in memory may not be used any more."""


@dataclass(frozen=True, slots=True)
class PreparedKeys:
    """A tenant's first root key and index key, wrapped and sealed, to be stored in the transaction that creates it."""

    tenant: UUID
    root: bytes
    vendor: Wrapped
    index: bytes


class _Flight(Sending):
    """One load for all who wait. A lease of 0 covers nobody who comes after it was sent."""

    task: asyncio.Task[TenantKeys]


@dataclass(slots=True)
class _Failures:
    """Loads of a tenant that failed in a row, and until when none is tried."""

    count: int = 0
    until: float = 0.0


class Keyring:
    """Tenants' keys of one worker."""

    def __init__(self, loader: KeyLoader, *, clock: Clock = boottime, max_tenants: int = 10_000) -> None:
        self.loader = loader
        self._clock = clock
        self._max_tenants = max_tenants
        self._tenants: OrderedDict[UUID, TenantKeys] = OrderedDict()
        self._flights: dict[UUID, _Flight] = {}
        self._failures: dict[UUID, _Failures] = {}
        self._renew_at: dict[UUID, float] = {}
        self._loads = asyncio.Semaphore(LOADS)
        self._refreshes = asyncio.Semaphore(REFRESHES)
        self._background: set[asyncio.Task[Any]] = set()
        self._seen: dict[UUID, tuple[int, Seen]] = {}
        self.former: dict[UUID, Former] = {}
        """By tenant: what is known of older index keys, as long as there are any."""
        self.hits = 0
        self.misses = 0

    # ------------------------------------------------------------ asking

    def get(self, tenant: UUID) -> TenantKeys | None:
        """Keys under a living lease, or None. Starts a renewal where half of the lease has passed."""
        keys = self._tenants.get(tenant)
        if keys is None:
            self.misses += 1
            return None
        now = self._clock()
        if now >= keys.until:
            self.misses += 1
            if now >= keys.kept_until:
                self.discard(tenant, at_once=True)
            return None
        self.hits += 1
        self._tenants.move_to_end(tenant)
        if now >= self._renew_at[tenant] and tenant not in self._flights:
            self._renew_at[tenant] = now + max(0.5, (keys.until - now) / 4)  # the next try, should this one fail
            self._launch(tenant, "refresh")
        return keys

    async def acquire(self, tenant: UUID) -> TenantKeys:
        """Keys under a living lease.

        Raises ``NotFound``, ``TenantSuspended``, ``TenantSealed``, ``KeyAccessDenied``, ``KeyUnavailable``,
        ``KeyMisconfigured``, ``Tampered`` or ``Unavailable``.
        """
        while True:
            keys = self.get(tenant)
            if keys is not None:
                return keys
            flight = self._flights.get(tenant)
            if flight is None:
                self._wait_after_failure(tenant)
                flight = self._launch(tenant, "load")
            elif flight.sent_at is not None and flight.lease == 0:
                await asyncio.wait([flight.task])  # that call was sent before we asked: it doesn't cover us
                continue
            return await asyncio.shield(flight.task)

    async def present(self, tenant: UUID, ledger: Ledger) -> TenantKeys:
        """Keys as they stand now: a job that another worker began goes by no older ones. Raises as ``acquire``.

        A statement that meets keys of an older epoch is refused; a look at what is left would just find nothing.
        """
        while True:
            keys = await self.acquire(tenant)
            async with ledger.transaction(tenant) as tx:
                if await epoch_of(tx, tenant) == keys.epoch:
                    return keys
            self.discard(tenant, at_once=False)

    @asynccontextmanager
    async def borrow(self, tenant: UUID) -> AsyncIterator[tuple[TenantKeys, StoredKeys]]:
        """Keys of one's own for maintenance, proved by a call of their own, wiped afterwards. Raises as ``acquire``."""
        async with self._loads:
            keys, stored = await self.loader.load(tenant, Sending(), "maintenance", maintenance=True)
        try:
            yield keys, stored
        finally:
            keys.wipe()

    def discard(self, tenant: UUID, *, at_once: bool) -> None:
        """Forget a tenant's keys. ``at_once``: wipe them now, since they may not be used any more."""
        keys = self._tenants.pop(tenant, None)
        self._renew_at.pop(tenant, None)
        if keys is None:
            return
        if at_once:
            keys.wipe()
        else:
            asyncio.get_running_loop().call_later(LINGER, keys.wipe)

    def forget_vendor(self, tenant: UUID) -> None:
        """Wipe the vendor halves of a tenant."""
        self.loader.forget_vendor(tenant)

    def sweep(self) -> None:
        """Wipe what is past its lease, asked for or not."""
        now = self._clock()
        for tenant in [tenant for tenant, keys in self._tenants.items() if now >= max(keys.until, keys.kept_until)]:
            self.discard(tenant, at_once=True)
        for tenant in [tenant for tenant, failed in self._failures.items() if now > failed.until + 60]:
            del self._failures[tenant]
        self.loader.sweep()

    def lease_ages(self, most: int = 100) -> list[float]:
        """Seconds since the leases in memory began; of the most recently used tenants, where there are many."""
        now = self._clock()
        return [now - keys.granted_at for keys in islice(reversed(self._tenants.values()), most)]

    def held(self) -> dict[UUID, int]:
        """The tenants whose keys are in memory, with the epoch that each stands at."""
        return {tenant: keys.epoch for tenant, keys in self._tenants.items()}

    async def close(self) -> None:
        """Wipe everything."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for tenant in list(self._tenants):
            self.discard(tenant, at_once=True)
        self.loader.close()

    # ------------------------------------------------------------ loading

    def _launch(self, tenant: UUID, why: str) -> _Flight:
        flight = _Flight()
        self._flights[tenant] = flight
        flight.task = asyncio.create_task(self._fly(tenant, flight, why), name="keyring")
        self._background.add(flight.task)
        flight.task.add_done_callback(self._landed)
        return flight

    def _landed(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # those who wait see it; a renewal in the background has nobody who does

    async def _fly(self, tenant: UUID, flight: _Flight, why: str) -> TenantKeys:
        try:
            if why == "refresh":
                await asyncio.sleep(random.uniform(0.0, 0.2))  # noqa: S311  jitter, so that tenants don't march in step
            keys = await self._loaded(tenant, flight, why)
            self._failures.pop(tenant, None)
            return self._keep(tenant, keys)
        except WIPED_BY:
            self.discard(tenant, at_once=True)
            raise
        except KmsOutage as error:
            held = self._outage(tenant, error)
            if held is None:
                raise
            return held
        finally:
            self._flights.pop(tenant, None)

    async def _loaded(self, tenant: UUID, flight: _Flight, why: str) -> TenantKeys:
        give_up = self._clock() + EXCHANGE
        while True:
            try:
                async with self._refreshes if why == "refresh" else self._loads:
                    keys, _ = await self.loader.load(tenant, flight, why)
                return keys
            except IndexKeyExchanged:
                if self._clock() >= give_up:
                    raise
            await asyncio.sleep(0.02)

    def _outage(self, tenant: UUID, error: KmsOutage) -> TenantKeys | None:
        """Note a failed load, and answer what may be served all the same: keys in their lease or the tenant's grace."""
        failed = self._failures.setdefault(tenant, _Failures())
        failed.count += 1
        pause = min(LONGEST_PAUSE, max(PAUSE * 2.0 ** (failed.count - 1), float(error.retry_after)))
        failed.until = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311
        keys = self._tenants.get(tenant)
        if keys is None:
            return None
        if error.grace:
            keys.grant_grace()
        else:
            keys.refuse_grace()
        return keys if keys.valid else None

    def _wait_after_failure(self, tenant: UUID) -> None:
        """While a KMS is out, requests don't call it one after another. Raises ``KeyUnavailable``."""
        failed = self._failures.get(tenant)
        if failed is not None:
            wait = failed.until - self._clock()
            if wait > 0:
                raise KeyUnavailable(retry_after=max(1, round(wait)))

    def _remember(self, tenant: UUID, keys: TenantKeys) -> None:
        """Keep what was seen under older index keys across loads, until there are none."""
        if keys.former is None:
            self.former.pop(tenant, None)
            self._seen.pop(tenant, None)
            return
        number, seen = self._seen.get(tenant, (0, keys.former.seen))
        if number != keys.index_number:
            seen = keys.former.seen
        keys.former.seen = seen
        self._seen[tenant] = (keys.index_number, seen)
        self.former[tenant] = keys.former

    def _keep(self, tenant: UUID, keys: TenantKeys) -> TenantKeys:
        self._remember(tenant, keys)
        lease = keys.until - keys.granted_at
        if keys.policy.lease == 0 and lease <= 1.0:
            asyncio.get_running_loop().call_later(lease + 1, keys.wipe)
            return keys
        old = self._tenants.get(tenant)
        if old is not None and old.epoch == keys.epoch and not old.index.wiped:
            old.renew(keys)
            keys = old
        elif old is not None:
            self.discard(tenant, at_once=False)
        self._tenants[tenant] = keys
        self._tenants.move_to_end(tenant)
        self._renew_at[tenant] = keys.granted_at + lease * random.uniform(0.4, 0.5)  # noqa: S311
        while len(self._tenants) > self._max_tenants:
            self.discard(next(iter(self._tenants)), at_once=False)
        return keys

    # ------------------------------------------------------------ a new tenant

    async def prepare_tenant(self, tenant: UUID) -> PreparedKeys:
        """Make a tenant's first keys, under the vendor's key. Calls the KMS; raises ``KeyUnavailable``."""
        trk, index, half = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()
        region = self.loader.region
        try:
            wrapped = await self.loader.calls.wrap(
                self.loader.providers.vendor, tenant, "vendor", 1, half, why="create"
            )
            return PreparedKeys(
                tenant,
                seal_root_key(trk, None, half, region=region, tenant=tenant, generation=1),
                wrapped,
                seal_index_key(index, trk, region=region, tenant=tenant, generation=1, number=1),
            )
        except KmsError as error:
            raise KeyUnavailable(retry_after=retry_after(error)) from error
        finally:
            for key in (trk, index, half):
                key.wipe()

    async def store_tenant(self, tx: Transaction, prepared: PreparedKeys) -> None:
        """Insert what ``prepare_tenant`` made, after the tenant's row."""
        vendor = prepared.vendor
        await insert_root_key(
            tx,
            tenant=prepared.tenant,
            generation=1,
            sealed=prepared.root,
            binding=None,
            customer=None,
            vendor=(vendor.ciphertext, vendor.kek_uri, vendor.kek_version),
        )
        await insert_index_key(tx, tenant=prepared.tenant, number=1, trk_generation=1, sealed=prepared.index)
