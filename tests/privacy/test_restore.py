"""G8: what was erased stays erased after a restore, from pg_dump and from pg_basebackup."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.embedded import EmbeddedPostgres
from app.main import replay_deletions
from app.services import backup
from app.services.deletion_journal import Deletion
from app.services.erasure import REQUESTED
from app.store.cell import make_database
from app.store.migrate import upgrade
from tests.cell import Cell, Tenant, running_cell, settings_of
from tests.conftest import with_database
from tests.keys.waiting import ended
from tests.privacy.made import dialogue, expire, rows_of, until
from tests.privacy.test_erasure import finished


@dataclass
class Story:
    """What was stored when the backup was taken."""

    tenant: Tenant
    leaver: UUID
    kept: UUID
    erased: UUID
    deleted: UUID
    expired: UUID
    trimmed: UUID
    moved: UUID


async def before_backup(cell: Cell) -> Story:
    tenant, leaver = await cell.tenant("acme"), await cell.tenant("leaver")
    await dialogue(leaver, "call-1")
    names = ("kept", "erased", "deleted", "expired", "trimmed", "moved")
    made = {name: await dialogue(tenant, name, f"customer-{name}") for name in names}
    for key in ("first", "second", "third"):
        await note(tenant, made["moved"], key, "as the backup has it")
    cell.leaver = leaver  # type: ignore[attr-defined]
    return Story(tenant, leaver.id, **made)


async def note(tenant: Tenant, session: UUID, key: str, text: str) -> None:
    done = await tenant.runtime.put(f"/v1/sessions/{session}/context/notes/{key}", json=text)
    assert done.status_code in {200, 201}, done.text


async def rekey_and_delete(cell: Cell, story: Story) -> None:
    """Every object gets another id twice; what is deleted in between, and after, the backup knows by its first."""
    tenant = story.tenant
    await note(tenant, story.moved, "first", "written anew since the backup")
    for key in ("first", "second"):
        job = (await tenant.admin.post("/v1/keys/rekey")).raise_for_status().json()["job"]
        await ended(tenant, job)
        gone = await tenant.runtime.delete(f"/v1/sessions/{story.moved}/context/notes/{key}")
        assert gone.status_code == 200, gone.text
    # What a rekey moved isn't there under its former id, but nobody deleted it.
    assert await cell.parts.services.privacy.retention.catch_up() == 0


async def after_backup(cell: Cell, story: Story) -> None:
    tenant = story.tenant
    asked = await tenant.admin.post("/v1/privacy/erasures", json={"subject": "customer-erased"})
    await finished(tenant, asked.json()["id"])
    assert (await tenant.runtime.delete(f"/v1/sessions/{story.deleted}")).status_code == 204
    assert (await tenant.runtime.delete(f"/v1/sessions/{story.trimmed}/context/state/slots")).status_code == 200
    assert (await tenant.runtime.post(f"/v1/sessions/{story.trimmed}/turns/pop", json={})).status_code == 200
    await expire(cell, story.expired)
    await cell.parts.services.privacy.retention.sweep_all()
    await rekey_and_delete(cell, story)
    leaver: Tenant = cell.leaver  # type: ignore[attr-defined]
    assert (await leaver.admin.post("/v1/privacy/offboarding", json={"confirm": "leaver"})).status_code == 202

    async def left() -> Any:
        return (await leaver.auditor.get("/v1/privacy/offboarding")).json().get("receipt")

    await until(left)


def again(cell: Cell, tenant: Tenant, role: str) -> httpx2.AsyncClient:
    return cell.client(tenant.keys[role])


async def check_restored(url: str, state: Path, story: Story) -> None:
    """Serve from the restored database: what was erased is gone, what was kept can be read."""
    async with running_cell(url, state) as cell:
        runtime = again(cell, story.tenant, "runtime")
        for gone in (story.erased, story.deleted, story.expired):
            assert await rows_of(cell, gone) == 0
            assert (await runtime.get(f"/v1/sessions/{gone}")).status_code == 404
        kept = await runtime.post("/v1/load", json={"session": str(story.kept), "context": [{}], "turns": {"last": 9}})
        assert kept.status_code == 200, kept.text
        assert kept.json()["session"]["context"][0]["json"] == {"city": "Bern"}
        trimmed = await runtime.post(
            "/v1/load", json={"session": str(story.trimmed), "context": [{}], "turns": {"last": 9}}
        )
        assert trimmed.json()["session"].get("context", []) == []
        assert [turn["number"] for turn in trimmed.json()["turns"]] == [1]
        moved = await runtime.post("/v1/load", json={"session": str(story.moved), "context": [{"collection": "notes"}]})
        assert [each["key"] for each in moved.json()["session"]["context"]] == ["third"]
        auditor = again(cell, story.tenant, "auditor")
        events = (await auditor.get("/v1/audit/events", params={"action": "privacy.erasure"})).json()["events"]
        assert any(event.get("detail", {}).get("step") == "replayed" for event in events)


async def erased_rows(url: str, story: Story) -> int:
    connection = await asyncpg.connect(url)
    try:
        ids = [story.erased, story.deleted, story.expired]
        return await connection.fetchval("SELECT count(*) FROM confide.container WHERE id = ANY ($1)", ids)
    finally:
        await connection.close()


@pytest.mark.timeout(600)
async def test_g8_what_was_erased_stays_erased_after_a_dump_is_restored(
    database: str, postgres: str, tmp_path: Path
) -> None:
    state, data, keys = tmp_path / "state", tmp_path / "data", tmp_path / "keys"
    async with running_cell(database, state) as cell:
        story = await before_backup(cell)
        await backup.dump(database, data, keys)
        await after_backup(cell, story)
    name = f"test_{secrets.token_hex(8)}"
    await make_database(postgres, name)
    restored = with_database(postgres, name)
    try:
        await backup.restore(restored, data, keys)
        assert await erased_rows(restored, story) == 3  # without the replay they would all be back
        done = await replay_deletions(settings_of(restored, state))
        assert (done.tenants, done.objects, done.turns) == (1, 3, 1)
        assert done.containers >= 4
        await check_restored(restored, state, story)
        again_done = await replay_deletions(settings_of(restored, state))  # may be run again
        assert (again_done.containers, again_done.objects, again_done.turns) == (0, 0, 0)
    finally:
        connection = await asyncpg.connect(postgres)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


async def test_g8_the_dump_of_data_holds_no_wrapped_key(database: str, tmp_path: Path) -> None:
    async with running_cell(database, tmp_path / "state") as cell:
        await dialogue(await cell.tenant(), "call-1")
        connection = await asyncpg.connect(database)
        sealed = [row[0] for row in await connection.fetch("SELECT sealed FROM confide_keys.root_key")]
        await connection.close()
    await backup.dump(database, tmp_path / "data", tmp_path / "keys")
    program = await backup.find_program("pg_restore", database)
    await backup.run(program, [f"--file={tmp_path / 'data.sql'}", str(tmp_path / "data" / backup.DATA)], database)
    await backup.run(program, [f"--file={tmp_path / 'keys.sql'}", str(tmp_path / "keys" / backup.KEYS)], database)
    data, keys = (tmp_path / "data.sql").read_text(), (tmp_path / "keys.sql").read_text()
    assert sealed
    assert all(each.hex() not in data and each.hex() in keys for each in sealed)


def own(path: Path, like: Path) -> None:
    """Give ``path`` the owner that the embedded server's own files have."""
    if os.getuid() == 0:
        status = like.stat()
        for each in [path, *path.rglob("*")]:
            os.chown(each, status.st_uid, status.st_gid)


