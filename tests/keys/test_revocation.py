"""G5: who is served when a key is withdrawn, when its service is out, and when it comes back."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.crypto.keys import seal_index_key, seal_root_key
from app.crypto.secret import SecretKey
from app.services import key_states
from app.services.key_states import KeyStates
from tests.cell import REGION, Cell, Tenant
from tests.keys.customers import PROVIDERS, World, bound, make_customer
from tests.keys.test_moves import events, last, read, write
from tests.keys.waiting import until
from tests.kms.fake_azure import OAEP

LEASE = 2


@pytest.fixture(autouse=True)
def _eager_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_states, "PROBE_EVERY", (0.8, 1.2))


class Reader:
    """Loads from one worker without a pause, and keeps when the last plaintext came."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.served_at = 0.0
        self.statuses: list[int] = []
        self.last: Any = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            asked = time.monotonic()
            self.last = await self.client.post("/v1/load", json={"external_id": "s", "context": [{}]})
            self.statuses.append(self.last.status_code)
            if self.last.status_code == 200:
                self.served_at = asked
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def readers(tenant: Tenant, *cells: Cell) -> list[Reader]:
    made = [Reader(cell.client(tenant.keys["runtime"])) for cell in cells]
    await until(lambda: asyncio.sleep(0, all(each.served_at for each in made)))
    return made


def problem(answer: httpx2.Response) -> str:
    return str(answer.json()["type"].rpartition(":")[2])


async def state_of(tenant: Tenant, binding: str) -> str:
    return str((await tenant.admin.get(f"/v1/keys/bindings/{binding}")).json()["state"])


async def wiped(tenant: Tenant, *cells: Cell) -> bool:
    """Whether no worker holds the tenant's keys any more."""
    return not any(tenant.id in cell.parts.services.keyring.held() for cell in cells)


def all_denied_first(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """A worker looks whether many were denied once so many have been, however long that takes on this machine."""
    real, denied, known = KeyStates._many, 0, asyncio.Event()

    async def look(self: KeyStates, tenant: UUID) -> bool:
        nonlocal denied
        denied += 1
        if denied == many:
            known.set()
        await known.wait()
        return await real(self, tenant)

    monkeypatch.setattr(KeyStates, "_many", look)
    monkeypatch.setattr(key_states, "HOLD", 0.0)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_g5_a_disabled_key_stops_every_worker_within_the_lease_and_comes_back(
    two_workers: tuple[Cell, Cell], world: World, provider: str
) -> None:
    tenant = await two_workers[0].tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, provider)
    binding = await bound(two_workers[0], tenant, customer, lease=LEASE)
    reading = await readers(tenant, *two_workers)
    await asyncio.sleep(0.5)
    customer.disable()
    disabled = time.monotonic()
    await until(lambda: asyncio.sleep(0, all(each.statuses[-1] == 403 for each in reading)))
    assert max(each.served_at for each in reading) - disabled <= LEASE + 1
    assert {problem(each.last) for each in reading} == {"key-access-denied"}
    assert await state_of(tenant, binding) == "revoked"
    await until(lambda: wiped(tenant, *two_workers))
    refused = await tenant.runtime.post("/v1/commit", json={"external_id": "s", "turns": [{"json": 1}]})
    assert (refused.status_code, problem(refused)) == (403, "key-access-denied")
    customer.enable()
    await until(lambda: asyncio.sleep(0, all(each.statuses[-1] == 200 for each in reading)))
    assert await state_of(tenant, binding) == "active"
    for each in reading:
        await each.stop()
    assert set(reading[0].statuses + reading[1].statuses) <= {200, 403, 503}
    moves = [(e["detail"]["from"], e["detail"]["to"]) for e in await events(tenant, "binding.state")]
    assert ("active", "revoked") in moves
    assert ("revoked", "active") in moves


async def test_g5_seal_stops_every_worker_within_a_second(two_workers: tuple[Cell, Cell], world: World) -> None:
    tenant = await two_workers[0].tenant()
    await write(tenant, "s", 1)
    await bound(two_workers[0], tenant, make_customer(world, "local"))
    reading = await readers(tenant, *two_workers)
    sealed = await tenant.admin.post("/v1/keys/seal")
    at = time.monotonic()
    assert sealed.json() == {"key_state": "sealed"}
    await asyncio.sleep(1.0)
    await until(lambda: asyncio.sleep(0, all(each.statuses[-1] == 403 for each in reading)))
    assert max(each.served_at for each in reading) <= at
    assert {problem(each.last) for each in reading} == {"tenant-sealed"}
    await until(lambda: wiped(tenant, *two_workers))
    assert (await tenant.admin.post("/v1/keys/unseal")).json() == {"key_state": "active"}
    await until(lambda: asyncio.sleep(0, all(each.statuses[-1] == 200 for each in reading)))
    for each in reading:
        await each.stop()
    assert {e["action"] for e in await events(tenant, "key.seal", "key.unseal")} == {"key.seal", "key.unseal"}


