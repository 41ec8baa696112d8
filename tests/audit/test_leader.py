"""A leader that stands still is replaced within seconds, and can neither write nor sign once it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.audit.verify import verify
from app.errors import Unavailable
from app.services.audit_signing import Forked
from app.services.audit_witness import Seen, Witness, WitnessError
from app.services.sealer import Sealer
from app.store import audit_seal
from app.store.audit_pool import STALLED, audit_connector
from tests.audit.conftest import a_turn, sealed, verifier_keys
from tests.audit.journal_rows import append, by_hand, superuser
from tests.cell import REGION, Cell, Tenant, running_cell

ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, sys
from pathlib import Path
from tests.cell import running_cell

async def main():
    async with running_cell(sys.argv[1], Path(sys.argv[2])) as cell:
        sealer = cell.parts.services.audit.sealer
        told = None
        while True:
            if sealer.leading != told:
                told = sealer.leading
                print("leading" if told else "following", flush=True)
            await asyncio.sleep(0.05)

asyncio.run(main())
"""


def started(database: str, state: Path, said: Path) -> subprocess.Popen[bytes]:
    """A worker in a process of its own."""
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, database, str(state)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


async def until(done: Any, seconds: float, what: str) -> float:
    began = time.monotonic()
    while not await done():
        assert time.monotonic() - began < seconds, what
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def standing(url: str) -> tuple[Any, int]:
    async with superuser(url) as admin:
        row = await admin.fetchrow("SELECT leader, term FROM confide_audit.sealer")
        return row["leader"], row["term"]


