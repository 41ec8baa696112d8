"""G8: what has reached its end goes, in time, and nothing else does."""

from __future__ import annotations

from datetime import timedelta

import asyncpg

from app.services.deletion_journal import DeletionJournal, read_journal
from tests.cell import Cell, Tenant
from tests.privacy.made import dialogue, expire, rows_of, sql


async def test_g8_expired_sessions_are_erased_with_rows_and_keys(cell: Cell, tenant: Tenant) -> None:
    kept, gone = await dialogue(tenant, "kept"), await dialogue(tenant, "gone")
    await expire(cell, gone)
    assert (await tenant.runtime.get(f"/v1/sessions/{gone}")).status_code == 404  # before any sweep
    await cell.parts.services.privacy.retention.sweep_all()
    assert await rows_of(cell, gone) == 0
    assert await rows_of(cell, kept) > 0
    events = (await tenant.auditor.get("/v1/audit/events", params={"action": "retention.expire"})).json()["events"]
    assert [event["container"] for event in events] == [str(gone)]
    assert events[0]["detail"]["keys"] == 1
    journal = list(read_journal(cell.parts.services.privacy.deletions.folder))
    assert [(each.container, each.why) for each in journal] == [(gone, "retention.expire")]


async def test_g8_a_session_that_was_used_again_is_not_swept_but_looked_at_later(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "busy")
    await sql(cell, "UPDATE confide.container SET sweep_at = now() - interval '1 minute' WHERE id = $1", session)
    assert await cell.parts.services.privacy.retention.sweep_all() == 0
    row = (await sql(cell, "SELECT expires_at, sweep_at FROM confide.container WHERE id = $1", session))[0]
    assert row["sweep_at"] == row["expires_at"]
    assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code == 200


async def test_g8_a_hold_outlasts_the_end_of_retention(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "held")
    assert (await tenant.runtime.patch(f"/v1/sessions/{session}", json={"hold": True})).status_code == 200
    await expire(cell, session)
    assert await cell.parts.services.privacy.retention.sweep_all() == 0
    assert await rows_of(cell, session) > 0


async def test_g8_the_sweep_does_not_wait_for_a_session_in_use(cell: Cell, tenant: Tenant) -> None:
    busy, free = await dialogue(tenant, "busy"), await dialogue(tenant, "free")
    await expire(cell, busy, free)
    other = await asyncpg.connect(cell.url)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM confide.container WHERE id = $1 FOR NO KEY UPDATE", busy)
            await cell.parts.services.privacy.retention.sweep()
            assert await rows_of(cell, free) == 0
            assert await rows_of(cell, busy) > 0
    finally:
        await other.close()
    await cell.parts.services.privacy.retention.sweep_all()
    assert await rows_of(cell, busy) == 0


async def test_g8_the_retention_page_shows_policy_oldest_data_and_no_overdue(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "one", "customer-1")
    page = (await tenant.auditor.get("/v1/privacy/retention")).json()
    assert page["overdue"] == 0
    assert page["policy"]["session_idle_seconds"] == timedelta(days=30).total_seconds()
    kinds = {each["kind"]: each for each in page["kinds"]}
    assert kinds["session"]["stored"] == 1
    assert kinds["subject"]["stored"] == 1
    # A planted failure: a sweeper that has stood still for an hour shows.
    await sql(cell, "UPDATE confide.container SET expires_at = now() - interval '1 hour' WHERE id = $1", session)
    assert (await tenant.auditor.get("/v1/privacy/retention")).json()["overdue"] == 1


async def test_g8_every_deletion_is_in_the_journal_outside_the_database(cell: Cell, tenant: Tenant) -> None:
    one, two = await dialogue(tenant, "one", "customer-1"), await dialogue(tenant, "two")
    assert (await tenant.runtime.delete(f"/v1/sessions/{one}/context/state/slots")).status_code == 200
    assert (await tenant.runtime.post(f"/v1/sessions/{one}/turns/pop", json={})).status_code == 200
    assert (await tenant.runtime.delete(f"/v1/sessions/{one}/turns")).status_code in {200, 204}
    assert (await tenant.runtime.delete(f"/v1/sessions/{two}")).status_code == 204
    pruned = {"session": str(one), "put": [{"collection": "log", "key": k, "json": 1} for k in ("a", "b", "c")]}
    assert (await tenant.runtime.post("/v1/commit", json=pruned)).status_code == 200
    pruned = {"session": str(one), "delete": [{"collection": "log", "key": "a"}, {"collection": "log", "key": "b"}]}
    done = await tenant.runtime.post("/v1/commit", json=pruned)
    assert done.status_code == 200, done.text
    journal = list(read_journal(cell.parts.services.privacy.deletions.folder))
    assert sum(each.object is not None for each in journal) == 3
    assert [each.turns for each in journal if each.turns] == [(2, 2), (1, 2)]
    assert [each.container for each in journal if each.object is None and each.turns is None] == [two]


async def test_g8_a_crash_between_commit_and_journal_is_made_up_for_from_the_audit_log(
    cell: Cell, tenant: Tenant
) -> None:
    one, two = await dialogue(tenant, "one"), await dialogue(tenant, "two")
    await tenant.runtime.delete(f"/v1/sessions/{one}/context/state/slots")
    await tenant.runtime.post(f"/v1/sessions/{one}/turns/pop", json={})
    await tenant.runtime.delete(f"/v1/sessions/{two}")
    deletions = cell.parts.services.privacy.deletions
    before = {each.key for each in read_journal(deletions.folder)}
    assert await cell.parts.services.privacy.retention.catch_up() == 0  # nothing is missing
    for path in deletions.folder.iterdir():
        path.unlink()
    await deletions.close()
    deletions = cell.parts.services.privacy.retention._journal = DeletionJournal(deletions.folder)
    (deletions.folder / "torn.deletions").write_bytes(b'{"v":1,"at":')
    assert await cell.parts.services.privacy.retention.catch_up() == 3
    assert {each.key for each in read_journal(deletions.folder)} == before
    await deletions.close()
