"""Tampers with a stored log at random, as a superuser, and asks the offline verifier after the next checkpoint.

    python -m tests.programmes.audit_tamper [--seed N] [--events 20000] [--each 500] [--contents-every 20] [--jobs 2]

The log is sealed and signed by the service's own sealer, the export is the service's, the verifier is the one that
auditors get, and he holds an older checkpoint. Every mutation happens in a transaction that is rolled back afterwards:
the sealer goes on with the next event, signs, or starts again where it finds that it must not; then the log is
exported from the same transaction. Some of the time each event's contents are looked at too (``--contents-every``).
``--jobs`` processes share the work, each with a PostgreSQL and a log of its own: one for each processor by default.

Exit status: 0 where every mutation was found and its first bad leaf named; 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from app.audit.merkle import Frontier, cover, leaf_hash
from app.audit.verify import Report, verify
from app.embedded import EmbeddedPostgres
from app.errors import ConfideError, Unavailable
from app.identity import Caller, new_id
from app.services.audit_epochs import open_epochs
from app.services.audit_export import AuditExports, Wanted
from app.services.audit_log import AuditReading
from app.services.audit_signing import Forked, Signing
from app.services.audit_witness import Witness
from app.services.auditing import NO_TRACE
from app.services.sealer import Sealer
from app.store import audit_seal, migrate
from app.store.audit_pool import AuditPool, audit_connector
from app.store.ledger import Transaction
from tests.cell import REGION, Cell, Tenant, running_cell
from tests.programmes.tamper_mutations import Mutations
from tests.programmes.tamper_words import Expected, Log

ROUNDS = 24
Connection = asyncpg.Connection


class OneTransaction(AuditPool):
    """Everything in one open transaction, in savepoints: what was tampered with is seen, and never committed."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(self._none)
        self.connection = connection

    async def _none(self) -> Connection[Any]:
        raise Unavailable

    @asynccontextmanager
    async def transaction(self, *tenants: UUID, snapshot: bool = False) -> AsyncIterator[Transaction]:
        try:
            async with as_service(self.connection, *tenants):
                yield Transaction(self.connection)
        except asyncpg.PostgresError as error:
            raise Unavailable from error


@asynccontextmanager
async def as_service(connection: Connection[Any], *tenants: UUID) -> AsyncIterator[None]:
    """A savepoint with the service's role and the rows that it may see."""
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE confide_service")
        await audit_seal.see(connection, tenants)
        yield
        await connection.execute("RESET ROLE")


class Undo(Exception):
    """Ends a transaction without committing it."""


@dataclass
class Bench:
    """A sealed log, and one event that is still to be sealed: the next checkpoint's."""

    cell: Cell
    tenant: Tenant
    caller: Caller
    db: Connection[Any]
    log: Log
    other: Log
    kept: bytes
    keys: list[str]
    witness: bytes
    writer: UUID
    until: datetime
    folder: Path

    async def ask(self, mutate: Any, *, contents: bool) -> tuple[Expected, list[Report]]:
        """What was to be found, and the verifier's reports: of the newest log, and of the first if they differ."""
        answer: tuple[Expected, list[Report]] | None = None
        with suppress(Undo):
            async with self.db.transaction():
                await self.db.execute("SET LOCAL session_replication_role = replica")
                expected = await mutate(self.db)
                await self.db.execute("SET LOCAL session_replication_role = origin")
                answer = expected, await self._after(contents=contents)
                raise Undo
        assert answer is not None
        return answer

    def _signing(self) -> Signing:
        (self.folder / "witness.log").unlink(missing_ok=True)
        (self.folder / "witness.log").write_bytes(self.witness)
        audit = self.cell.parts.services.audit.signing
        return Signing(
            audit._signer, (), Witness(self.folder), OneTransaction(self.db), self.cell.parts.services.auditing
        )

    async def _seal(self, signing: Signing, *, again: bool) -> None:
        """The next event, by a sealer that knows the log or (``again``) by one that begins."""
        sealer = Sealer(REGION, audit_connector(self.cell.url), signing, self.cell.parts.services.auditing)
        waiting = [one for one in await audit_seal.waiting(self.db) if one.writer == self.writer]
        moment = await audit_seal.now(self.db)
        sealer._since = self.until - timedelta(minutes=10)
        if not again:
            edge = Frontier(self.log.size, [self.log.nodes[node] for node in cover(0, self.log.size)])
            sealer._heads[self.log.tenant] = audit_seal.Head(self.log.tenant, 1, edge, moment)
        async with self.db.transaction():
            await self.db.execute("SET LOCAL ROLE confide_service")
            await sealer.take(self.db)
            await sealer._seal(self.db, waiting, 64, moment)
            await self.db.execute("RESET ROLE")

    async def _after(self, *, contents: bool) -> list[Report]:
        signing = self._signing()
        try:
            async with self.db.transaction():
                await self._seal(signing, again=False)
                await signing.checkpoint(self.log.tenant)
        except (Forked, ConfideError, audit_seal.LostRace, asyncpg.PostgresError):
            signing = self._signing()
            with suppress(Forked, ConfideError, audit_seal.LostRace, asyncpg.PostgresError):
                async with self.db.transaction():
                    await self.db.execute("SET LOCAL ROLE confide_service")
                    leader = Sealer(REGION, audit_connector(self.cell.url), signing, self.cell.parts.services.auditing)
                    await leader.take(self.db)
                    await open_epochs(self.db, signing, REGION, self.cell.parts.services.auditing, leader.hold)
                    await self.db.execute("RESET ROLE")
                async with self.db.transaction():
                    await self._seal(signing, again=True)
        reports = [await self._report(signing, None, contents=contents)]
        if reports[0].origin.endswith(str(self.log.tenant)):
            return reports
        return [*reports, await self._report(signing, 1, contents=contents)]

    async def _report(self, signing: Signing, epoch: int | None, *, contents: bool) -> Report:
        """Of the service's export; where it refuses to export, nothing is verified."""
        services = self.cell.parts.services
        reading = AuditReading(OneTransaction(self.db), services.auditing, services.access)
        size = int(self.kept.split(b"\n")[1])
        until = self.until
        async with as_service(self.db, self.log.tenant):
            if await self.db.fetchval(
                "SELECT count(*) FROM confide_audit.waiting_writers() WHERE writer = $1", self.writer
            ):
                until = await self.db.fetchval(
                    "SELECT max(time) FROM confide_audit.journal WHERE writer = $1", self.writer
                )
        try:
            wanted = Wanted("ndjson", until=until, epoch=epoch, known=(size,))
            chunks = [one async for one in await AuditExports(reading, signing).open(self.caller, wanted, NO_TRACE)]
        except ConfideError as error:
            return Report(exit_code=2, findings=[{"code": "refused", "message": type(error).__name__}])
        try:
            return verify(
                b"".join(chunks).split(b"\n")[:-1], self.keys, self.kept, tolerance=10.0 if contents else None
            )
        except ValueError as error:
            return Report(exit_code=2, findings=[{"code": "unusable", "message": str(error)}])