async def test_g7_a_stopped_leader_is_replaced_and_is_fenced_off_when_it_goes_on(database: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = started(database, state, tmp_path / "said")
    try:
        async with superuser(database) as admin:

            async def led() -> bool:
                return bool(await admin.fetchval("SELECT term > 0 FROM confide_audit.sealer"))

            await until(led, 60, "the process doesn't lead")
        async with running_cell(database, state) as cell:
            tenant = await cell.tenant()
            await sealed(cell, tenant)
            sealer = cell.parts.services.audit.sealer
            before = await standing(database)
            assert not sealer.leading
            process.send_signal(signal.SIGSTOP)
            await a_turn(tenant)

            async def leads() -> bool:
                return sealer.leading

            await until(leads, 45, "nobody took the lead")
            await sealed(cell, tenant)
            kept = (await tenant.auditor.get("/v1/audit/checkpoint")).content
            after = await standing(database)
            assert after[1] == before[1] + 1
            process.send_signal(signal.SIGCONT)

            async def follows() -> bool:
                return (tmp_path / "said").read_text().split()[-1] == "following"

            await until(follows, 60, "the one that was stopped believes that it leads")
            await a_turn(tenant, 2)
            await sealed(cell, tenant)
            assert await standing(database) == after  # the one that was stopped doesn't lead, and changed nothing
            assert sealer.leading
            export = await tenant.auditor.get("/v1/audit/export", params={"known": int(kept.split(b"\n")[1])})
            report = verify(export.content.splitlines(), await verifier_keys(tenant), kept)
            assert (report.exit_code, report.origin.endswith(str(tenant.id))) == (0, True)
    finally:
        process.kill()
        process.wait()


async def test_g4_a_leader_of_an_older_term_can_commit_nothing(cell: Cell, tenant: Tenant) -> None:
    async with by_hand(cell):
        await append(cell, tenant.id)
        connect = audit_connector(cell.url, **STALLED)
        old, new = await connect(), await connect()
        audit = cell.parts.services.audit
        stale, fresh = (Sealer(REGION, connect, audit.signing, cell.parts.services.auditing) for _ in range(2))
        async with superuser(cell.url) as admin:
            await admin.execute("UPDATE confide_audit.sealer SET lease_until = now(), locked = false")
        assert await stale.take(old)
        assert not await fresh.take(new)
        stands_still = old.transaction()
        await stands_still.start()
        await stale.hold(old)

        async def taken() -> bool:
            try:
                return await fresh.take(new)
            except asyncpg.LockNotAvailableError:
                return False

        await until(taken, 60, "the lead isn't free")
        await fresh.poll(new)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await old.execute("SELECT 1")
        another = await connect()
        with pytest.raises(audit_seal.LostRace):
            await stale.hold(another)
        for connection in (old, new, another):
            connection.terminate()


async def test_g4_a_lock_that_stands_still_is_broken_and_its_holder_publishes_nothing(tmp_path: Path) -> None:
    stopped, other = Witness(tmp_path, break_seconds=0.3), Witness(tmp_path, break_seconds=0.3)
    one, two = Seen("log", 10, b"1" * 32), Seen("log", 12, b"2" * 32)
    async with stopped.locked():
        await stopped.append([one])
        async with other.locked():
            assert other.latest("log") == one
            await other.append([two])
        with pytest.raises(WitnessError, match="lost"):
            await stopped.append([Seen("log", 11, b"3" * 32)])
    async with stopped.locked():
        assert stopped.latest("log") == two


async def test_g4_a_smaller_tree_never_takes_the_place_of_a_larger_and_two_of_one_size_stop_everything(
    tmp_path: Path,
) -> None:
    witness = Witness(tmp_path)
    async with witness.locked():
        await witness.append([Seen("log", 12, b"2" * 32)])
        await witness.append([Seen("log", 11, b"3" * 32)])
    reader = Witness(tmp_path)
    async with reader.locked():
        assert reader.latest("log") == Seen("log", 12, b"2" * 32)
        with pytest.raises(WitnessError, match="two trees"):
            await reader.append([Seen("log", 12, b"4" * 32)])
    with pytest.raises(WitnessError, match="two trees"):
        async with Witness(tmp_path).locked():
            raise AssertionError


async def test_g4_the_witness_outlives_crashes_in_the_middle_of_a_line(tmp_path: Path) -> None:
    witness, other = Witness(tmp_path), Witness(tmp_path)
    one, two = Seen("log", 1, b"1" * 32), Seen("log", 2, b"2" * 32)
    async with witness.locked():
        await witness.append([one])
    with (tmp_path / "witness.log").open("ab") as file:
        file.write(b"log 7 AAAA")
    async with other.locked():
        assert other.latest("log") == one
        await other.append([two])
    async with witness.locked():
        assert witness.latest("log") == two
    lines = (tmp_path / "witness.log").read_text().splitlines()
    assert [line.endswith(" torn") for line in lines] == [False, True, False]


async def test_g4_the_witness_is_compacted_without_losing_an_origin(tmp_path: Path) -> None:
    witness = Witness(tmp_path, compact_bytes=1000)
    for size in range(1, 50):
        async with witness.locked():
            await witness.append([Seen(f"log-{size % 3}", size, bytes([size]) * 32)])
    reader = Witness(tmp_path)
    async with reader.locked():
        assert {origin: seen.size for origin, seen in reader.all().items()} == {"log-0": 48, "log-1": 49, "log-2": 47}
    assert (tmp_path / "witness.log").stat().st_size < 1500


async def test_g4_a_tree_that_never_fitted_stays_unsigned_with_an_alarm_and_the_sealer_goes_on(
    cell: Cell, tenant: Tenant
) -> None:
    other = await cell.tenant("other")
    audit = cell.parts.services.audit
    async with by_hand(cell) as seal:
        await append(cell, tenant.id)
        sealer = await seal()
        (audit.signing.witness._folder / "witness.log").unlink()  # a new machine without the witness
        async with superuser(cell.url, replica=True) as admin:
            await admin.execute("DELETE FROM confide_audit.checkpoint WHERE tenant_id = $1", tenant.id)
            await admin.execute("UPDATE confide_audit.node SET hash = $2 WHERE tenant_id = $1", tenant.id, b"x" * 32)
        sealer._next_sign = 0.0
        before = cell.parts.services.auditing.alarms.get("audit-fork", 0)
        await append(cell, other.id)
        await seal()  # doesn't raise: a restart would find the same
        assert cell.parts.services.auditing.alarms["audit-fork"] == before + 1
        with pytest.raises(Forked) as caught:
            await audit.signing.sign([(tenant.id, 1)])
        assert not caught.value.signed_before
        with pytest.raises(Unavailable):
            await audit.signing.checkpoint(tenant.id)
        assert await audit.signing.checkpoint(other.id)


async def test_g3_what_else_the_leader_does_may_hang_and_events_are_sealed_all_the_same(
    cell: Cell, tenant: Tenant
) -> None:
    audit = cell.parts.services.audit
    await audit.sealer.close()
    hung = 0

    async def hang() -> None:
        nonlocal hung
        hung += 1
        await asyncio.sleep(3600)

    sealer = Sealer(REGION, audit_connector(cell.url), audit.signing, cell.parts.services.auditing, also=hang)
    sealer.start()
    try:
        for number in range(2):
            await a_turn(tenant, number)
            await sealed(cell, tenant)
        assert hung == 1
    finally:
        await sealer.close()