@pytest.mark.parametrize("provider", PROVIDERS[:3])
async def test_g5_an_outage_is_no_revocation(cell: Cell, world: World, provider: str) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, provider)
    binding = await bound(cell, tenant, customer, lease=LEASE)
    (reading,) = await readers(tenant, cell)
    customer.out()
    began = time.monotonic()
    await until(lambda: asyncio.sleep(0, reading.statuses[-1] != 200))
    assert reading.last.status_code == 503
    assert problem(reading.last) == "key-unavailable"
    assert int(reading.last.headers["retry-after"]) >= 1
    assert 0 < reading.served_at - began <= LEASE + 1  # what is refreshed at half the lease goes on to its end
    assert await state_of(tenant, binding) == "unavailable"
    await asyncio.sleep(1)
    assert 403 not in reading.statuses
    customer.back()
    await until(lambda: asyncio.sleep(0, reading.statuses[-1] == 200))

    async def active() -> bool:
        return await state_of(tenant, binding) == "active"

    await until(active)
    await reading.stop()


async def test_g5_grace_is_opted_into_and_marked_in_every_event(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, "aws-kms")
    await bound(cell, tenant, customer, lease=1)
    policy = await tenant.admin.patch("/v1/keys/policy", json={"grace_seconds": 3})
    assert policy.json()["grace_seconds"] == 3
    (reading,) = await readers(tenant, cell)
    customer.out()
    began = time.monotonic()
    await until(lambda: asyncio.sleep(0, reading.statuses[-1] == 503))
    await reading.stop()
    assert 1 < reading.served_at - began <= 5  # beyond the lease, and no longer than the grace
    loads = [e for e in await events(tenant, "context.load") if e["outcome"] == "allowed"]
    graced = [e for e in loads if e.get("grace")]
    assert graced
    assert all(e["lease_ms"] >= 1000 for e in graced)
    assert all(e["lease_ms"] <= 1001 for e in loads if not e.get("grace"))
    customer.back()


async def test_g5_an_unknown_answer_serves_one_lease_without_grace_and_alarms(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, "aws-kms")
    binding = await bound(cell, tenant, customer, lease=1)
    await tenant.admin.patch("/v1/keys/policy", json={"grace_seconds": 60})
    (reading,) = await readers(tenant, cell)
    customer.out("unknown")
    began = time.monotonic()
    await until(lambda: asyncio.sleep(0, reading.statuses[-1] == 503))
    await reading.stop()
    assert reading.served_at - began <= 2
    assert cell.parts.services.auditing.alarms["unclassified"] >= 1
    assert await state_of(tenant, binding) == "unavailable"
    customer.back()


