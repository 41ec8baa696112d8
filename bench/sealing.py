"""What sealing costs: journal events into their tenants' logs, as the leader of a cell does it.

    python -m bench.sealing [--events 60000] [--tenants 50] [--profile]

Fills the journal of an embedded PostgreSQL of its own as workers' statements do, and then seals it. Printed are the
sealer's own time, that of the database's server process, and both together; ``--profile`` adds where the sealer's goes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson
import psutil

from app.identity import new_id
from app.services.sealer import Sealer
from app.store.audit_pool import audit_connector
from bench.fresh import migrated
from tests.cell import REGION, Cell, running_cell

FLUSH = 64
SHARES = (("context.load", 10), ("context.commit", 8), ("context.read", 2), ("context.write", 2), ("access.denied", 1))
WRITERS = 3


def _facts(rng: random.Random, tenant: UUID, caller: tuple[UUID, UUID], denied: bool) -> str:
    known: dict[str, object] = {"principal": str(caller[0]), "api_key": str(caller[1]), "role": "runtime"}
    if not denied:
        known |= {
            "purpose": "serve",
            "kek": f"arn:aws:kms:{REGION}:111122223333:key/{tenant}",
            "kek_version": "1",
            "trk": 1,
            "ck": 1,
            "lease_ms": rng.randrange(30_000),
        }
    known |= {"trace": f"{rng.getrandbits(128) | 1:032x}", "request": str(new_id()), "source": "A" * 43}
    return orjson.dumps(known).decode()


async def fill(url: str, count: int, tenants: int, seed: int) -> None:
    """``count`` events in flushes of 64, with objects and turns, by a few writers."""
    rng = random.Random(seed)
    actions = [name for name, share in SHARES for _ in range(share)]
    ids = [new_id() for _ in range(tenants)]
    callers = {tenant: (new_id(), new_id()) for tenant in ids}
    containers = {tenant: [new_id() for _ in range(40)] for tenant in ids}
    connection = await asyncpg.connect(url)
    try:
        for _ in range(WRITERS):
            writer, seqs, rows = new_id(), dict.fromkeys(ids, 0), []
            for number in range(count // WRITERS):
                tenant, action = rng.choice(ids), rng.choice(actions)
                denied, seqs[tenant] = action == "access.denied", seqs[tenant] + 1
                context = None if denied else rng.choice(containers[tenant])
                objects = None if denied else [new_id() for _ in range(rng.randrange(1, 4))]
                turns = [number + 1, number + 2] if action == "context.commit" else None
                rows.append(
                    (
                        tenant,
                        new_id(),
                        datetime.now(UTC),
                        writer,
                        seqs[tenant],
                        number // FLUSH + 1,
                        action,
                        "denied" if denied else "allowed",
                        "scope" if denied else None,
                        context,
                        objects,
                        [new_id() for _ in objects or ()] or None,
                        turns,
                        number if turns else None,
                        _facts(rng, tenant, callers[tenant], denied),
                    )
                )
            await connection.copy_records_to_table("journal", schema_name="confide_audit", records=rows)
            await connection.execute(
                "INSERT INTO confide_audit.writer (id, flush) VALUES ($1, $2)", writer, rows[-1][5]
            )
        await connection.execute("VACUUM ANALYZE confide_audit.journal")
        await connection.execute("SELECT confide_audit.summarize_journal()")
    finally:
        await connection.close()


async def seal(cell: Cell, profile: cProfile.Profile | None) -> tuple[int, float, float, float]:
    """Events, and seconds: by the clock, of this process, of the database's. The worker's own sealer is stopped."""
    audit = cell.parts.services.audit
    await audit.sealer.close()
    connection = await audit_connector(cell.url)()
    sealer = Sealer(REGION, audit_connector(cell.url), audit.signing, cell.parts.services.auditing)
    server = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    before = sum(server.cpu_times()[:2])
    if profile is not None:
        profile.enable()
    began, own = time.perf_counter(), time.process_time()
    while await sealer.poll(connection):
        pass
    taken, own = time.perf_counter() - began, time.process_time() - own
    if profile is not None:
        profile.disable()
    database = sum(server.cpu_times()[:2]) - before
    await connection.close()
    return int(sealer.metrics.audit_sealed.values[()]), taken, own, database


async def run(url: str, folder: Path, count: int, tenants: int, profile: cProfile.Profile | None) -> None:
    async with running_cell(url, folder / "state", log_share=0.0) as cell:
        await cell.parts.services.audit.sealer.close()
        await fill(url, count, tenants, seed=1)
        events, taken, own, database = await seal(cell, profile)
    print(f"{events} events of {tenants} tenants sealed in {taken:.1f} s: {events / taken:,.0f} a second")
    print(f"    per event: sealer {own / events * 1e6:.0f} us, database {database / events * 1e6:.0f} us")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--profile", action="store_true", help="with the profiler, which makes everything slower")
    args = parser.parse_args()
    profile = cProfile.Profile() if args.profile else None
    with migrated() as (url, folder):
        asyncio.run(run(url, folder, args.events, args.tenants, profile))


if __name__ == "__main__":
    main()
