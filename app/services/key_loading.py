"""Loading a tenant's keys: both halves of each root key are unwrapped, each by its own KMS, and what hangs on them is
opened.

Vendor halves are kept here under a lease of their own. What a customer's KMS answers is judged here too: the errors
that leave are those that a request is told.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from app.crypto.keys import open_index_key, open_root_key
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
    KmsUnclassified,
)
from app.services.clock import Clock
from app.services.key_states import KeyStates
from app.services.kms_calls import KmsCalls
from app.services.tenant_keys import Former, Policy, TenantKeys
from app.store.keys import KeyStore, StoredKeys

VENDOR_LEASE: Final = 24 * 3600.0
LINGER: Final = 2.0
"""Seconds until a half that was fetched anew is wiped: loads that hold the old one finish."""
ZERO_LEASE: Final = 0.9
"""How long a grant without a lease may last: the rest of the requests that waited for it."""


class Providers(Protocol):
    """Where key providers come from (``app/services/providers.py``)."""

    @property
    def vendor(self) -> KeyProvider: ...

    def for_binding(self, provider: str, fields: dict[str, Any]) -> KeyProvider: ...


class KmsOutage(KeyUnavailable):
    """A KMS gave no key, and it isn't a revocation. ``grace``: a plain outage, so that the tenant's grace may serve."""

    def __init__(self, retry_after: int, *, grace: bool) -> None:
        super().__init__(retry_after=retry_after)
        self.grace = grace


class IndexKeyExchanged(KeyUnavailable):
    """The tenant's index key changes at this moment: a few commits, and then everything goes on."""

    def __init__(self) -> None:
        super().__init__("The tenant's index key is being exchanged. Try again in a moment.", retry_after=2)


@dataclass(slots=True)
class Sending:
    """What a load tells while it runs. ``sent_at``: when its first KMS call left. ``lease``: the tenant's, seconds."""

    sent_at: float | None = None
    lease: float | None = None


