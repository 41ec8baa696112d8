"""Leases on tenants' keys: who may be served from memory, until when, and what a KMS's answer means for that.

``get`` is the hot path: a dictionary look-up and a clock. ``acquire`` loads: one flight a tenant, whatever the number of
requests that wait. A lease runs from the moment that the KMS call was sent. At half of it, while in use, a real
unwrap renews it in the background, so that requests don't wait for a KMS.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from app.crypto.keys import open_index_key, open_root_key, seal_index_key, seal_root_key
from app.crypto.secret import SecretKey
from app.errors import (
    KeyAccessDenied,
    KeyMisconfigured,
    KeyUnavailable,
    NotFound,
    Tampered,
    TenantSealed,
    TenantSuspended,
    Unavailable,
)
from app.kms.provider import (
    KeyProvider,
    KmsDenied,
    KmsError,
    KmsIntegrity,
    KmsMisconfigured,
    KmsUnavailable,
    Wrapped,
)
from app.services.clock import Clock, boottime
from app.services.kms_calls import KmsCalls
from app.services.tenant_keys import Policy, TenantKeys
from app.store.keys import KeyStore, StoredKeys, insert_index_key, insert_root_key
from app.store.ledger import Transaction

log = logging.getLogger("confide.keyring")

VENDOR_LEASE: Final = 24 * 3600.0
ZERO_LEASE: Final = 2.0
"""How long a grant without a lease may last: the rest of the requests that waited for it."""
FLIGHTS: Final = 16
"""Loads and renewals at one time in a worker, over all tenants."""
LINGER: Final = 2.0
"""Seconds until keys that were replaced, not revoked, are wiped: requests that hold them finish."""


class Providers(Protocol):
    """Where key providers come from (``app/kms/registry.py``)."""

    @property
    def vendor(self) -> KeyProvider: ...

    def for_binding(self, provider: str, fields: Mapping[str, Any], external_id: str) -> KeyProvider: ...


class Denials(Protocol):
    """Told when a customer's KMS refuses, or is heard to grant again (``app/services/bindings.py``)."""

    async def denied(self, tenant: UUID, binding: UUID, code: str) -> None: ...


@dataclass(frozen=True, slots=True)
class PreparedKeys:
    """A tenant's first root key and index key, wrapped and sealed, to be stored in the transaction that creates it."""

    tenant: UUID
    root: bytes
    vendor: Wrapped
    index: bytes


class _Flight:
    """One load for all who wait. ``sent_at``: when its first KMS call left; a lease of 0 covers nobody who comes later."""

    def __init__(self) -> None:
        self.task: asyncio.Task[TenantKeys] | None = None
        self.sent_at: float | None = None


