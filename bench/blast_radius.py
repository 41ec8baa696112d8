"""How long a blast radius takes: ``python -m bench.blast_radius [--events 5000000]``. Prints a table.

Half of the sealed events are one tenant's, and two fifths of those one API key's; the rest is spread over 99 tenants.
The large tenant was sealed, and its KMS key was revoked, within the window, so that its openings are counted by key
state. Rows are copied in without their indexes, which are made afterwards; then an incident's questions are timed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.cli.database import bring_up
from app.embedded import EmbeddedPostgres
from app.services.blast_radius import Part, Suspect, compute
from app.store.cell import make_database
from app.store.connection import connector
from app.store.ledger import Ledger

REGION: Final = "local"
TENANTS: Final = 100
SESSIONS: Final = 50_000
"""Of the large tenant; the others share as many."""
CHUNK: Final = 20_000
SPAN: Final = timedelta(days=1)
COLUMNS: Final = (
    "tenant_id", "epoch", "leaf", "sealed_at", "id", "time", "action", "outcome", "principal", "api_key", "container",
    "purpose", "entry",
)  # fmt: skip
RUNS: Final = 3

PEOPLE: Final = """
INSERT INTO confide.tenant (id, region, name)
SELECT md5('t' || n)::uuid, 'local', 't' || n FROM generate_series(0, $1::int - 1) n
"""
KEYS: Final = """
INSERT INTO confide.api_key (tenant_id, id, principal, name, digest, role, scopes, purposes)
SELECT md5('t' || n)::uuid, md5('k' || n || '.' || k)::uuid, md5('p' || n || '.' || k)::uuid, 'k' || k,
       decode(repeat('00', 32), 'hex'), 'runtime', '{context:read}', '{serve}'
FROM generate_series(0, $1::int - 1) n, generate_series(0, 9) k
"""
STORED: Final = """
INSERT INTO confide.container (tenant_id, id, kind, meta_version, meta, meta_ck, ck_generation, created_at, updated_at)
SELECT md5('t0')::uuid, md5('c0.' || n)::uuid, 'session', md5('v')::uuid, '\\x00', 1, 1, now(), now()
FROM generate_series(0, $1::int - 1) n
"""
INDEXES: Final = (
    "SELECT i.relname AS name, pg_get_indexdef(i.oid) AS made FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
    " WHERE x.indrelid = 'confide_audit.event'::regclass AND NOT x.indisprimary"
)


def name(text: str) -> str:
    """What PostgreSQL's ``md5(text)::uuid`` is."""
    return str(UUID(hashlib.md5(text.encode()).hexdigest()))  # noqa: S324  a name, no secret


