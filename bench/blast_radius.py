"""How long a blast radius takes over a large audit log: ``python -m bench.blast_radius``.

Sealed events of 100 tenants, ten API keys each, are inserted by SQL; then an incident's questions are timed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from app.cli.database import bring_up
from app.embedded import EmbeddedPostgres
from app.services.blast_radius import Suspect, compute
from app.store.cell import make_database
from app.store.connection import connector
from app.store.ledger import Ledger

REGION = "local"
TENANTS = 100
CHUNK = 100_000

PEOPLE = """
INSERT INTO confide.tenant (id, region, name)
SELECT md5('t' || n)::uuid, 'local', 't' || n FROM generate_series(1, $1::int) n
"""
KEYS = """
INSERT INTO confide.api_key (tenant_id, id, principal, name, digest, role, scopes, purposes)
SELECT md5('t' || n)::uuid, md5('k' || n || '.' || k)::uuid, md5('p' || n || '.' || k)::uuid, 'k' || k,
       decode(repeat('00', 32), 'hex'), 'runtime', '{context:read}', '{serve}'
FROM generate_series(1, $1::int) n, generate_series(1, 10) k
"""
EVENTS = """
INSERT INTO confide_audit.event (tenant_id, epoch, leaf, sealed_at, id, time, action, outcome, principal, api_key,
    container, purpose, entry)
SELECT md5('t' || n)::uuid, 1, i, now(), gen_random_uuid(), now() - (i % 86400) * interval '1 second', 'context.load',
       'allowed', md5('p' || n || '.' || k)::uuid, md5('k' || n || '.' || k)::uuid,
       md5('c' || n || '.' || i % 5000)::uuid,
       'serve', convert_to('{"action":"context.load","api_key":"' || md5('k' || k) || '","container":"' || md5('c' || i)
       || '","kek":"local:vendor","kek_version":"1","lease_ms":1200,"outcome":"allowed","purpose":"serve",'
       || '"region":"local","role":"runtime","seq":' || i || ',"trk":1,"v":1,"writer":"' || md5('w') || '"}', 'UTF8')
FROM (SELECT i, i % $3::int + 1 AS n, (i / $3::int) % 10 + 1 AS k FROM generate_series($1::bigint, $2::bigint) i) e
"""


async def fill(url: str, events: int) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SET synchronous_commit = off")
    await connection.execute(PEOPLE, TENANTS)
    await connection.execute(KEYS, TENANTS)
    for first in range(0, events, CHUNK):
        await connection.execute(EVENTS, first, min(first + CHUNK, events) - 1, TENANTS)
    await connection.execute("ANALYZE confide_audit.event")
    await connection.close()


async def measure(url: str, events: int) -> list[tuple[str, float, int]]:
    await fill(url, events)
    connection = await asyncpg.connect(url)
    row: Any = await connection.fetchrow("SELECT tenant_id, id, principal FROM confide.api_key LIMIT 1")
    await connection.close()
    until = datetime.now(UTC) + timedelta(minutes=1)
    day, minutes = until - timedelta(days=2), until - timedelta(minutes=30)
    tenant: UUID = row["tenant_id"]
    questions = {
        "an API key, all its time": Suspect(day, until, api_key=row["id"]),
        "a principal, all its time": Suspect(day, until, principal=row["principal"]),
        "a tenant's key generation, all its time": Suspect(day, until, generation=1, tenant=tenant),
        "every tenant, half an hour": Suspect(minutes, until),
    }
    ledger = Ledger(connector(url))
    found = []
    for name, suspect in questions.items():
        took = []
        for _ in range(3):
            begun = time.perf_counter()
            parts = await compute(ledger, suspect)
            took.append(time.perf_counter() - begun)
        found.append((name, statistics.median(took), sum(part.events for part in parts)))
    await ledger.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.blast_radius", description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000)
    events = parser.parse_args().events
    with (
        tempfile.TemporaryDirectory(prefix="confide-radius-") as folder,
        EmbeddedPostgres.start(Path(folder) / "postgres", durable=False) as server,
    ):
        asyncio.run(make_database(server.superuser_url(), "confide"))
        url = server.superuser_url("confide")
        bring_up(url, REGION)
        for name, seconds, opened in asyncio.run(measure(url, events)):
            print(f"{name}: {seconds:.2f} s, {opened:,} of {events:,} events")


if __name__ == "__main__":
    main()
