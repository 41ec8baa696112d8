"""Asking a customer's KMS again: whether access is back, and whether the key has a new version.

One prober for each binding across all workers: moving its time on, in the database, is the claim.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final
from uuid import UUID

import orjson

from app.crypto.keys import wipe
from app.errors import ConfideError
from app.identity import NO_UUID
from app.kms.provider import KmsDenied, KmsError, Wrapped
from app.services import key_transfers
from app.services.auditing import Auditing
from app.services.key_states import KeyStates, probe_pause
from app.services.kms_calls import KmsCalls
from app.services.providers import Providers
from app.store import bindings as rows
from app.store import flights
from app.store.keys import replace_customer_half, replace_vendor_half, roots_of
from app.store.ledger import Ledger
from app.store.pool import Pool

log = logging.getLogger("confide.probes")

AT_ONCE: Final = 4
BATCH: Final = 64
DESCRIBE_SECONDS: Final = 240
"""How old our knowledge of a key's version may be: with the watch's own pace, a new one is used within five minutes."""


class Prober:
    """One worker's share of the probing."""

    def __init__(
        self,
        ledger: Ledger,
        pool: Pool,
        calls: KmsCalls,
        providers: Providers,
        states: KeyStates,
        auditing: Auditing,
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._calls = calls
        self._providers = providers
        self._states = states
        self._auditing = auditing
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run_due(self) -> None:
        """Probe what is due, a few at a time. Raises ``Unavailable`` where the database is away."""
        due = await self._pool.fetch(rows.DUE_PROBES, BATCH)
        old = await self._pool.fetch(rows.DUE_DESCRIPTIONS, DESCRIBE_SECONDS, BATCH)
        await asyncio.gather(
            *(self._guarded(self._probe, row["tenant_id"], row["id"]) for row in due),
            *(self._guarded(self._look_for_version, row["tenant_id"], row["id"]) for row in old),
        )

    async def _guarded(self, work: Any, tenant: UUID, which: Any) -> None:
        async with self._slots:
            try:
                await work(tenant, which)
            except (ConfideError, KmsError) as error:
                log.info("a probe failed", extra={"fields": {"tenant": str(tenant), "error": type(error).__name__}})

    # ------------------------------------------------------------ is access back?

    async def _probe(self, tenant: UUID, binding: UUID) -> None:
        async with self._ledger.transaction(tenant) as tx:
            row = await rows.claim_probe(tx, tenant, binding, probe_pause())
            if row is None:
                return
            roots = [root for root in await roots_of(tx, tenant) if root["binding_id"] == binding]
        if not roots:
            return
        root = roots[-1]
        try:
            answer = await self._calls.unwrap(
                self._providers.for_binding(row["provider"], orjson.loads(row["fields"])),
                tenant,
                "customer",
                root["generation"],
                root["customer_half"],
                root["customer_kek_version"],
                why="probe",
            )
        except KmsDenied as error:
            if row["state"] == "unavailable":
                await self._states.denied(tenant, row, error.code)
            return
        answer.key.wipe()
        await self._states.served(tenant, row)

    # ------------------------------------------------------------ has the key a new version, is it where it was?

    async def _look_for_version(self, tenant: UUID, binding: UUID) -> None:
        """Wrap the binding's halves again where the KMS's current version isn't the one that we know.

        The answer also tells the key's region: a key that turns out to be abroad stands on a consent from now on.
        """
        async with self._ledger.transaction(tenant) as tx:
            row = await rows.claim_description(tx, tenant, binding, DESCRIBE_SECONDS)
            roots = [root for root in await roots_of(tx, tenant) if root["binding_id"] == binding]
        if row is None:
            return
        provider = self._providers.for_binding(row["provider"], orjson.loads(row["fields"]))
        facts = await self._calls.call(provider, tenant, "describe", provider.describe, why="rotation")
        if facts.region is not None:
            transfer_to = key_transfers.abroad(facts.region, self._providers.registry.settings.region)
            async with self._ledger.transaction(tenant) as tx:
                await rows.note_transfer(tx, tenant, binding, transfer_to)
                now = await rows.get(tx, tenant, binding)
            key_transfers.refuse(now)  # no further call goes abroad; the watch over transfers stops the binding
        version = facts.current_version
        if version is None or version == row["kek_version"]:
            return
        for root in roots:
            await self._wrap_again(tenant, provider, root)
        async with self._ledger.transaction(tenant) as tx:
            await rows.set_kek_version(tx, tenant, binding, version)
            detail = {"binding": str(binding), "from": row["kek_version"] or "", "to": version, "roots": len(roots)}
            tx.event(tenant, "key.rotate", orjson.dumps({"kek": provider.kek_uri, "detail": detail}).decode())

    # ------------------------------------------------------------ has the vendor's?

    async def vendor_due(self) -> None:
        """Wrap the vendor's halves again that aren't under the current version of the vendor's key.

        One worker asks for the version; whoever it is goes through all tenants, a few at a time. One that dies leaves
        the rest to whoever asks next. Raises ``Unavailable``.
        """
        if not await flights.claim_vendor_look(self._pool, DESCRIBE_SECONDS):
            return
        try:
            provider = self._providers.vendor
            facts = await self._calls.call(provider, NO_UUID, "describe", provider.describe, why="rotation")
        except KmsError as error:
            log.info("the vendor's key isn't known", extra={"fields": {"error": type(error).__name__}})
            return
        version, after = facts.current_version, NO_UUID
        while version is not None:
            due = await flights.due_vendor_wraps(self._pool, provider.kek_uri, version, after, BATCH)
            if not due:
                return
            await asyncio.gather(*(self._guarded(self._vendor_again, tenant, generation) for tenant, generation in due))
            after = due[-1][0]

    async def _vendor_again(self, tenant: UUID, generation: int) -> None:
        async with self._ledger.transaction(tenant) as tx:
            root = next((each for each in await roots_of(tx, tenant) if each["generation"] == generation), None)
        if root is not None:
            await self._wrap_again(tenant, self._providers.vendor, root, "vendor")

    async def _wrap_again(self, tenant: UUID, provider: Any, root: Any, side: str = "customer") -> None:
        """The same half under the KEK's current version; stored once the KMS has shown that it opens it."""
        generation, old = root["generation"], root[f"{side}_half"]
        held = await self._calls.unwrap(
            provider, tenant, side, generation, old, root[f"{side}_kek_version"], why="rotation"
        )
        proof = None
        try:
            fresh: Wrapped = await self._calls.wrap(provider, tenant, side, generation, held.key, why="rotation")
            proof = await self._calls.unwrap(
                provider, tenant, side, generation, fresh.ciphertext, fresh.kek_version, why="rotation"
            )
            if proof.key != held.key:
                self._auditing.alarm("rewrap", tenant=str(tenant), kek=provider.kek_uri)
                return
            new = (fresh.ciphertext, fresh.kek_uri, fresh.kek_version)
            async with self._ledger.transaction(tenant) as tx:
                if side == "customer":
                    await replace_customer_half(tx, tenant, generation, old, new)
                elif await replace_vendor_half(tx, tenant, generation, old, new):
                    detail = {"half": side, "from": root["vendor_kek_version"], "to": fresh.kek_version}
                    facts = {"kek": fresh.kek_uri, "trk": generation, "detail": detail}
                    tx.event(tenant, "key.rotate", orjson.dumps(facts).decode())
        finally:
            wipe(held.key, proof.key if proof is not None else None)
