"""How fast expired sessions are erased, and what the traffic beside it feels: ``python -m bench.retention``.

An embedded PostgreSQL (durable), one worker's services in this process. Sessions with a key, an object and two turns
each are inserted by SQL, all of them expired. Then the sweeper runs until nothing is due, beside a runtime at work.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from app.cli.database import bring_up
from app.embedded import EmbeddedPostgres
from app.identity import Caller, Kind, Purpose, Role
from app.main import Parts, Settings, assemble, serving
from app.services.api_keys import Wanted
from app.services.auditing import NO_TRACE
from app.services.changes import Call, Changes, Making, NewTurn, Where
from app.store.cell import make_database

REGION = "local"
CHUNK = 50_000

MAKE = """
WITH made AS (
    -- Ids as the service draws them: UUIDv7, a millisecond apart, so that what was begun together lies together.
    SELECT (lpad(to_hex((extract(epoch FROM now() - interval '2 days') * 1000)::bigint + $3 + n), 12, '0') || '7'
            || substr(r.hex, 1, 3) || '8' || substr(r.hex, 4, 15))::uuid AS id
    FROM generate_series(1, $2::int) n, LATERAL (SELECT md5(n::text || random()::text) AS hex) r),
c AS (INSERT INTO confide.container (tenant_id, id, kind, meta_version, meta, meta_ck, ck_generation, commit_number,
        turn_head, ttl_idle_seconds, created_at, updated_at, expires_at, sweep_at)
    SELECT $1, id, 'session', id, '\\x00', 1, 1, 1, 3, 60, now() - interval '2 days', now() - interval '2 days',
           now() - interval '1 day', now() - interval '1 day' FROM made),
k AS (INSERT INTO confide.container_key (tenant_id, container_id, generation, trk_generation, sealed, created_at)
    SELECT $1, id, 1, 1, decode(repeat('00', 76), 'hex'), now() FROM made),
o AS (INSERT INTO confide.context_object (tenant_id, container_id, id, version, collection_tag, ck_generation, size,
        commit_number, content_type, created_at, updated_at, tags, body)
    SELECT $1, id, id, id, id, 1, 300, 1, 'application/json', now(), now(), '', decode(repeat('00', 400), 'hex')
    FROM made)
INSERT INTO confide.turn (tenant_id, container_id, number, id, ck_generation, size, commit_number, content_type,
    created_at, body)
SELECT $1, made.id, n, made.id, 1, 100, 1, 'application/json', now(), decode(repeat('00', 200), 'hex')
FROM made, generate_series(1, 2) n
"""


async def tenant_of(parts: Parts) -> Caller:
    """A tenant with a runtime's key."""
    services = parts.services
    operator = await services.api_keys.bootstrap("bench-operator")
    caller = await services.access.authenticate(f"Bearer {operator.secret}".encode(), "127.0.0.1")
    created = await services.tenants.create(caller, "bench", {}, NO_TRACE)
    admin = await services.tenants.redeem(created.token, "first-admin", NO_TRACE)
    admin_caller = await services.access.authenticate(f"Bearer {admin.secret}".encode(), "127.0.0.1")
    runtime = await services.api_keys.create(admin_caller, Wanted("runtime", Role.RUNTIME), NO_TRACE)
    return await services.access.authenticate(f"Bearer {runtime.secret}".encode(), "127.0.0.1")


async def traffic(parts: Parts, caller: Caller, ending: asyncio.Event, took: list[float]) -> None:
    """One commit after another, 20 a second."""
    call = Call(caller, Purpose.SERVE, NO_TRACE)
    turn = NewTurn("application/json", b'{"role":"user","text":"Hello"}', inline=True)
    number = 0
    while not ending.is_set():
        number += 1
        begun = time.perf_counter()
        where = Where(Kind.SESSION, external=f"live-{number % 50}")
        await parts.services.dialogue.commit(call, [Changes(where, "context.commit", turns=[turn], make=Making())])
        took.append(time.perf_counter() - begun)
        await asyncio.sleep(max(0.0, 0.05 - (time.perf_counter() - begun)))


async def fill(url: str, tenant: UUID, sessions: int) -> float:
    connection = await asyncpg.connect(url)
    begun = time.perf_counter()
    for first in range(0, sessions, CHUNK):
        await connection.execute(MAKE, tenant, min(CHUNK, sessions), first)
    await connection.execute("ANALYZE")
    await connection.execute("CHECKPOINT")  # what the filling left to write isn't the traffic's to wait for
    await connection.close()
    return time.perf_counter() - begun


async def measure(url: str, state: Path, sessions: int) -> dict[str, Any]:
    parts = assemble(Settings(env="dev", region=REGION, database_url=url, state_dir=state, log_level="ERROR"))
    retention = parts.services.privacy.retention
    async with serving(parts):
        await retention.close()  # the bench sweeps itself
        caller = await tenant_of(parts)
        filled = await fill(url, caller.tenant, sessions)
        alone: list[float] = []
        beside: list[float] = []
        for took, work in ((alone, asyncio.sleep(10)), (beside, retention.sweep_all())):
            ending = asyncio.Event()
            runtime = asyncio.create_task(traffic(parts, caller, ending, took))
            begun = time.perf_counter()
            erased = await work
            seconds = time.perf_counter() - begun
            ending.set()
            await runtime
        entries = parts.services.privacy.deletions.entries
    return {
        "fill_seconds": filled,
        "erased": erased,
        "seconds": seconds,
        "per_second": (erased or 0) / seconds,
        "journal_entries": entries,
        "alone": alone,
        "beside": beside,
    }


def shown(took: list[float]) -> str:
    cuts = statistics.quantiles(took, n=100)
    return f"median {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, max {max(took) * 1000:.0f} ms ({len(took)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    sessions = parser.parse_args().sessions
    with (
        tempfile.TemporaryDirectory(prefix="confide-retention-") as folder,
        EmbeddedPostgres.start(Path(folder) / "postgres") as server,
    ):
        asyncio.run(make_database(server.superuser_url(), "confide"))
        url = server.superuser_url("confide")
        bring_up(url, REGION)
        found = asyncio.run(measure(url, Path(folder) / "state", sessions))
    print(
        f"{found['erased']:,} expired sessions erased in {found['seconds']:.0f} s: {found['per_second']:,.0f} a second"
    )
    print(f"deletion journal: {found['journal_entries']:,} entries, each batch on the disk before it counts")
    print(f"commits with nothing to sweep:  {shown(found['alone'])}")
    print(f"commits beside the sweep:       {shown(found['beside'])}")


if __name__ == "__main__":
    main()
