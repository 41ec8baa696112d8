"""G8: a sweep, an erasure and an offboarding whose worker is killed in the middle are finished by the next one."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.audit.checkpoint import VerifierKey
from app.services.attesting import open_document
from app.services.deletion_journal import read_journal
from tests.cell import Cell, Tenant, running_cell
from tests.privacy.made import dialogue, expire, rows_of, sql, until
from tests.privacy.test_erasure import finished

WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@asynccontextmanager
async def worker(url: str, state: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another worker's process; kill -9 is its only end."""
    settings = {"CONFIDE_DATABASE_URL": url, "CONFIDE_STATE_DIR": str(state)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.privacy.worker", env=settings)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def in_use(url: str, *sessions: UUID) -> AsyncIterator[Any]:
    """A transaction that has written to each of ``sessions``: whoever removes containers passes them over."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        await connection.execute("SELECT FROM confide.container WHERE id = ANY ($1) FOR UPDATE", list(sessions))
        yield connection
    finally:
        await connection.close()


async def stored(cell: Cell, sessions: Sequence[UUID]) -> int:
    found = await sql(cell, "SELECT count(*) FROM confide.container WHERE id = ANY ($1)", list(sessions))
    return int(found[0][0])


async def removals(cell: Cell, action: str) -> Counter[UUID]:
    """How many events each removed container has."""
    found = await sql(
        cell, "SELECT container FROM confide_audit.journal WHERE action = $1 AND container IS NOT NULL", action
    )
    return Counter(row["container"] for row in found)


async def certificate(leaver: Tenant) -> Any:
    return (await leaver.auditor.get("/v1/privacy/offboarding")).json().get("receipt")


@pytest.mark.timeout(600)
async def test_g8_a_sweep_an_erasure_and_an_offboarding_go_on_after_kill_9(database: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running_cell(database, state) as cell:
        # This worker only answers: sweeping and jobs are the others'.
        await cell.parts.services.jobs.close()
        await cell.parts.services.privacy.retention.close()
        tenant, leaver = await cell.tenant("acme"), await cell.tenant("leaver")
        old = [await dialogue(tenant, f"old-{n}") for n in range(5)]
        subject = [await dialogue(tenant, f"call-{n}", "customer-1") for n in range(3)]
        left = [await dialogue(leaver, f"left-{n}") for n in range(3)]
        async with in_use(database, subject[1], left[1]) as busy, worker(database, state) as first:
            await expire(cell, *old[:2])
            asked = await tenant.admin.post("/v1/privacy/erasures", json={"subject": "customer-1"})
            assert (await leaver.admin.post("/v1/privacy/offboarding", json={"confirm": "leaver"})).status_code == 202

            async def halfway() -> bool:
                return [await stored(cell, each) for each in (old, subject, left)] == [3, 1, 1]

            await until(halfway)
            await busy.execute("LOCK TABLE confide.container_label IN SHARE MODE")
            await expire(cell, *old[2:])

            async def sweeping() -> bool:  # its transaction has deleted, and isn't over
                return bool((await sql(cell, WAITS))[0][0])

            await until(sweeping)
            first.kill()
            await first.wait()
        assert await stored(cell, [*old, *subject, *left]) == 5  # what wasn't committed is there
        await sql(cell, "UPDATE confide.job SET claimed_until = now() WHERE state = 'running'")  # 30 seconds later
        async with worker(database, state):
            done = await finished(tenant, asked.json()["id"])
            note = await until(lambda: certificate(leaver))

            async def swept() -> bool:
                return await stored(cell, old) == 0

            await until(swept)
        await check(cell, done, note, old, subject, left)


async def check(
    cell: Cell, done: Any, note: str, old: Sequence[UUID], subject: Sequence[UUID], left: Sequence[UUID]
) -> None:
    """Nothing is left, everything was removed once and is accounted for once."""
    keys = [VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)]
    for session in (*old, *subject, *left):
        assert await rows_of(cell, session) == 0
    assert await removals(cell, "retention.expire") == dict.fromkeys(old, 1)
    receipt = open_document(done["receipt"], keys)[1]
    named = Counter(UUID(each["id"]) for each in receipt["containers"])
    assert set(named.values()) == {1}
    assert {*subject} < {*named}  # and the subject's own
    assert done["removed"]["containers"] == len(named) == 4
    assert all("leaf" in each for each in receipt["containers"])
    erased = await removals(cell, "privacy.erasure")
    assert erased == named
    leaving = open_document(note, keys)[1]
    assert (leaving["containers"], leaving["keys"]["root_keys"]) == (3, 1)
    assert await removals(cell, "offboard") == dict.fromkeys(left, 1)
    journal = {each.container for each in read_journal(cell.parts.services.privacy.deletions.folder)}
    assert journal >= {*old, *named}
