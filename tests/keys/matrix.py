"""The fault matrix: every kind of KMS error × what is being done × cold or warm keys × provider.

What must hold in each cell of it: nothing is served or changed that the key service didn't grant (never open), nobody
is shown as revoked but by a denial, one call at a time for a tenant, and service is back once the fault is gone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tests.cell import Cell, Tenant
from tests.keys.customers import PROVIDERS, Customer, World, activated, checked, make_customer
from tests.keys.test_moves import read, write

KINDS = (
    "denied", "unavailable", "throttled", "silence", "cut", "unknown", "own-credentials", "integrity", "misconfigured",
)  # fmt: skip
ACTIONS = ("create", "first read", "refresh", "write", "rotate")
HEATS = ("cold", "warm")
NOT_SHOWN = {
    # A key file has no service in front of it that could be out, slow, too busy, or refuse our credentials.
    "local": ("unavailable", "throttled", "silence", "cut", "unknown", "own-credentials"),
}
"""What a provider can't do; everything else is run."""
COLD = {"denied": 403, "integrity": 500, "misconfigured": 409}
"""What a request that needs the KMS is answered; 503 for all others."""

FORGET_DENIALS = "SELECT confide.note_denial($1, 'nobody', $1, $1, 0)"
"""With a window of no length, what was noted before is past it."""


@dataclass(frozen=True)
class Case:
    provider: str
    kind: str
    action: str
    heat: str


def cases(providers: tuple[str, ...], kinds: tuple[str, ...] = KINDS) -> list[Case]:
    return [
        Case(provider, kind, action, heat)
        for provider in providers
        for kind in kinds
        if kind not in NOT_SHOWN.get(provider, ())
        for action in ACTIONS
        for heat in HEATS
        if not (action == "first read" and heat == "warm") and not (action == "refresh" and heat == "cold")
    ]


def some_cases() -> list[Case]:
    """A part in which each provider meets each kind in two actions, and each kind each action, warm and cold."""
    found = []
    for column, provider in enumerate(PROVIDERS):
        for row, kind in enumerate(KINDS):
            for more in range(2):
                action = ACTIONS[(2 * column + row + more) % len(ACTIONS)]
                heats = [case for case in cases((provider,), (kind,)) if case.action == action]
                found += heats[(row + more) % len(heats) :][:1] if heats else []
    return found


class Matrix:
    """Runs cases on one cell, a tenant and a key for each provider."""

    def __init__(self, cell: Cell, world: World) -> None:
        self.cell = cell
        self.world = world
        self.made: dict[str, tuple[Tenant, Customer, str]] = {}

    async def run(self, case: Case) -> list[str]:
        """What didn't hold; empty if all is well."""
        tenant, customer, binding = await self._of(case.provider)
        customer.fault(case.kind)
        if case.heat == "warm":
            assert (await read(tenant, "s")).status_code == 200
        else:
            self._forget(tenant)
        before = await self._generation(tenant)
        self.cell.parts.services.keys.calls.peak = 0
        customer.out(case.kind)
        try:
            status = await self._act(case, tenant, customer)
        finally:
            customer.back()
        wrong = self._judge(case, status)
        if await self._generation(tenant) != before:
            wrong.append("the key hierarchy changed under a fault")
        if self.cell.parts.services.keys.calls.peak > 1:
            wrong.append("two KMS calls of one tenant were under way")
        state = (await tenant.admin.get(f"/v1/keys/bindings/{binding}")).json()["state"]
        if state == "revoked" and case.kind != "denied":
            wrong.append("shown as revoked without a denial")
        return wrong + await self._back(tenant)

    async def _of(self, provider: str) -> tuple[Tenant, Customer, str]:
        if provider not in self.made:
            tenant, customer = await self.cell.tenant(), make_customer(self.world, provider)
            await write(tenant, "s", 1)
            binding = await checked(tenant, customer)
            await activated(self.cell, tenant, binding)
            self.made[provider] = (tenant, customer, binding)
        return self.made[provider]

    def _forget(self, tenant: Tenant) -> None:
        keyring = self.cell.parts.services.keyring
        keyring.discard(tenant.id, at_once=True)
        keyring._failures.clear()

    async def _generation(self, tenant: Tenant) -> list[Any]:
        return [each["generation"] for each in (await tenant.admin.get("/v1/keys")).json()["generations"]]

    async def _act(self, case: Case, tenant: Tenant, customer: Customer) -> int:
        if case.action == "create":
            made = (await tenant.admin.post("/v1/keys/bindings", json=customer.body())).json()
            where = f"/v1/keys/bindings/{made['id']}"
            found = await tenant.admin.post(f"{where}/check")
            assert not (found.json().get("ok") and found.status_code == 200), "the doctor passed under a fault"
            status = (await tenant.admin.post(f"{where}/activate")).status_code
            await tenant.admin.post(f"{where}/retire")
            return status
        if case.action == "rotate":
            return (await tenant.admin.post("/v1/keys/rotate")).status_code
        if case.action == "write":
            body = {"external_id": "s", "put": [{"collection": "w", "key": "k", "json": case.kind}]}
            return (await tenant.runtime.post("/v1/commit", json=body)).status_code
        if case.action == "refresh":
            keyring = self.cell.parts.services.keyring
            keyring._renew_at[tenant.id] = 0.0
            await read(tenant, "s")
            flight = keyring._flights.get(tenant.id)
            if flight is not None:
                await asyncio.wait([flight.task])
        return (await read(tenant, "s")).status_code

    def _judge(self, case: Case, status: int) -> list[str]:
        if case.action in {"create", "rotate"}:
            return [] if status >= 400 else [f"{status} under a fault"]
        if case.action == "refresh":
            wanted = {403} if case.kind == "denied" else {500} if case.kind == "integrity" else {200}
        elif case.heat == "warm":
            wanted = {200}
        else:
            wanted = {COLD.get(case.kind, 503)}
        return [] if status in wanted else [f"{status} instead of {wanted}"]

    async def _back(self, tenant: Tenant) -> list[str]:
        """Served again, once the fault is gone. Denials stand for themselves here: nobody else was denied."""
        async with self.cell.parts.services.ledger.transaction(tenant.id) as tx:
            await tx.connection.execute(FORGET_DENIALS, tenant.id)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.cell.parts.services.keyring._failures.clear()
            if (await read(tenant, "s")).status_code == 200:
                return []
            await asyncio.sleep(0.02)
        return ["not served again"]
