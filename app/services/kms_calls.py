"""Every call to a KMS: a durable intent before it, an outcome after it (G3). No transaction is open meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import orjson

from app.crypto.secret import SecretKey
from app.errors import Unavailable
from app.identity import new_id
from app.kms.provider import KeyProvider, KmsCall, KmsError, KmsUnavailable, Unwrapped, WrapContext, Wrapped
from app.services.auditing import Auditing
from app.store import flights
from app.store.pool import Pool
from app.store.statements import Record

Result = TypeVar("Result")

PROVOKED: Final = ("unwrap-foreign", "integrity")
"""What the doctor does so that it is refused, and how: that is a finding, and no alarm."""


class Observer(Protocol):
    """Metrics of KMS calls."""

    def __call__(self, provider: str, operation: str, outcome: str, seconds: float) -> None: ...


class KmsCalls:
    """Wraps and unwraps halves, with their audit events in the log of the tenant whose key it is."""

    def __init__(
        self, region: str, auditing: Auditing, turns: Pool, observe: Observer | None = None, *, longest: float = 3.0
    ) -> None:
        """``turns``: connections of its own for taking turns with other workers. ``longest``: seconds of a call with
        all its retries.
        """
        self._region = region
        self._auditing = auditing
        self._observe = observe
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._turns = turns
        self._longest = longest
        self._worker = new_id()
        self.in_flight = 0
        self.peak = 0
        """The most calls that were under way at one time in this worker."""

    def context(self, tenant: UUID, side: str, generation: int) -> WrapContext:
        """What a half is bound to; customers see it in their own cloud log. ``side``: customer or vendor."""
        return WrapContext(
            {
                "confide:region": self._region,
                "confide:tenant": str(tenant),
                "confide:half": side,
                "confide:generation": str(generation),
            }
        )

    async def wrap(
        self, provider: KeyProvider, tenant: UUID, side: str, generation: int, half: SecretKey, *, why: str
    ) -> Wrapped:
        """Raises a ``KmsError``, or ``Unavailable`` where the intent can't be committed (then nothing was called)."""
        context = self.context(tenant, side, generation)
        return await self.call(
            provider, tenant, "wrap", lambda intent: provider.wrap(half, context, intent), context=context, why=why
        )

    async def unwrap(
        self,
        provider: KeyProvider,
        tenant: UUID,
        side: str,
        generation: int,
        ciphertext: bytes,
        version: str,
        *,
        why: str,
    ) -> Unwrapped:
        """Raises a ``KmsError``, or ``Unavailable`` where an event can't be committed (then the key isn't released)."""
        context = self.context(tenant, side, generation)
        return await self.call(
            provider,
            tenant,
            "unwrap",
            lambda intent: provider.unwrap(ciphertext, version, context, intent),
            context=context,
            why=why,
        )

    async def call(
        self,
        provider: KeyProvider,
        tenant: UUID,
        operation: str,
        run: Callable[[UUID], Awaitable[Result]],
        *,
        context: WrapContext | None = None,
        why: str,
    ) -> Result:
        """Run one call between its two events; a tenant's calls go one after another in all workers of the cell.

        ``why``: the worker's reason, e.g. load, refresh, probe, check. Raises as ``unwrap`` does.
        """
        async with self._locks.setdefault(tenant, asyncio.Lock()), self._turn(tenant):
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            try:
                return await self._call(provider, tenant, operation, run, context, why)
            finally:
                self.in_flight -= 1

    @asynccontextmanager
    async def _turn(self, tenant: UUID) -> AsyncIterator[None]:
        """This worker's turn among all workers. Nobody waits longer than a call may last: that is an outage then.

        A claim outlives its worker by a second at most beyond the longest call. Raises ``KmsUnavailable``,
        ``Unavailable``.
        """
        give_up = time.monotonic() + self._longest
        pause = 0.005
        while not await flights.claim(self._turns, tenant, self._worker, self._longest + 1.0):
            if time.monotonic() >= give_up:
                raise KmsUnavailable("AnotherWorkerCalls", "another worker's call for this tenant takes too long")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(pause * 2, 0.05)
        try:
            yield
        finally:
            with suppress(Unavailable):  # the claim then ends by itself
                await flights.release(self._turns, tenant, self._worker)

    async def _call(
        self,
        provider: KeyProvider,
        tenant: UUID,
        operation: str,
        run: Callable[[UUID], Awaitable[Result]],
        context: WrapContext | None,
        why: str,
    ) -> Result:
        intent = new_id()
        known: dict[str, Any] = {"kek": provider.kek_uri, "detail": {"operation": operation, "why": why}}
        if context is not None:
            known["encryption_context"] = dict(context.fields)
        await self._auditing.append(Record(tenant, "key.intent", "allowed", orjson.dumps(known).decode(), event=intent))
        known["intent"] = str(intent)
        try:
            result = await run(intent)
        except KmsError as error:
            await self._failed(provider, tenant, operation, known, error)
            raise
        # Wrapped, Unwrapped and KeyDescription have one; what the doctor tries may answer with a mere verdict.
        call: KmsCall | None = getattr(result, "call", None)
        facts = known | (_facts_of(call) if call is not None else {})
        try:
            await self._auditing.append(Record(tenant, "key.outcome", "allowed", orjson.dumps(facts).decode()))
        except Unavailable:
            if isinstance(result, Unwrapped):
                result.key.wipe()
            raise
        self._count(provider, operation, "allowed", call)
        return result

    async def _failed(
        self, provider: KeyProvider, tenant: UUID, operation: str, known: dict[str, Any], error: KmsError
    ) -> None:
        facts = known | {"kms_error": error.kind}
        facts["detail"] = known["detail"] | {"code": error.code}
        if error.call is not None:
            facts |= _facts_of(error.call)
        outcome = "denied" if error.kind == "denied" else "failed"
        reason = f"kms-{error.kind}"
        await self._auditing.append(Record(tenant, "key.outcome", outcome, orjson.dumps(facts).decode(), reason))
        self._count(provider, operation, error.kind, error.call)
        if error.alarm and (operation, error.kind) != PROVOKED:
            self._auditing.alarm(error.kind, provider=provider.name, code=error.code, tenant=str(tenant))

    def _count(self, provider: KeyProvider, operation: str, outcome: str, call: KmsCall | None) -> None:
        if self._observe is not None:
            self._observe(provider.name, operation, outcome, call.latency_ms / 1000 if call is not None else 0.0)


def _facts_of(call: KmsCall) -> dict[str, Any]:
    facts: dict[str, Any] = {"kek": call.kek_uri, "kms_ms": round(call.latency_ms)}
    if call.kek_version:
        facts["kek_version"] = call.kek_version
    if call.request_id:
        facts["kms_request_id"] = call.request_id
    return facts
