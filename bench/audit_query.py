"""How fast the audit log answers: each documented filter's first page, inclusion proofs, and an export.

    python -m bench.audit_query [--events 5000000] [--tenants 100]

Fills an embedded PostgreSQL of its own through COPY with events as the sealer would have sealed them, then asks as a
worker does: through its services, with row-level security, the query's own audit event included.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import psutil

from app.audit.event import encode, format_time, leaf_hash
from app.audit.merkle import Frontier
from app.identity import new_id
from app.services.audit_export import Wanted
from app.services.auditing import NO_TRACE
from bench.fresh import migrated
from tests.cell import REGION, Cell, running_cell

ROUNDS = 15
BATCH = 20_000
ACTIONS = (
    ("context.load",) * 10 + ("context.commit",) * 8 + ("key.intent", "key.outcome", "session.read", "access.denied")
)


class Tenant:
    """One tenant's made-up log: a few callers, many containers, rare denials, rarer purposes."""

    def __init__(self, ident: UUID, count: int, seed: int) -> None:
        self.id, self.count = ident, count
        self.random = random.Random(seed)
        self.principals = [new_id() for _ in range(8)]
        self.keys = [new_id() for _ in range(16)]
        self.containers = [new_id() for _ in range(max(count // 40, 1))]
        self.objects = [new_id() for _ in range(max(count // 20, 1))]
        self.writer = new_id()
        self.start = datetime.now(UTC) - timedelta(days=25)

    def events(self, first: int) -> Iterator[tuple[UUID, datetime, dict[str, Any]]]:
        step = timedelta(days=25) / self.count
        for number in range(self.count):
            moment = self.start + step * number
            pick = self.random.random
            action = ACTIONS[int(pick() * len(ACTIONS))]
            event: dict[str, Any] = {
                "v": 1,
                "id": str(_uuid7(moment, self.random)),
                "time": format_time(moment),
                "tenant": str(self.id),
                "region": REGION,
                "writer": str(self.writer),
                "seq": first + number,
                "action": action,
                "outcome": "denied" if action == "access.denied" else "allowed",
                "principal": str(self.principals[int(pick() ** 3 * 8)]),
                "api_key": str(self.keys[int(pick() ** 3 * 16)]),
                "kek": f"arn:aws:kms:{REGION}:111122223333:key/{int(pick() * 3)}",
            }
            if action == "access.denied":
                event["reason"] = "scope"
            if action.startswith("context"):
                event["purpose"] = "serve" if pick() < 0.999 else "subject-access"
                event["container"] = str(self.containers[int(pick() * len(self.containers))])
                event["objects"] = [
                    [str(self.objects[int(pick() * len(self.objects))]), str(_uuid7(moment, self.random))]
                ]
                event["lease_ms"] = 1200
            if action == "key.outcome":
                event["kms_request_id"] = f"{self.id}-{number}"
            yield UUID(event["id"]), moment, event


def _uuid7(moment: datetime, source: random.Random) -> UUID:
    high = (int(moment.timestamp() * 1000) << 80) | (7 << 76) | (source.getrandbits(12) << 64)
    return UUID(int=high | (2 << 62) | source.getrandbits(62))


async def fill(url: str, ident: UUID, count: int, seed: int) -> Tenant:
    """Copy a tenant's events, objects, nodes and head, behind what the sealer has sealed already."""
    connection = await asyncpg.connect(url)
    try:
        head = await connection.fetchrow("SELECT * FROM confide_audit.log WHERE tenant_id = $1", ident)
        frontier = Frontier.from_bytes(head["frontier"]) if head is not None else Frontier()
        tenant, sealed_at = Tenant(ident, count, seed), datetime.now(UTC)
        events: list[Any] = []
        objects: list[Any] = []
        nodes: list[Any] = []

        async def flush() -> None:
            for table, rows in (("event", events), ("event_object", objects), ("node", nodes)):
                await connection.copy_records_to_table(table, schema_name="confide_audit", records=rows)
                rows.clear()

        for id_, moment, event in tenant.events(1):
            entry = encode(event)
            place = frontier.size
            nodes.extend((ident, 1, *node) for node in frontier.append(leaf_hash(entry)))
            get = event.get
            events.append(
                (
                    ident,
                    1,
                    place,
                    sealed_at,
                    id_,
                    moment,
                    event["action"],
                    event["outcome"],
                    get("principal"),
                    get("api_key"),
                    get("container"),
                    get("kek"),
                    get("kms_request_id"),
                    get("purpose"),
                    entry,
                )
            )
            objects.extend((ident, item, moment, id_, sealed_at) for item, _ in event.get("objects", ()))
            if len(events) >= BATCH:
                await flush()
        await flush()
        await connection.execute(
            "INSERT INTO confide_audit.log (tenant_id, epoch, size, frontier, sealed_at) VALUES ($1, 1, $2, $3, $4)"
            " ON CONFLICT (tenant_id, epoch) DO UPDATE SET size = $2, frontier = $3, sealed_at = $4",
            ident,
            frontier.size,
            frontier.to_bytes(),
            sealed_at,
        )
        return tenant
    finally:
        await connection.close()


def queries(tenant: Tenant) -> dict[str, dict[str, str]]:
    pick = tenant.random
    middle = format_time(tenant.start + timedelta(days=12))
    return {
        "none": {},
        "from, to": {"from": middle, "to": format_time(tenant.start + timedelta(days=13))},
        "action": {"action": "key.outcome"},
        "outcome": {"outcome": "denied"},
        "principal": {"principal": str(tenant.principals[7])},
        "api_key": {"api_key": str(tenant.keys[15])},
        "container": {"container": str(pick.choice(tenant.containers))},
        "object": {"object": str(pick.choice(tenant.objects))},
        "kek": {"kek": f"arn:aws:kms:{REGION}:111122223333:key/1"},
        "kms_request_id": {"kms_request_id": f"{tenant.id}-{pick.randrange(tenant.count)}"},
        "purpose": {"purpose": "subject-access"},
        "oldest first": {"order": "oldest"},
    }


async def measure(cell: Cell, clients: list[tuple[Tenant, httpx2.AsyncClient]], key: str) -> None:
    times: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        tenant, client = clients[number % len(clients)]
        for name, query in queries(tenant).items():
            began = time.perf_counter()
            answer = await client.get("/v1/audit/events", params=query)
            times.setdefault(name, []).append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
    for name, taken in times.items():
        print(f"{name:16} median {statistics.median(taken) * 1000:7.1f} ms   worst {max(taken) * 1000:7.1f} ms")
    await prove(cell, clients)
    await export(cell, key)


async def prove(cell: Cell, clients: list[tuple[Tenant, httpx2.AsyncClient]]) -> None:
    taken = []
    for number in range(ROUNDS * 2):
        tenant, client = clients[number % len(clients)]
        async with cell.parts.services.audit.pools[0].transaction(tenant.id) as tx:
            ident = await tx.connection.fetchval(
                "SELECT id FROM confide_audit.event WHERE tenant_id = $1 AND epoch = 1 AND leaf = $2",
                tenant.id,
                tenant.random.randrange(tenant.count),
            )
        began = time.perf_counter()
        answer = await client.get("/v1/audit/proof/inclusion", params={"event": str(ident)})
        taken.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    print(
        f"{'inclusion proof':16} median {statistics.median(taken) * 1000:7.1f} ms   worst {max(taken) * 1000:7.1f} ms"
    )


def _resident() -> str:
    return f"{psutil.Process().memory_info().rss >> 20} MiB"


async def export(cell: Cell, key: str) -> None:
    """Counts and throws away what the service streams: a client that keeps it would be what fills the memory."""
    services = cell.parts.services
    caller = await services.access.authenticate(f"Bearer {key}".encode(), "127.0.0.1")
    for form in ("ndjson", "ocsf"):
        before, size, lines = _resident(), 0, 0
        began = time.perf_counter()
        async for chunk in await services.audit.exports.open(caller, Wanted(form), NO_TRACE):
            size, lines = size + len(chunk), lines + chunk.count(b"\n{") + chunk.startswith(b"{")
        taken = time.perf_counter() - began
        print(
            f"export {form:9} {lines} events, {size / 1e6:.1f} MB in {taken:.1f} s: {lines / taken:,.0f} events/s,"
            f" {size / 1e6 / taken:.1f} MB/s; memory {before} before, {_resident()} after,"
            f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB at most so far"
        )


async def without_indexes(url: str) -> list[str]:
    """Drop the table's further indexes; answers how to make them again, which after loading is much quicker."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS made FROM pg_index"
            " WHERE indrelid = 'confide_audit.event'::regclass AND NOT indisprimary"
        )
        for row in rows:
            await connection.execute(f"DROP INDEX {row['name']}")
        return [row["made"].replace(" ON ONLY ", " ON ") for row in rows]  # for the partitions too
    finally:
        await connection.close()


async def run(url: str, folder: Path, total: int, tenants: int) -> None:
    async with running_cell(url, folder / "state", log_share=0.0) as cell:
        clients: list[tuple[Tenant, httpx2.AsyncClient]] = []
        began, key = time.perf_counter(), ""
        await cell.parts.services.audit.sealer.close()
        indexes = await without_indexes(url)
        for number in range(tenants):
            if number < 5:
                made = await cell.tenant(f"tenant-{number}")
                key = made.keys["auditor"] if number == 0 else key
                clients.append((await fill(url, made.id, total // tenants, number), made.auditor))
            else:
                await fill(url, new_id(), total // tenants, number)
        connection = await asyncpg.connect(url)
        await connection.execute("SET maintenance_work_mem = '1GB'")
        for index in indexes:
            await connection.execute(index)
        await connection.execute("VACUUM ANALYZE")
        size = await connection.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
        await connection.close()
        cell.parts.services.audit.sealer.start()
        await asyncio.sleep(2)
        print(f"{total} events of {tenants} tenants, {size}, made in {time.perf_counter() - began:.0f} s", flush=True)
        await measure(cell, clients, key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--tenants", type=int, default=100)
    args = parser.parse_args()
    with migrated() as (url, folder):
        asyncio.run(run(url, folder, args.events, args.tenants))


if __name__ == "__main__":
    main()
