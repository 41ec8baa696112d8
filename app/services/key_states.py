"""What a customer's KMS answered, written where every worker sees it: revoked, unavailable, or serving again.

A denial is believed only after a moment in which others may come: denials of many unrelated customers at once are our
own credentials' fault, and nobody is shown as revoked for that.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import ConfideError
from app.identity import new_id
from app.services.auditing import Auditing
from app.store import bindings as rows
from app.store import flights
from app.store.keys import move_key_state
from app.store.ledger import Ledger, Transaction

HOLD: Final = 0.4
"""Seconds between a denial and its being believed. Part of the second that a lease may be passed by."""
WINDOW: Final = 30.0
MANY: Final = 5
"""Unrelated customers denied within a window that point to us. Their leases end all the same."""
PROBE_EVERY: Final = (12.0, 20.0)
"""Seconds between the probes of a binding, drawn anew each time."""

BLOCKED: Final = ["revoked", "unavailable", "rekeying"]


def probe_pause() -> float:
    return random.uniform(*PROBE_EVERY)  # noqa: S311  jitter, so that tenants don't march in step


def owner_of(tenant: UUID, provider: str, fields: Mapping[str, Any]) -> str:
    """Who holds a key: bindings of one AWS account or Entra tenant are related, and fall together."""
    if provider == "aws-kms":
        return "aws:" + str(fields.get("key_arn", "")).split(":key/", maxsplit=1)[0]
    if provider == "azure-key-vault":
        return f"azure:{fields.get('entra_tenant_id')}"
    return f"{provider}:{tenant}"


class KeyStates:
    """Moves bindings and tenants' key states, with an event for each transition."""

    def __init__(self, ledger: Ledger, auditing: Auditing) -> None:
        self._ledger = ledger
        self._auditing = auditing

    # ------------------------------------------------------------ what an answer means

    async def denied(self, tenant: UUID, binding: Any, code: str) -> bool:
        """Whether a denial is a revocation. If so the tenant is blocked, in every worker, when this returns.

        Raises ``Unavailable`` where that can't be written.
        """
        owner = owner_of(tenant, binding["provider"], orjson.loads(binding["fields"]))
        mark = hashlib.sha256(owner.encode()).digest()
        async with self._ledger.transaction(tenant) as tx:
            await flights.note_denial(tx, new_id(), mark, tenant, binding["id"], WINDOW)
        await asyncio.sleep(HOLD)
        if await self._many(tenant):
            self._auditing.alarm("many-denials", tenant=str(tenant), binding=str(binding["id"]), code=code)
            await self._take_back(tenant)
            return False
        async with self._ledger.transaction(tenant) as tx:
            before = await rows.move(tx, tenant, binding["id"], "revoked", ["active", "unavailable", "retiring"])
            if before is not None:
                await rows.probe_in(tx, tenant, binding["id"], probe_pause())
                _event(tx, tenant, binding["id"], before, "revoked", code)
            elif not await rows.is_revoked(tx, tenant, binding["id"]):
                return False  # retired while we asked: its owner may well have disabled it since
            await move_key_state(tx, tenant, "revoked", ["active", "unavailable", "rekeying"])
        return True

    async def _many(self, tenant: UUID) -> bool:
        """Whether so many unrelated customers are denied at once, in the whole cell, that it must be us."""
        async with self._ledger.transaction(tenant) as tx:
            return await flights.denied_owners(tx, WINDOW) >= MANY

    async def _take_back(self, tenant: UUID) -> None:
        """Who was believed before the many came is shown as serving again. Who is really denied is denied anew."""
        try:
            async with self._ledger.transaction(tenant) as tx:
                lately = await flights.denied_lately(tx, WINDOW)
        except ConfideError:
            return  # the next denial tries again
        for other, binding in lately:
            await self._back(other, binding, "own-credentials")

    async def unavailable(self, tenant: UUID, binding: Any, code: str) -> None:
        """An outage is shown, and changes nothing else: cached keys serve until their lease ends."""
        if binding["state"] not in {"active", "retiring"}:
            return
        try:
            async with self._ledger.transaction(tenant) as tx:
                before = await rows.move(tx, tenant, binding["id"], "unavailable", ["active", "retiring"])
                if before is not None:
                    await rows.probe_in(tx, tenant, binding["id"], probe_pause())
                    _event(tx, tenant, binding["id"], before, "unavailable", code)
                    await rows.settle(tx, tenant, ["active"])
        except ConfideError:
            pass  # the database is away too; the next failure shows it

    async def served(self, tenant: UUID, binding: Any) -> None:
        """The KMS unwrapped: a binding that was shown otherwise is served again."""
        if binding["state"] in {"revoked", "unavailable"}:
            await self._back(tenant, binding["id"], "granted")

    async def _back(self, tenant: UUID, binding: UUID, code: str) -> None:
        try:
            async with self._ledger.transaction(tenant) as tx:
                moved = await rows.come_back(tx, tenant, binding)
                if moved is not None:
                    _event(tx, tenant, binding, *moved, code)
                    await rows.settle(tx, tenant, BLOCKED)
        except ConfideError:
            pass  # the next probe or load tries again


def _event(tx: Transaction, tenant: UUID, binding: UUID, before: str, after: str, code: str) -> None:
    detail = {"binding": str(binding), "from": before, "to": after, "code": code}
    tx.event(tenant, "binding.state", orjson.dumps({"detail": detail}).decode())