@pytest.mark.timeout(600)
async def test_g8_what_was_erased_stays_erased_after_a_physical_restore(tmp_path: Path) -> None:
    original, restored, state = tmp_path / "original", tmp_path / "restored", tmp_path / "state"
    with EmbeddedPostgres.start(original, durable=False) as server:
        connection = await asyncpg.connect(server.superuser_url())
        await connection.execute("ALTER SYSTEM SET max_wal_senders = 4")
        await connection.close()
    with EmbeddedPostgres.start(original, durable=False) as server:
        with (original / "data" / "pg_hba.conf").open("a") as access:
            access.write("host replication all 127.0.0.1/32 scram-sha-256\n")
        connection = await asyncpg.connect(server.superuser_url())
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        await make_database(server.superuser_url(), "confide")
        url = server.superuser_url("confide")
        await asyncio.to_thread(upgrade, url)
        async with running_cell(url, state) as cell:
            story = await before_backup(cell)
            await backup.base_backup(url, tmp_path / "backup")
            await after_backup(cell, story)
    restored.mkdir()
    shutil.copytree(tmp_path / "backup" / backup.BASE, restored / "data")
    shutil.copy(original / "superuser.password", restored / "superuser.password")
    own(restored, original / "data")
    with EmbeddedPostgres.start(restored, durable=False) as server:
        url = server.superuser_url("confide")
        assert await erased_rows(url, story) == 3
        done = await replay_deletions(settings_of(url, state))
        assert done.containers >= 4
        await check_restored(url, state, story)


async def test_g8_an_erasure_that_was_accepted_is_carried_out_after_a_restore_that_lost_its_job(
    database: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with running_cell(database, state) as cell:
        tenant = await cell.tenant()
        session = await dialogue(tenant, "call-1", "customer-1")
        # Accepted and journalled; then the database went back to a moment before.
        await cell.parts.services.privacy.deletions.append([Deletion(tenant.id, REQUESTED, session)])
    done = await replay_deletions(settings_of(database, state))
    assert done.requests == 1
    async with running_cell(database, state) as cell:

        async def gone() -> bool:
            return await rows_of(cell, session) == 0

        await until(gone)


async def test_g8_a_second_replay_spares_what_was_written_later_under_the_same_numbers(
    database: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with running_cell(database, state) as cell:
        tenant = await cell.tenant()
        session = await dialogue(tenant, "call-1")
        long_ago = datetime.now(UTC) - timedelta(days=1)
        old = Deletion(tenant.id, "turns.pop", session, turns=(1, 9), at=long_ago)
        await cell.parts.services.privacy.deletions.append([old])
    assert (await replay_deletions(settings_of(database, state))).turns == 0