def judge(expected: Expected, reports: list[Report]) -> str | None:
    """None if the answer is right, else what is wrong with it.

    Where the log had to go on under another origin, that is what the auditor finds first; the old origin's export then
    names the leaf. An older copy that was put in place whole has none.
    """
    last = reports[-1]
    if reports[0].exit_code not in expected.codes:
        return f"exit codes {[report.exit_code for report in reports]}, findings {[r.findings[:2] for r in reports]}"
    leaf = last.end if expected.end else expected.leaf
    if leaf is not None and last.first_bad_leaf != leaf:
        return f"first bad leaf {last.first_bad_leaf}, not {leaf}: {last.findings[:3]}"
    span = last.bad_range
    if expected.within is not None and (span is None or not span[0] <= expected.within < span[1]):
        return f"range {span} without {expected.within}: {last.findings[:3]}"
    return None


# ---------------------------------------------------------------- the log


async def append(url: str, tenants: list[UUID], count: int, seed: int) -> UUID:
    """``count`` events of each tenant by a writer of its own, as flushes would have left them."""
    rng, writer, rows, now = random.Random(seed), new_id(), [], datetime.now(UTC)
    for number in range(count):
        for tenant in tenants:
            facts = f'{{"principal":"{new_id()}","kek":"local:1","trk":1,"lease_ms":{rng.randrange(999)},'
            facts += f'"trace":"","request":"{new_id()}","source":""}}'
            moment, ident = now + timedelta(microseconds=number), new_id()
            action = rng.choice(["context.load", "context.commit"])
            place = (tenant, ident, moment, writer, number + 1, number // 32 + 1, action, "allowed")
            rows.append((*place, None, new_id(), None, None, None, None, facts))
    connection = await asyncpg.connect(url)
    try:
        await connection.copy_records_to_table("journal", schema_name="confide_audit", records=rows)
        await connection.execute("INSERT INTO confide_audit.writer (id, flush) VALUES ($1, $2)", writer, rows[-1][5])
    finally:
        await connection.close()
    return writer


async def stored(db: Connection[Any], tenant: UUID) -> Log:
    entries = [
        bytes(row["entry"])
        for row in await db.fetch(
            "SELECT entry FROM confide_audit.event WHERE tenant_id = $1 AND epoch = 1 ORDER BY leaf", tenant
        )
    ]
    nodes = {
        (level, first + n): hash_
        for level, first, row in Frontier().extend([leaf_hash(entry) for entry in entries])
        for n, hash_ in enumerate(row)
    }
    sizes = await db.fetch("SELECT size FROM confide_audit.checkpoint WHERE tenant_id = $1 ORDER BY size", tenant)
    return Log(tenant, entries, nodes, [row["size"] for row in sizes])


@asynccontextmanager
async def prepared(url: str, folder: Path, events: int, seed: int) -> AsyncIterator[Bench]:
    """Two tenants' logs, sealed and signed in rounds; the auditor of one keeps a checkpoint of its first third."""
    async with running_cell(url, folder / "state", log_share=0.0, log_level="CRITICAL") as cell:
        audit = cell.parts.services.audit
        await audit.sealer.close()
        one, two = await cell.tenant("one"), await cell.tenant("two")
        leader = await audit_connector(url)()
        sealer = Sealer(REGION, audit_connector(url), audit.signing, cell.parts.services.auditing)
        while not await audit_seal.try_lead(leader):  # noqa: ASYNC110  the worker's own sealer is ending
            await asyncio.sleep(0.05)
        kept, made = b"", 0
        for number in range(ROUNDS):
            goal = events * (number + 1) // ROUNDS
            await append(url, [one.id, two.id], goal - made, seed + number)
            made = goal
            while await sealer.poll(leader):
                pass
            rows = [await audit.signing.checkpoint(tenant.id) for tenant in (one, two)]
            if number == ROUNDS // 3:
                kept = bytes(rows[0]["note"])
        writer = await append(url, [one.id], 1, seed + ROUNDS)
        await leader.close()
        caller = await cell.parts.services.access.authenticate(f"Bearer {one.keys['auditor']}".encode(), "127.0.0.1")
        db = await asyncpg.connect(url)
        await db.execute("VACUUM ANALYZE")
        log, other = await stored(db, one.id), await stored(db, two.id)
        witness = (folder / "state" / "witness" / "witness.log").read_bytes()
        scratch = folder / "scratch"
        scratch.mkdir()
        until = datetime.now(UTC)
        try:
            keys = audit.signing.keys()
            yield Bench(cell, one, caller, db, log, other, kept, keys, witness, writer, until, scratch)
        finally:
            await db.close()


async def run(bench: Bench, seed: int, each: int, contents_every: int, *, tell: bool = True) -> dict[str, list[str]]:
    """What went wrong, by kind of mutation: empty lists are what is hoped for."""
    rng = random.Random(seed)
    name = bench.cell.parts.services.audit.signing.names.name
    mutations = Mutations(rng, bench.log, bench.other, int(bench.kept.split(b"\n")[1]), name)

    async def nothing(_: Connection[Any]) -> Expected:
        return Expected()

    _, control = await bench.ask(nothing, contents=True)
    if control[-1].exit_code != 0 or control[-1].end != bench.log.size + 1:
        raise AssertionError(f"the untouched log doesn't verify: {control[-1].end} {control[-1].findings[:3]}")
    kinds = mutations.kinds()
    wrong: dict[str, list[str]] = {kind: [] for kind in kinds}
    codes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    began = time.monotonic()
    for number in range(1, each + 1):
        for kind, mutate in kinds.items():
            expected, reports = await bench.ask(mutate, contents=number % contents_every == 0)
            codes[kind].update(sorted({str(found["code"]) for found in (f for r in reports for f in r.findings[:1])}))
            fault = judge(expected, reports)
            if fault is not None:
                wrong[kind].append(f"number {number} ({expected}): {fault}")
        if number % 20 == 0:
            await bench.db.execute("VACUUM confide_audit.event, confide_audit.node, confide_audit.log")
        if tell and (number % 50 == 0 or number == each):
            print(f"after {time.monotonic() - began:.0f} s:", flush=True)
            for kind, answers in wrong.items():
                print(f"  {kind:12} {number - len(answers)} of {number} found and named rightly; {dict(codes[kind])}")
                for answer in answers[:5]:
                    print(f"    {answer[:400]}")
    return wrong


def job(number: int, seed: int, events: int, each: int, contents_every: int) -> dict[str, list[str]]:
    """A share of the mutations, in a process and on a PostgreSQL of its own."""
    logging.disable(logging.CRITICAL)  # the alarms that every mutation raises
    print(f"job {number}: seed {seed}, {events} events, {each} mutations of each kind", flush=True)
    with tempfile.TemporaryDirectory(prefix="confide-tamper-") as name:
        folder = Path(name)
        with EmbeddedPostgres.start(folder / "postgres", durable=False) as server:
            url = server.superuser_url()
            migrate.upgrade(url)

            async def work() -> dict[str, list[str]]:
                async with prepared(url, folder, events, seed) as bench:
                    return await run(bench, seed, each, contents_every)

            return asyncio.run(work())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=500)
    parser.add_argument("--contents-every", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    jobs = max(1, min(args.jobs, args.each))
    shares = [args.each * (n + 1) // jobs - args.each * n // jobs for n in range(jobs)]
    print(f"seed {args.seed}, {jobs} jobs, {args.each} mutations of each kind", flush=True)
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = [
            pool.submit(job, n + 1, args.seed + 1_000 * n, args.events, share, args.contents_every)
            for n, share in enumerate(shares)
        ]
        answers = [one.result() for one in waiting]
    missed = {kind: sum(len(answer[kind]) for answer in answers) for kind in answers[0]}
    print(f"all jobs, after {time.monotonic() - began:.0f} s:")
    for kind, count in missed.items():
        print(f"  {kind:12} {args.each - count} of {args.each} found and named rightly")
    return 1 if any(missed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