class KeyLoader:
    """Makes ``TenantKeys`` from what is stored and what the KMSs unwrap."""

    def __init__(
        self, region: str, store: KeyStore, calls: KmsCalls, providers: Providers, states: KeyStates, clock: Clock
    ) -> None:
        self.region = region
        self.calls = calls
        self.providers = providers
        self._store = store
        self._states = states
        self._clock = clock
        self._vendor: dict[tuple[UUID, int], tuple[SecretKey, float]] = {}

    async def load(
        self, tenant: UUID, sending: Sending, why: str, *, maintenance: bool = False
    ) -> tuple[TenantKeys, StoredKeys]:
        """Fresh keys, and the rows that they came from. ``maintenance``: also while the index key is being exchanged.

        Raises ``NotFound``, ``TenantSuspended``, ``TenantSealed``, ``KeyAccessDenied``, ``KmsOutage``,
        ``IndexKeyExchanged``, ``KeyMisconfigured``, ``Tampered``, ``Unavailable``.
        """
        stored = await self._store.load(tenant)
        if stored is None:
            raise NotFound
        _refuse_by_state(stored, maintenance=maintenance)
        sending.lease = float(stored.tenant["lease_seconds"]) if stored.bindings else None
        roots: dict[int, SecretKey] = {}
        until = float("inf")
        try:
            for root in reversed(stored.roots):  # the newest first: its binding is the one that matters most
                generation = root["generation"]
                vendor, vendor_until = await self._vendor_half(tenant, root, sending, why)
                until = min(until, vendor_until)
                customer = await self._customer_half(tenant, stored, root, sending, why)
                try:
                    roots[generation] = open_root_key(
                        root["sealed"], customer, vendor, region=self.region, tenant=tenant, generation=generation
                    )
                finally:
                    if customer is not None:
                        customer.wipe()
            return self._assemble(tenant, stored, roots, sending, until), stored
        except BaseException:
            for key in roots.values():
                key.wipe()
            raise

    def forget_vendor(self, tenant: UUID) -> None:
        """Wipe the vendor halves of a tenant."""
        for entry in [entry for entry in self._vendor if entry[0] == tenant]:
            self._vendor.pop(entry)[0].wipe()

    def sweep(self) -> None:
        """Wipe vendor halves whose lease has ended."""
        now = self._clock()
        for entry in [entry for entry, (_, until) in self._vendor.items() if now >= until]:
            self._vendor.pop(entry)[0].wipe()

    def close(self) -> None:
        for half, _ in self._vendor.values():
            half.wipe()
        self._vendor.clear()

    # ------------------------------------------------------------ the halves

    async def _vendor_half(self, tenant: UUID, root: Any, sending: Sending, why: str) -> tuple[SecretKey, float]:
        held = self._vendor.get((tenant, root["generation"]))
        early = VENDOR_LEASE / 2 if why == "refresh" else 0.0  # in the background, so that no request waits for it
        if held is not None and self._clock() < held[1] - early:
            return held
        sent = self._sent(sending)
        try:
            answer = await self.calls.unwrap(
                self.providers.vendor,
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
            raise KmsOutage(retry_after(error), grace=False) from error
        self._vendor[(tenant, root["generation"])] = (answer.key, sent + VENDOR_LEASE)
        if held is not None:
            asyncio.get_running_loop().call_later(LINGER, held[0].wipe)
        return answer.key, sent + VENDOR_LEASE

    async def _customer_half(
        self, tenant: UUID, stored: StoredKeys, root: Any, sending: Sending, why: str
    ) -> SecretKey | None:
        if root["binding_id"] is None:
            return None
        binding = stored.bindings.get(root["binding_id"])
        if binding is None:  # the tenant has left in this moment, and its keys with it
            raise NotFound
        if not binding["consented"]:  # the call itself would be the transfer; the watch shows the binding as stopped
            raise KeyAccessDenied
        self._sent(sending)
        try:
            provider = self.providers.for_binding(binding["provider"], orjson.loads(binding["fields"]))
            answer = await self.calls.unwrap(
                provider,
                tenant,
                "customer",
                root["generation"],
                root["customer_half"],
                root["customer_kek_version"],
                why=why,
            )
        except KmsError as error:
            raise await self._judged(tenant, binding, error) from error
        try:
            await self._states.served(tenant, binding)
        except BaseException:
            answer.key.wipe()
            raise
        return answer.key

    async def _judged(self, tenant: UUID, binding: Any, error: KmsError) -> Exception:
        """What a customer's KMS's refusal means for those who asked."""
        if isinstance(error, KmsDenied):
            try:
                believed = await self._states.denied(tenant, binding, error.code)
            except Unavailable:
                believed = True  # it can't be written now; this worker stops all the same
            return KeyAccessDenied() if believed else KmsOutage(retry_after(error), grace=False)
        if isinstance(error, KmsIntegrity):
            return Tampered()
        if isinstance(error, KmsMisconfigured):
            return KeyMisconfigured()
        await self._states.unavailable(tenant, binding, error.code)
        plain = isinstance(error, KmsUnavailable) and not isinstance(error, KmsUnclassified)
        return KmsOutage(retry_after(error), grace=plain)

    def _sent(self, sending: Sending) -> float:
        """The moment before a call leaves; a lease runs from the first."""
        now = self._clock()
        if sending.sent_at is None:
            sending.sent_at = now
        return now

    # ------------------------------------------------------------ what hangs on them

    def _assemble(
        self, tenant: UUID, stored: StoredKeys, roots: dict[int, SecretKey], sending: Sending, until: float
    ) -> TenantKeys:
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
        granted = sending.sent_at if sending.sent_at is not None else self._clock()
        if stored.bindings:
            until = min(until, granted + (policy.lease or ZERO_LEASE))
        index_key = self._index_key(tenant, roots, index)
        older = [(each["number"], self._index_key(tenant, roots, each)) for each in stored.former]
        return TenantKeys(
            tenant=tenant,
            region=self.region,
            epoch=row["epoch"],
            policy=policy,
            clock=self._clock,
            roots=roots,
            active=active["generation"],
            index=index_key,
            index_number=index["number"],
            kek=kek_fragment(active),
            granted_at=granted,
            until=until,
            former=Former(older, index["bound"]) if older else None,
        )

    def _index_key(self, tenant: UUID, roots: dict[int, SecretKey], row: Any) -> SecretKey:
        generation = row["trk_generation"]
        return open_index_key(
            row["sealed"],
            roots[generation],
            region=self.region,
            tenant=tenant,
            generation=generation,
            number=row["number"],
        )


def _refuse_by_state(stored: StoredKeys, *, maintenance: bool) -> None:
    if stored.tenant["state"] != "active":
        raise TenantSuspended
    if stored.tenant["key_state"] == "sealed":
        raise TenantSealed
    if stored.tenant["key_state"] == "revoked":
        raise KeyAccessDenied
    if stored.tenant["key_state"] == "rekeying" and not maintenance:
        raise IndexKeyExchanged


def kek_fragment(root: Any) -> str:
    """The KEK that rules, as a JSON fragment of an event: the customer's where there is one, else the vendor's."""
    customer = root["customer_kek"] is not None
    known = {
        "kek": root["customer_kek"] if customer else root["vendor_kek"],
        "kek_version": root["customer_kek_version"] if customer else root["vendor_kek_version"],
        "trk": root["generation"],
    }
    return "," + orjson.dumps({name: value for name, value in known.items() if value != ""}).decode()[1:-1]


def retry_after(error: KmsError) -> int:
    """Whole seconds for a client to wait."""
    return max(1, min(60, round(error.retry_after or 1)))
