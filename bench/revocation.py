"""How long plaintext is served after a key is withdrawn, and how service comes back. ``make bench-revocation``.

Two worker processes on one database, under load; the keys are in ministack (AWS KMS), OpenBao (Transit) and the Azure
fake. Times are counted from before the call that disables the key to the last response with plaintext that a client
had begun to receive: both ends count against us.

    python -m bench.revocation [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import aiohttp
import httpx2
import orjson
from rich.console import Console
from rich.table import Table

from app.crypto.keys import seal_index_key
from app.crypto.secret import SecretKey
from app.identity import NO_UUID, ROLE_PURPOSES, Role, new_id
from app.kms.onboarding import transit_policy
from app.main import assemble, serving
from app.services.api_keys import Wanted
from app.store import bindings, tenants
from app.store.keys import insert_index_key, insert_root_key
from bench.revocation_peers import WORKERS, Peers, peers
from bench.revocation_worker import kms_settings, worker_settings
from tests.keys.customers import AzureCustomer, Customer, make_customer
from tests.kms.rigs import REGION

CLIENTS = 2
"""Concurrent readers of one tenant at one worker."""
EVERY = 0.06
"""Seconds between two requests of a reader: a dozen and a half tenants are measured side by side."""
SESSION = {"external_id": "s", "context": [{}], "turns": {"last": 5}}


@dataclass
class Line:
    """What was measured of one kind: seconds by worker."""

    name: str
    limit: float
    lease: int | None = None
    values: list[list[float]] = field(default_factory=list)
    back: list[float] = field(default_factory=list)


@dataclass
class Tenant:
    id: UUID
    admin: httpx2.AsyncClient
    runtime: str


class Readers:
    """Load on one tenant at every worker; when each worker last answered with plaintext, and since when it refuses."""

    def __init__(self, web: aiohttp.ClientSession, urls: list[str], key: str) -> None:
        self.served = [0.0] * len(urls)
        self.first: list[float | None] = [None] * len(urls)
        self.refused: list[str | None] = [None] * len(urls)
        self.requests = 0
        headers = {"authorization": f"Bearer {key}"}
        self._tasks = [
            asyncio.create_task(self._read(web, place, url, headers))
            for place, url in enumerate(urls)
            for _ in range(CLIENTS)
        ]

    async def _read(self, web: aiohttp.ClientSession, place: int, url: str, headers: dict[str, str]) -> None:
        while True:
            async with web.post(f"{url}/v1/load", json=SESSION, headers=headers) as answer:
                body = await answer.read()
                self.requests += 1
                if answer.status == 200:
                    self.served[place] = time.monotonic()
                    self.first[place] = self.first[place] or self.served[place]
                    self.refused[place] = None
                else:
                    self.refused[place] = json.loads(body)["type"]
            await asyncio.sleep(EVERY)

    async def until(self, check: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not check():  # noqa: ASYNC110  what is waited for is seen by looking
                await asyncio.sleep(0.005)

    def all_served(self, since: float) -> Callable[[], bool]:
        return lambda: all(each > since for each in self.served)

    def all_refused(self) -> Callable[[], bool]:
        return lambda: all(each is not None for each in self.refused)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Bench:
    """One run."""

    def __init__(self, set_up: Peers, web: aiohttp.ClientSession, operator: str) -> None:
        self.peers = set_up
        self.web = web
        self.operator = operator

    def client(self, key: str) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.AsyncClient(base_url=self.peers.urls[0], headers=headers, trust_env=False, timeout=30)

    async def tenant(self, customer: Customer, lease: int) -> Tenant:
        async with self.client(self.operator) as operator:
            made = (await operator.post("/v1/tenants", json={"name": "bench"})).raise_for_status().json()
            redeem = {"token": made["enrolment"]["token"], "name": "admin"}
            first = (await operator.post("/v1/enrolments/redeem", json=redeem)).raise_for_status().json()
        admin = self.client(first["secret"])
        issued = await admin.post("/v1/api-keys", json={"name": "runtime", "role": "runtime"})
        tenant = Tenant(UUID(made["tenant"]["id"]), admin, issued.raise_for_status().json()["secret"])
        policy = {"lease_seconds": lease, "allowed_kms_regions": [REGION, "westeurope"]}
        (await admin.patch("/v1/keys/policy", json=policy)).raise_for_status()
        ends = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        consent = {"scope": "kms", "destination": "westeurope", "safeguard": "scc", "expires_at": ends}
        (await admin.post("/v1/privacy/consents", json=consent)).raise_for_status()
        binding = (await admin.post("/v1/keys/bindings", json=customer.body())).raise_for_status().json()
        customer.paste(binding.get("steps", []))
        where = f"/v1/keys/bindings/{binding['id']}"
        found = (await admin.post(f"{where}/check")).raise_for_status().json()
        if not found["ok"]:
            raise SystemExit(f"the binding is not right: {found}")
        job = (await admin.post(f"{where}/activate")).raise_for_status().json()["job"]
        while (await admin.get(f"/v1/jobs/{job}")).json()["state"] != "done":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async with self.client(tenant.runtime) as runtime:
            body = {"external_id": "s", "create": {}, "turns": [{"json": "hello"}],
                    "put": [{"collection": "c", "key": "k", "json": 1}]}  # fmt: skip
            (await runtime.post("/v1/commit", json=body)).raise_for_status()
        return tenant

    async def revoke(self, line: Line, customer: Customer, runs: int) -> None:
        """Disable the key under load, wait until all refuse, enable it, wait until all serve."""
        assert line.lease is not None
        tenant = await self.tenant(customer, line.lease)
        reading = Readers(self.web, self.peers.urls, tenant.runtime)
        for _ in range(runs):
            await reading.until(reading.all_served(time.monotonic()), 30)
            await asyncio.sleep(random.uniform(0.2, line.lease))
            began = time.monotonic()
            await asyncio.to_thread(customer.disable)
            await reading.until(reading.all_refused(), line.lease + 10)
            await asyncio.sleep(1.0)
            line.values.append([each - began for each in reading.served])
            enabled = time.monotonic()
            await asyncio.to_thread(customer.enable)
            await reading.until(reading.all_served(enabled), 60)
            line.back.append(time.monotonic() - enabled)
        await reading.stop()

    async def seal(self, line: Line, customer: Customer, runs: int) -> None:
        tenant = await self.tenant(customer, 60)
        reading = Readers(self.web, self.peers.urls, tenant.runtime)
        for _ in range(runs):
            await reading.until(reading.all_served(time.monotonic()), 30)
            began = time.monotonic()
            (await tenant.admin.post("/v1/keys/seal")).raise_for_status()
            await reading.until(reading.all_refused(), 5)
            await asyncio.sleep(0.6)
            line.values.append([each - began for each in reading.served])
            opened = time.monotonic()
            (await tenant.admin.post("/v1/keys/unseal")).raise_for_status()
            await reading.until(reading.all_served(opened), 10)
            line.back.append(time.monotonic() - opened)
        await reading.stop()

    # ------------------------------------------------------------ a thousand tenants

    async def herd(self, count: int, lease: int, console: Console) -> dict[str, Any]:
        """All tenants' key service goes out until every lease has ended, then comes back."""
        customer: Any = make_customer(self.peers.world, "vault-transit")
        step = {"language": "hcl", "text": transit_policy("transit", customer.key)}
        customer.paste([step])
        keys = await self._seed(customer, count, lease)
        console.print(f"{count} tenants made")
        served = await self._round(keys)
        console.print(f"{_count(served)} of {count} served before")
        proxy = self.peers.proxy
        proxy.out = True
        out_at = time.monotonic()
        while time.monotonic() - out_at < lease + 1:
            await self._round(keys)
        dark = _count(await self._round(keys))
        proxy.peak, proxy.seen, proxy.out = 0, 0, False
        back_at = time.monotonic()
        last = [0.0] * len(keys)
        waiting = set(range(len(keys)))
        while waiting and time.monotonic() - back_at < 120:
            order = sorted(waiting)
            for place, at in zip(order, await self._round([keys[place] for place in order]), strict=True):
                if at:
                    last[place] = at - back_at
                    waiting.discard(place)
        took = sorted(last)
        return {
            "tenants": count,
            "served during the outage, after the lease": dark,
            "not back after 120 s": len(waiting),
            "median": took[len(took) // 2],
            "last": took[-1],
            "peak calls at the key service": proxy.peak,
            "calls until all were back": proxy.seen,
        }

    async def _round(self, keys: list[str]) -> list[float]:
        """One load of each tenant at a worker, 64 at a time: when it was served; 0 if it wasn't."""
        slots = asyncio.Semaphore(64)

        async def one(place: int, key: str) -> float:
            headers = {"authorization": f"Bearer {key}"}
            async with slots:
                try:
                    url = f"{self.peers.urls[place % WORKERS]}/v1/load"
                    async with self.web.post(url, json=SESSION, headers=headers) as answer:
                        await answer.read()
                        return time.monotonic() if answer.status == 200 else 0.0
                except aiohttp.ClientError:
                    return 0.0  # an idle connection that the worker had just closed: asked again in the next round

        return list(await asyncio.gather(*(one(place, key) for place, key in enumerate(keys))))

    async def _seed(self, customer: Any, count: int, lease: int) -> list[str]:
        """Tenants under the customer's key, made through the service's own parts: as onboarding leaves them."""
        told = self.peers.told | {"port": 0}
        parts = assemble(worker_settings(told), kms_settings(told))
        async with serving(parts):
            keys = [await _seed_one(parts, customer, lease) for _ in range(count)]
        slots = asyncio.Semaphore(16)

        async def first(key: str) -> None:
            body = {"external_id": "s", "create": {}, "turns": [{"json": "hello"}]}
            async with slots, self.client(key) as runtime:
                (await runtime.post("/v1/commit", json=body)).raise_for_status()

        await asyncio.gather(*(first(key) for key in keys))
        return keys


async def _seed_one(parts: Any, customer: Any, lease: int) -> str:
    services = parts.services
    tenant, binding = new_id(), new_id()
    fields = {"endpoint": "bao", "mount": "transit", "key_name": customer.key}
    row = {"id": binding, "provider": "vault-transit", "fields": orjson.dumps(fields), "transfer_to": None}
    row["consented"] = True
    fresh = await services.keys.moves._fresh(tenant, row, 1)  # noqa: SLF001
    index = SecretKey.generate()
    async with services.ledger.transaction(tenant) as tx:
        await tenants.insert(tx, tenant, REGION, "bench", {})
        await tx.connection.execute("UPDATE confide.tenant SET lease_seconds = $2 WHERE id = $1", tenant, lease)
        await bindings.insert(tx, tenant, binding, "vault-transit", fields, "", None)
        await bindings.make_current(tx, tenant, binding, fresh.customer.kek_uri, fresh.customer.kek_version)
        halves = (fresh.customer, fresh.vendor)
        wrapped = [(each.ciphertext, each.kek_uri, each.kek_version) for each in halves]
        await insert_root_key(
            tx, tenant=tenant, generation=1, sealed=fresh.sealed, binding=binding, customer=wrapped[0],
            vendor=wrapped[1],
        )  # fmt: skip
        sealed = seal_index_key(index, fresh.trk, region=REGION, tenant=tenant, generation=1, number=1)
        await insert_index_key(tx, tenant=tenant, number=1, trk_generation=1, sealed=sealed)
        wanted = services.api_keys.settle(Wanted("runtime", Role.RUNTIME, purposes=ROLE_PURPOSES[Role.RUNTIME]))
        issued = await services.api_keys.issue(tx, tenant, wanted, new_id())
    fresh.trk.wipe()
    return str(issued.secret)


def _count(served: list[float]) -> int:
    return sum(1 for at in served if at)


async def operator_key(set_up: Peers) -> str:
    parts = assemble(worker_settings(set_up.told | {"port": 0}), kms_settings(set_up.told))
    async with serving(parts):
        keys = parts.services.api_keys
        async with parts.services.ledger.transaction(NO_UUID) as tx:
            return str((await keys.issue(tx, NO_UUID, keys.settle(Wanted("operator", Role.OPERATOR)), new_id())).secret)


async def run(set_up: Peers, console: Console, *, quick: bool, herd_only: bool) -> dict[str, Any]:
    lines: list[Line] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as web:
        bench = Bench(set_up, web, await operator_key(set_up))
        if not herd_only:
            lines, work = _plan(bench, quick=quick)
            await asyncio.gather(*work)
            seals = Line("seal", 1.0)
            await bench.seal(seals, make_customer(set_up.world, "vault-transit"), 5 if quick else 20)
            lines.append(seals)
            show(lines, console)
        herd = await bench.herd(100 if quick else 1000, 10 if quick else 30, console)
        show_herd(herd, console)
    return {"lines": [line.__dict__ for line in lines], "herd": herd}


def _plan(bench: Bench, *, quick: bool) -> tuple[list[Line], list[Any]]:
    """Tenants side by side; Azure's share a directory, since five unrelated denials at once would count as ours."""
    world = bench.peers.world
    lines, work = [], []
    entra: str | None = None
    # (provider, lease, runs of one tenant, tenants): together 20 at 5 s and 8 at 60 s for a provider. Each Transit
    # tenant is a customer of his own, so that there are two of them; the others' share one account and one directory.
    plan = [("aws-kms", 5, 5, 4), ("azure-key-vault", 5, 5, 4), ("vault-transit", 5, 10, 2)]
    plan += [("aws-kms", 60, 2, 4), ("azure-key-vault", 60, 2, 4)]
    wanted = [each[:3] for each in plan[:3]] if quick else [each[:3] for each in plan for _ in range(each[3])]
    for provider, lease, runs in wanted:
        customer = make_customer(world, provider)
        if isinstance(customer, AzureCustomer):
            entra = _same_directory(customer, entra)
        line = next((each for each in lines if (each.name, each.lease) == (provider, lease)), None)
        if line is None:
            line = Line(provider, lease + 1.0, lease)
            lines.append(line)
        work.append(bench.revoke(line, customer, 2 if quick else runs))
    return lines, work


def _same_directory(customer: AzureCustomer, entra: str | None) -> str:
    if entra is not None:
        customer.entra = customer.vault.entra = entra
    return customer.entra


def show(lines: list[Line], console: Console) -> None:
    table = Table(
        title="Seconds from withdrawing a key to the last plaintext, and from giving it back to service at all workers"
    )
    for name in ("key", "lease", "runs", "worker", "median", "p95", "most", "limit", "back: median", "back: most", ""):
        table.add_column(name, justify="right")
    for line in lines:
        for worker in range(WORKERS):
            times = sorted(values[worker] for values in line.values)
            ok = times[-1] <= line.limit and max(line.back) < 60
            table.add_row(
                line.name, str(line.lease or "-"), str(len(times)), str(worker + 1), f"{median(times):.3f}",
                f"{times[math.ceil(len(times) * 0.95) - 1]:.3f}", f"{times[-1]:.3f}", f"{line.limit:g}",
                f"{median(line.back):.2f}", f"{max(line.back):.2f}", "kept" if ok else "BROKEN",
            )  # fmt: skip
    console.print(table)


def show_herd(herd: dict[str, Any], console: Console) -> None:
    table = Table(title="All tenants' key service comes back after an outage longer than the lease")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in herd.items():
        table.add_row(name, f"{value:.2f} s" if isinstance(value, float) else str(value))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few runs, to see that it works")
    parser.add_argument("--herd", action="store_true", help="only the thousand tenants after an outage")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    given = parser.parse_args()
    console = Console(width=140)
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder, peers(Path(folder)) as set_up:
        found = asyncio.run(run(set_up, console, quick=given.quick, herd_only=given.herd))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1))
    broken = [line for line in found["lines"] if max(max(values) for values in line["values"]) > line["limit"]]
    raise SystemExit(1 if broken or found["herd"]["not back after 120 s"] else 0)


if __name__ == "__main__":
    main()
