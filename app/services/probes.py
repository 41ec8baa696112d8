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
from app.kms.provider import KmsDenied, KmsError, Wrapped
from app.services.auditing import Auditing
from app.services.key_loading import Providers
from app.services.key_states import KeyStates, probe_pause
from app.services.kms_calls import KmsCalls
from app.store import bindings as rows
from app.store.keys import replace_customer_half, roots_of
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

    async def _guarded(self, work: Any, tenant: UUID, binding: UUID) -> None:
        async with self._slots:
            try:
                await work(tenant, binding)
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

    # ------------------------------------------------------------ has the key a new version?

    async def _look_for_version(self, tenant: UUID, binding: UUID) -> None:
        """Wrap the binding's halves again where the KMS's current version isn't the one that we know."""
        async with self._ledger.transaction(tenant) as tx:
            row = await rows.claim_description(tx, tenant, binding, DESCRIBE_SECONDS)
            roots = [root for root in await roots_of(tx, tenant) if root["binding_id"] == binding]
        if row is None:
            return
        provider = self._providers.for_binding(row["provider"], orjson.loads(row["fields"]))
        facts = await self._calls.call(provider, tenant, "describe", provider.describe, why="rotation")
        version = facts.current_version
        if version is None or version == row["kek_version"]:
            return
        for root in roots:
            await self._wrap_again(tenant, provider, root)
        async with self._ledger.transaction(tenant) as tx:
            await rows.set_kek_version(tx, tenant, binding, version)
            detail = {"binding": str(binding), "from": row["kek_version"] or "", "to": version, "roots": len(roots)}
            tx.event(tenant, "key.rotate", orjson.dumps({"kek": provider.kek_uri, "detail": detail}).decode())

    async def _wrap_again(self, tenant: UUID, provider: Any, root: Any) -> None:
        """The same half under the KEK's current version; stored once the KMS has shown that it opens it."""
        generation = root["generation"]
        held = await self._calls.unwrap(
            provider,
            tenant,
            "customer",
            generation,
            root["customer_half"],
            root["customer_kek_version"],
            why="rotation",
        )
        proof = None
        try:
            fresh: Wrapped = await self._calls.wrap(provider, tenant, "customer", generation, held.key, why="rotation")
            proof = await self._calls.unwrap(
                provider, tenant, "customer", generation, fresh.ciphertext, fresh.kek_version, why="rotation"
            )
            if proof.key != held.key:
                self._auditing.alarm("rewrap", tenant=str(tenant), kek=provider.kek_uri)
                return
            async with self._ledger.transaction(tenant) as tx:
                await replace_customer_half(
                    tx,
                    tenant,
                    generation,
                    root["customer_half"],
                    (fresh.ciphertext, fresh.kek_uri, fresh.kek_version),
                )
        finally:
            wipe(held.key, proof.key if proof is not None else None)