class Keyring:
    """Tenants' keys of one worker."""

    def __init__(
        self,
        region: str,
        store: KeyStore,
        calls: KmsCalls,
        providers: Providers,
        *,
        clock: Clock = boottime,
        max_tenants: int = 10_000,
    ) -> None:
        self._region = region
        self._store = store
        self._calls = calls
        self._providers = providers
        self._clock = clock
        self._max_tenants = max_tenants
        self._tenants: OrderedDict[UUID, TenantKeys] = OrderedDict()
        self._vendor: dict[tuple[UUID, int], tuple[SecretKey, float]] = {}
        self._flights: dict[UUID, _Flight] = {}
        self._renew_at: dict[UUID, float] = {}
        self._no_lease: set[UUID] = set()
        self._slots = asyncio.Semaphore(FLIGHTS)
        self._background: set[asyncio.Task[Any]] = set()
        self.denials: Denials | None = None
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
            self._drop(tenant)
            return None
        self.hits += 1
        self._tenants.move_to_end(tenant)
        if now >= self._renew_at[tenant] and tenant not in self._flights:
            self._renew_at[tenant] = now + max(1.0, (keys.until - now) / 4)  # the next try, should this one fail
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
                flight = self._launch(tenant, "load")
            elif flight.sent_at is not None and tenant in self._no_lease:
                await asyncio.wait([_task(flight)])  # that call was sent before we asked: it doesn't cover us
                continue
            return await asyncio.shield(_task(flight))

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
        for entry in [entry for entry in self._vendor if entry[0] == tenant]:
            self._vendor.pop(entry)[0].wipe()

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
        for half, _ in self._vendor.values():
            half.wipe()
        self._vendor.clear()

    # ------------------------------------------------------------ loading

    def _launch(self, tenant: UUID, why: str) -> _Flight:
        flight = _Flight()
        self._flights[tenant] = flight
        task = asyncio.create_task(self._fly(tenant, flight, why), name="keyring")
        flight.task = task
        self._background.add(task)
        task.add_done_callback(self._landed)
        return flight

    def _landed(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # those who wait see it; a renewal in the background has nobody who does

    async def _fly(self, tenant: UUID, flight: _Flight, why: str) -> TenantKeys:
        try:
            if why == "refresh":
                await asyncio.sleep(random.uniform(0.0, 0.2))  # noqa: S311  jitter, so that tenants don't march in step
            async with self._slots:
                keys = await self._load(tenant, flight, why)
            return self._keep(tenant, keys)
        except (KeyAccessDenied, TenantSealed, TenantSuspended, NotFound, Tampered, KeyMisconfigured):
            self.discard(tenant, at_once=True)
            raise
        finally:
            self._flights.pop(tenant, None)

    async def _load(self, tenant: UUID, flight: _Flight, why: str) -> TenantKeys:
        stored = await self._store.load(tenant)
        if stored is None:
            raise NotFound
        _refuse_by_state(stored)
        roots: dict[int, SecretKey] = {}
        try:
            halves = await self._halves(tenant, stored, flight, why)
            for root in stored.roots:
                customer, vendor = halves[root["generation"]]
                roots[root["generation"]] = open_root_key(
                    root["sealed"],
                    customer,
                    vendor,
                    region=self._region,
                    tenant=tenant,
                    generation=root["generation"],
                )
                if customer is not None:
                    customer.wipe()
            return self._assemble(tenant, stored, roots, flight)
        except BaseException:
            for key in roots.values():
                key.wipe()
            raise

    async def _halves(
        self, tenant: UUID, stored: StoredKeys, flight: _Flight, why: str
    ) -> dict[int, tuple[SecretKey | None, SecretKey]]:
        """Both halves of every generation, the newest first: its binding is the one that matters most."""
        halves: dict[int, tuple[SecretKey | None, SecretKey]] = {}
        for root in reversed(stored.roots):
            vendor = await self._vendor_half(tenant, root, flight, why)
            customer = None
            if root["binding_id"] is not None:
                customer = await self._customer_half(tenant, stored, root, flight, why)
            halves[root["generation"]] = (customer, vendor)
        return halves

    async def _vendor_half(self, tenant: UUID, root: Any, flight: _Flight, why: str) -> SecretKey:
        held = self._vendor.get((tenant, root["generation"]))
        if held is not None and self._clock() < held[1]:
            return held[0]
        sent = self._sent(flight)
        try:
            answer = await self._calls.unwrap(
                self._providers.vendor,
                tenant,
                "vendor",
                root["generation"],
                root["vendor_half"],
                root["vendor_kek_version"],
                why=why,
            )
        except KmsIntegrity as error:
            raise Tampered from error
        except KmsError as error:
            # Our own key failing us is never shown as the tenant's doing.
            raise KeyUnavailable(retry_after=_retry_after(error)) from error
        self._vendor[(tenant, root["generation"])] = (answer.key, sent + VENDOR_LEASE)
        return answer.key

    async def _customer_half(self, tenant: UUID, stored: StoredKeys, root: Any, flight: _Flight, why: str) -> SecretKey:
        binding = stored.bindings[root["binding_id"]]
        provider = self._providers.for_binding(
            binding["provider"], orjson.loads(binding["fields"]), binding["external_id"]
        )
        self._sent(flight)
        try:
            answer = await self._calls.unwrap(
                provider,
                tenant,
                "customer",
                root["generation"],
                root["customer_half"],
                root["customer_kek_version"],
                why=why,
            )
        except KmsDenied as error:
            self.discard(tenant, at_once=True)
            if self.denials is not None:
                await self.denials.denied(tenant, binding["id"], error.code)
            raise KeyAccessDenied from error
        except KmsUnavailable as error:
            raise KeyUnavailable(retry_after=_retry_after(error)) from error
        except KmsIntegrity as error:
            raise Tampered from error
        except KmsMisconfigured as error:
            raise KeyMisconfigured from error
        except KmsError as error:
            raise KeyUnavailable(retry_after=_retry_after(error)) from error
        return answer.key

    def _sent(self, flight: _Flight) -> float:
        """The moment before a call leaves; a lease runs from the first."""
        now = self._clock()
        if flight.sent_at is None:
            flight.sent_at = now
        return now

    def _assemble(self, tenant: UUID, stored: StoredKeys, roots: dict[int, SecretKey], flight: _Flight) -> TenantKeys:
        row, index = stored.tenant, stored.index
        active = next(root for root in stored.roots if root["state"] == "active")
        policy = Policy(
            row["require_preconditions"],
            float(row["lease_seconds"]),
            float(row["grace_seconds"]),
            row["ttl_idle_seconds"],
            row["ttl_max_seconds"],
            row["rate_per_second"],
        )
        granted = flight.sent_at if flight.sent_at is not None else self._clock()
        bound = any(root["binding_id"] is not None for root in stored.roots)
        lease = (policy.lease or ZERO_LEASE) if bound else VENDOR_LEASE
        index_key = open_index_key(
            index["sealed"],
            roots[index["trk_generation"]],
            region=self._region,
            tenant=tenant,
            generation=index["trk_generation"],
            number=index["number"],
        )
        return TenantKeys(
            tenant=tenant,
            region=self._region,
            epoch=row["epoch"],
            policy=policy,
            clock=self._clock,
            roots=roots,
            active=active["generation"],
            index=index_key,
            index_number=index["number"],
            kek=_kek_fragment(active),
            granted_at=granted,
            until=granted + lease,
        )

    def _keep(self, tenant: UUID, keys: TenantKeys) -> TenantKeys:
        old = self._tenants.get(tenant)
        if keys.policy.lease == 0 and keys.until - keys.granted_at <= ZERO_LEASE:
            self._no_lease.add(tenant)
            asyncio.get_running_loop().call_later(ZERO_LEASE + 1, keys.wipe)
            return keys
        self._no_lease.discard(tenant)
        if old is not None and old.valid and old.epoch == keys.epoch:
            old.renew(keys)
            keys = old
        elif old is not None:
            self.discard(tenant, at_once=False)
        self._tenants[tenant] = keys
        self._tenants.move_to_end(tenant)
        lease = keys.until - keys.granted_at
        self._renew_at[tenant] = keys.granted_at + lease / 2
        while len(self._tenants) > self._max_tenants:
            self.discard(next(iter(self._tenants)), at_once=False)
        return keys

    def _drop(self, tenant: UUID) -> None:
        self.discard(tenant, at_once=True)

    # ------------------------------------------------------------ a new tenant

    async def prepare_tenant(self, tenant: UUID) -> PreparedKeys:
        """Make a tenant's first keys, under the vendor's key. Calls the KMS; raises ``KeyUnavailable``."""
        trk, index, half = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()
        try:
            wrapped = await self._calls.wrap(self._providers.vendor, tenant, "vendor", 1, half, why="create")
            return PreparedKeys(
                tenant,
                seal_root_key(trk, None, half, region=self._region, tenant=tenant, generation=1),
                wrapped,
                seal_index_key(index, trk, region=self._region, tenant=tenant, generation=1, number=1),
            )
        except KmsError as error:
            raise KeyUnavailable(retry_after=_retry_after(error)) from error
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


def _task(flight: _Flight) -> asyncio.Task[TenantKeys]:
    if flight.task is None:
        raise Unavailable
    return flight.task


def _refuse_by_state(stored: StoredKeys) -> None:
    if stored.tenant["state"] != "active":
        raise TenantSuspended
    if stored.tenant["key_state"] == "sealed":
        raise TenantSealed
    if stored.tenant["key_state"] == "revoked":
        raise KeyAccessDenied


def _kek_fragment(root: Any) -> str:
    """The KEK that rules: the customer's where there is one, else the vendor's."""
    customer = root["customer_kek"] is not None
    known = {
        "kek": root["customer_kek"] if customer else root["vendor_kek"],
        "kek_version": root["customer_kek_version"] if customer else root["vendor_kek_version"],
        "trk": root["generation"],
    }
    return "," + orjson.dumps({name: value for name, value in known.items() if value != ""}).decode()[1:-1]


def _retry_after(error: KmsError) -> int:
    return max(1, min(60, round(error.retry_after or 1)))