async def test_g5_without_a_lease_a_call_serves_only_those_who_came_before_it(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, "local")
    await bound(cell, tenant, customer, lease=0)
    assert await last(tenant, "s") == 1
    assert tenant.id not in cell.parts.services.keyring.held()
    customer.disable()
    asked = [await read(tenant, "s") for _ in range(3)]
    assert {answer.status_code for answer in asked} == {403}
    customer.enable()
    await until(lambda: _served(tenant))
    answers = await asyncio.gather(*(read(tenant, "s") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}


async def _served(tenant: Tenant) -> bool:
    return bool((await read(tenant, "s")).status_code == 200)


async def test_g5_denials_of_many_customers_at_once_are_our_fault(
    cell: Cell, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_denied_first(monkeypatch, 6)
    tenants: list[tuple[Tenant, str]] = []
    for number in range(6):
        tenant = await cell.tenant(f"t{number}")
        await write(tenant, "s", 1)
        customer = make_customer(world, "local")
        tenants.append((tenant, await bound(cell, tenant, customer, lease=0)))
        customer.disable()
    answers = await asyncio.gather(*(read(tenant, "s") for tenant, _ in tenants))
    assert {answer.status_code for answer in answers} == {503}
    assert cell.parts.services.auditing.alarms["many-denials"] >= 1
    for tenant, binding in tenants:
        assert await state_of(tenant, binding) != "revoked"


async def test_g2_a_half_wrapped_by_somebody_else_is_refused(cell: Cell, world: World) -> None:
    """Anyone with the vault's public key can wrap a half that he knows; he can't make the root key open with it."""
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer: Any = make_customer(world, "azure-key-vault")
    binding = await bound(cell, tenant, customer)
    secret = customer.key.versions[-1].secret
    assert isinstance(secret, rsa.RSAPrivateKey)
    context = cell.parts.services.keys.calls.context(tenant.id, "customer", 2)
    forged = secret.public_key().encrypt(b"k" * 32 + context.digest(), OAEP)
    forge = "UPDATE confide_keys.root_key SET customer_half = $2 WHERE tenant_id = $1 AND binding_id IS NOT NULL"
    await _execute(cell, forge, tenant.id, forged)
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    for path, body in (("load", {}), ("commit", {"turns": [{"json": 1}]})):
        answer = await tenant.runtime.post(f"/v1/{path}", json={"external_id": "s", **body})
        assert (answer.status_code, problem(answer)) == (500, "tampered")
    # He replaces all that hangs on it too, root key and index key, by keys that he knows. He lacks the vendor's half.
    trk = SecretKey.generate()
    where: Any = {"region": REGION, "tenant": tenant.id, "generation": 2}
    root = seal_root_key(trk, SecretKey.of(bytearray(b"k" * 32)), SecretKey.generate(), **where)
    await _execute(cell, "UPDATE confide_keys.root_key SET sealed = $2 WHERE tenant_id = $1", tenant.id, root)
    index = seal_index_key(SecretKey.generate(), trk, number=1, **where)
    await _execute(cell, "UPDATE confide_keys.index_key SET sealed = $2 WHERE tenant_id = $1", tenant.id, index)
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    answer = await tenant.runtime.post("/v1/commit", json={"external_id": "new", "create": {}, "turns": [{"json": 1}]})
    assert (answer.status_code, problem(answer)) == (500, "tampered"), "sealed under a key that somebody else knows"
    assert await state_of(tenant, binding) == "active"


async def test_g5_integrity_is_an_alarm_and_never_a_revocation(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, "aws-kms")
    binding = await bound(cell, tenant, customer, lease=1)
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    customer.out("integrity", 1)
    answer = await read(tenant, "s")
    assert (answer.status_code, problem(answer)) == (500, "tampered")
    assert await state_of(tenant, binding) == "active"
    assert cell.parts.services.auditing.alarms["integrity"] == 1
    assert await last(tenant, "s") == 1


@pytest.mark.parametrize("provider", ["aws-kms", "azure-key-vault", "vault-transit"])
async def test_g5_a_new_key_version_is_picked_up(cell: Cell, world: World, provider: str) -> None:
    """Whether the customer makes it or his KMS by itself: the halves are wrapped by it, and opened by it from then on.

    The clock is the test's: a key that was looked at less than 240 s ago isn't looked at again.
    """
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    customer = make_customer(world, provider)
    binding = await bound(cell, tenant, customer)
    customer.new_version()
    await _looked_at(cell, tenant, "220 s")
    await cell.parts.services.keys.prober.run_due()
    before = await _wrapped(cell, tenant)
    await _looked_at(cell, tenant, "241 s")

    async def moved() -> Any:
        found = (await tenant.admin.get(f"/v1/keys/bindings/{binding}")).json()
        now = await _wrapped(cell, tenant)
        return found if now["customer_half"] != before["customer_half"] else None

    await until(moved)
    event = await until(lambda: _rotation(tenant))
    after = await _wrapped(cell, tenant)
    assert after["kek_version"] == event["to"] != before["kek_version"]
    if provider == "aws-kms":  # whose ciphertexts name no material: the binding does
        assert event["to"] == world.aws.gate.material[customer.body()["key_arn"]]
        assert world.aws.gate.made_with(after["customer_half"]) == event["to"]
    else:
        assert after["customer_kek_version"] == event["to"]
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    assert await last(tenant, "s") == 1
    calls = len(await events(tenant, "key.intent"))
    await _looked_at(cell, tenant, "241 s")
    await until(lambda: _more(tenant, calls))
    assert (await _wrapped(cell, tenant))["customer_half"] == after["customer_half"], "wrapped again for nothing"


async def _looked_at(cell: Cell, tenant: Tenant, ago: str) -> None:
    sql = f"UPDATE confide_keys.binding SET described_at = now() - interval '{ago}' WHERE tenant_id = $1"
    await _execute(cell, sql, tenant.id)


async def _wrapped(cell: Cell, tenant: Tenant) -> Any:
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        return await tx.connection.fetchrow(
            "SELECT r.customer_half, r.customer_kek_version, b.kek_version FROM confide_keys.root_key r"
            " JOIN confide_keys.binding b ON b.tenant_id = r.tenant_id AND b.id = r.binding_id"
            " WHERE r.tenant_id = $1 AND r.state = 'active'",
            tenant.id,
        )


async def _rotation(tenant: Tenant) -> Any:
    return next((e["detail"] for e in await events(tenant, "key.rotate") if "from" in e["detail"]), None)


async def _more(tenant: Tenant, calls: int) -> bool:
    return len(await events(tenant, "key.intent")) > calls


async def _execute(cell: Cell, sql: str, tenant: UUID, *more: Any) -> None:
    async with cell.parts.services.ledger.transaction(tenant) as tx:
        await tx.connection.execute(sql, tenant, *more)