class Rows:
    """The sealed events as COPY's text format."""

    def __init__(self, events: int, now: datetime) -> None:
        self._events = events
        self._begun = now - SPAN
        self._now = now
        self._names: dict[str, str] = {}

    def _name(self, text: str) -> str:
        found = self._names.get(text)
        if found is None:
            found = self._names[text] = name(text)
        return found

    def line(self, number: int) -> str:
        """One opening. Even numbers are the large tenant's; of those, two in five its first key's."""
        large = number % 2 == 0
        tenant = 0 if large else number % (TENANTS - 1) + 1
        order = number // 2
        turn = order if large else number // (2 * (TENANTS - 1))  # one after another of the tenant's own
        key = 0 if large and turn % 5 < 2 else turn % 9 + 1
        session = turn % SESSIONS if large else turn % (SESSIONS // TENANTS)
        moment = (self._begun + SPAN * (number / self._events)).isoformat()
        caller, api_key = self._name(f"p{tenant}.{key}"), self._name(f"k{tenant}.{key}")
        container = self._name(f"c{tenant}.{session}")
        entry = (
            f'{{"action":"context.load","api_key":"{api_key}","container":"{container}","kek":"local:vendor",'
            f'"kek_version":"1","lease_ms":1200,"outcome":"allowed","principal":"{caller}","purpose":"serve",'
            f'"region":"local","role":"runtime","seq":{number},"time":"{moment}","trk":{1 + (order % 7 == 0)},"v":1,'
            f'"writer":"00000000-0000-0000-0000-000000000001"}}'
        )
        return "\t".join(
            (
                self._name(f"t{tenant}"), "1", str(number), self._now.isoformat(), f"{number:032x}", moment,
                "context.load", "allowed", caller, api_key, container, "serve", "\\\\x" + entry.encode().hex(),
            )
        )  # fmt: skip

    def transitions(self) -> Iterator[str]:
        """Sealed for an hour, and later revoked for an hour."""
        binding = name("b")
        told = [
            (6, "key.seal", {}),
            (7, "key.unseal", {"to": "active"}),
            (12, "binding.state", {"binding": binding, "from": "active", "to": "revoked"}),
            (13, "binding.state", {"binding": binding, "from": "revoked", "to": "active"}),
        ]
        for number, (hours, action, detail) in enumerate(told, self._events):
            entry = json.dumps({"action": action, "detail": detail, "outcome": "allowed"}).encode().hex()
            moment = (self._begun + timedelta(hours=hours)).isoformat()
            yield "\t".join(
                (
                    name("t0"), "1", str(number), self._now.isoformat(), f"{number:032x}", moment, action, "allowed",
                    "\\N", "\\N", "\\N", "\\N", "\\\\x" + entry,
                )
            )  # fmt: skip

    async def chunks(self) -> AsyncIterator[bytes]:
        for first in range(0, self._events, CHUNK):
            lines = [self.line(number) for number in range(first, min(first + CHUNK, self._events))]
            yield ("\n".join(lines) + "\n").encode()
        yield ("\n".join(self.transitions()) + "\n").encode()


async def fill(url: str, events: int) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    await connection.execute("SET synchronous_commit = off")
    await connection.execute("SET maintenance_work_mem = '512MB'")
    await connection.execute(PEOPLE, TENANTS)
    await connection.execute(KEYS, TENANTS)
    await connection.execute(STORED, SESSIONS)
    indexes = await connection.fetch(INDEXES)
    for index in indexes:
        await connection.execute(f"DROP INDEX confide_audit.{index['name']}")
    await connection.copy_to_table(
        "event", schema_name="confide_audit", columns=COLUMNS, source=Rows(events, datetime.now(UTC)).chunks()
    )
    for index in indexes:
        await connection.execute(index["made"].replace(" ON ONLY ", " ON "))
    await connection.execute("VACUUM ANALYZE")  # as it happens by itself to a table that grows
    await connection.execute("CHECKPOINT")
    await connection.close()


def questions() -> dict[str, Suspect]:
    until = datetime.now(UTC) + timedelta(minutes=1)
    day, half_hour = until - timedelta(days=2), until - timedelta(minutes=31)
    large = UUID(name("t0"))
    return {
        "the large tenant's busiest API key, two days": Suspect(day, until, api_key=UUID(name("k0.0"))),
        "a small tenant's API key, two days": Suspect(day, until, api_key=UUID(name("k7.1"))),
        "a principal of the large tenant, two days": Suspect(day, until, principal=UUID(name("p0.3"))),
        "a key generation of the large tenant": Suspect(day, until, generation=2, tenant=large),
        "every tenant, half an hour": Suspect(half_hour, until),
        "every tenant, two days: all events": Suspect(day, until),
    }


async def measure(url: str) -> list[tuple[str, float, float, list[Part]]]:
    ledger = Ledger(connector(url))
    found = []
    for text, suspect in questions().items():
        took = []
        parts: list[Part] = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            parts = await compute(ledger, suspect)
            took.append(time.perf_counter() - begun)
        found.append((text, statistics.median(took), max(took), parts))
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
        begun = time.perf_counter()
        asyncio.run(fill(url, events))
        print(f"{events:,} sealed events in place after {time.perf_counter() - begun:.0f} s", flush=True)
        for text, median, worst, parts in asyncio.run(measure(url)):
            opened, containers = sum(part.events for part in parts), sum(part.containers for part in parts)
            states = {state for part in parts for state in part.key_states}
            print(
                f"{text}: {median:.2f} s (worst {worst:.2f}), {opened:,} openings of {containers:,} containers,"
                f" key states {', '.join(sorted(states))}",
                flush=True,
            )


if __name__ == "__main__":
    main()
