"""The cross-check finds what somebody changed behind the service's back, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.identity import NO_UUID
from app.services.audit_cross_check import cross_check
from tests.audit.conftest import a_turn, events, sealed
from tests.audit.journal_rows import superuser
from tests.cell import REGION, Cell, Tenant

ROOT = Path(__file__).parents[2]


async def kinds(cell: Cell, tenant: Tenant) -> list[str]:
    """Of all containers at one time; two at a time must find the same."""
    pool = cell.parts.services.audit.pools[0]
    whole, parts = [await cross_check(pool, tenant.id, REGION, every) for every in (1000, 2)]
    assert sorted(whole.findings, key=str) == sorted(parts.findings, key=str)
    assert (whole.containers, whole.events) == (parts.containers, parts.events)
    return sorted(finding.kind for finding in whole.findings)


async def live_a_little(tenant: Tenant) -> dict[str, Any]:
    """Every kind of change that a dialogue makes; answers the session that lives on."""
    first = await a_turn(tenant, 1)
    await a_turn(tenant, 1, "again")
    session = first["session"]["id"]
    base = f"/v1/sessions/{session}"
    for key in ("a", "b", "c"):
        done = await tenant.runtime.put(
            f"{base}/context/notes/{key}", content=b"note", headers={"content-type": "text/plain"}
        )
        assert done.status_code in {200, 201}, done.text
    await tenant.runtime.put(f"{base}/context/notes/a", content=b"newer", headers={"content-type": "text/plain"})
    await tenant.runtime.delete(f"{base}/context/notes/b")
    for text in ("one", "two"):
        turns = {"turns": [{"json": {"text": text}}]}
        assert (await tenant.runtime.post(f"{base}/turns", json=turns)).status_code in {200, 201}
    popped = await tenant.runtime.post(f"{base}/turns/pop", json={"count": 1})
    assert popped.status_code == 200, popped.text
    branch = await tenant.runtime.post(f"{base}/branch", json={})
    assert branch.status_code in {200, 201}, branch.text
    gone = await a_turn(tenant, 2)
    assert (await tenant.runtime.delete(f"/v1/sessions/{gone['session']['id']}")).status_code == 204
    cleared = await a_turn(tenant, 3)
    await tenant.runtime.delete(f"/v1/sessions/{cleared['session']['id']}/turns")
    return first


async def test_g2_an_honest_store_agrees_with_its_log_before_and_after_sealing(cell: Cell, tenant: Tenant) -> None:
    await live_a_little(tenant)
    assert await kinds(cell, tenant) == []
    await sealed(cell, tenant)
    assert await kinds(cell, tenant) == []


PLANTED = {
    "object-version": "UPDATE confide.context_object SET version = id WHERE container_id = '{session}' {item}",
    "object-missing": "DELETE FROM confide.context_object WHERE container_id = '{session}' {item}",
    "commit-number": "UPDATE confide.container SET commit_number = commit_number - 1 WHERE id = '{session}'",
    "container-missing": "DELETE FROM confide.container WHERE id = '{session}'",
    "turn-missing": "DELETE FROM confide.turn WHERE container_id = '{session}' AND number = 1",
    "turn-removed": "UPDATE confide.turn SET removed_at = now(), body = NULL"
    " WHERE container_id = '{session}' AND number = 1",
    "turn-head": "UPDATE confide.container SET turn_head = turn_head - 1 WHERE id = '{session}'",
}


async def test_g2_rows_put_back_or_deleted_behind_the_services_back_are_named(cell: Cell, tenant: Tenant) -> None:
    await live_a_little(tenant)
    sessions = {kind: await a_turn(tenant, number) for number, kind in enumerate(PLANTED, 10)}
    await sealed(cell, tenant)
    async with superuser(cell.url) as admin:
        for kind, turn in sessions.items():
            session = turn["session"]["id"]
            item = await admin.fetchval(
                "SELECT id FROM confide.context_object WHERE container_id = $1 LIMIT 1", session
            )
            await admin.execute(PLANTED[kind].format(session=session, item=f"AND id = '{item}'"))
    report = await cross_check(cell.parts.services.audit.pools[0], tenant.id, REGION)
    named = {finding.container: finding.kind for finding in report.findings}
    assert named == {turn["session"]["id"]: kind for kind, turn in sessions.items()}


INDEX = {
    "deleted": ("DELETE FROM confide_audit.event_object WHERE id = $1", {"index-missing"}),
    "another object": (
        "UPDATE confide_audit.event_object SET object = gen_random_uuid() WHERE id = $1",
        {"index-missing", "index-surplus"},
    ),
    "another time": (
        "UPDATE confide_audit.event_object SET time = time + interval '1 us' WHERE id = $1",
        {"index-missing", "index-surplus"},
    ),
    "another event": (
        (
            "UPDATE confide_audit.event_object SET id = (SELECT id FROM confide_audit.event WHERE leaf = 0"
            " ORDER BY tenant_id LIMIT 1) WHERE id = $1"
        ),
        {"index-missing", "index-surplus"},
    ),
    "inserted": (
        (
            "INSERT INTO confide_audit.event_object SELECT tenant_id, gen_random_uuid(), time, id, sealed_at"
            " FROM confide_audit.event_object WHERE id = $1"
        ),
        {"index-surplus"},
    ),
    "sealed at": (
        "UPDATE confide_audit.event SET sealed_at = sealed_at + interval '1 us' WHERE id = $1",
        {"index-missing", "index-surplus"},
    ),
    "sealed early": (
        (
            "UPDATE confide_audit.event SET sealed_at = sealed_at - interval '1 h' WHERE leaf ="
            " (SELECT leaf - 1 FROM confide_audit.event WHERE id = $1)"
            " AND tenant_id = (SELECT tenant_id FROM confide_audit.event WHERE id = $1)"
        ),
        {"sealed-order"},
    ),
    "sealed late": (
        (
            "UPDATE confide_audit.event SET sealed_at = sealed_at + interval '1 h' WHERE leaf ="
            " (SELECT leaf - 1 FROM confide_audit.event WHERE id = $1)"
            " AND tenant_id = (SELECT tenant_id FROM confide_audit.event WHERE id = $1)"
        ),
        {"sealed-order"},
    ),
}


async def test_g4_rows_that_no_leaf_covers_are_held_against_the_events(cell: Cell, tenant: Tenant) -> None:
    await live_a_little(tenant)
    await sealed(cell, tenant)
    await cell.parts.services.audit.sealer.close()
    event = (await events(tenant, action="context.commit"))[0]["id"]
    pool = cell.parts.services.audit.pools[0]
    async with superuser(cell.url, replica=True) as admin:
        copies = {}
        for table in ("event", "event_object"):
            copies[table] = await admin.fetch(f"SELECT * FROM confide_audit.{table}")
        for what, (change, kinds_) in INDEX.items():
            assert (await cross_check(pool, tenant.id, REGION)).findings == [], what
            await admin.execute(change.replace("$1", f"'{event}'"))
            found = {finding.kind for finding in (await cross_check(pool, tenant.id, REGION)).findings}
            assert found >= kinds_, what
            assert found <= kinds_ | ({"sealed-order", "index-missing", "index-surplus"} if "sealed" in what else set())
            for table, rows in copies.items():
                await admin.execute(f"DELETE FROM confide_audit.{table}")
                await admin.copy_records_to_table(table, schema_name="confide_audit", records=rows)


async def test_the_command_names_the_row_and_exits_with_1(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    first = await a_turn(tenant)
    await sealed(cell, tenant)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    environment |= {
        "CONFIDE_ENV": "dev",
        "CONFIDE_REGION": REGION,
        "CONFIDE_DATABASE_URL": cell.url,
        "CONFIDE_STATE_DIR": str(tmp_path / "other-state"),
    }

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", "audit", "cross-check", "--json"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    honest = run()
    assert honest.returncode == 0, honest.stdout + honest.stderr
    async with superuser(cell.url, replica=True) as admin:
        await admin.execute(
            "UPDATE confide_audit.event SET sealed_at = now() + interval '1 hour' WHERE tenant_id = $1 AND leaf = 0",
            NO_UUID,
        )
    found = run()
    assert [finding["kind"] for finding in json.loads(found.stdout)["findings"]].count("sealed-order") >= 1
    async with superuser(cell.url) as admin:
        await admin.execute("DELETE FROM confide.context_object WHERE container_id = $1", first["session"]["id"])
    found = run()
    assert found.returncode == 1
    [finding] = [one for one in json.loads(found.stdout)["findings"] if one["kind"] != "sealed-order"]
    assert (finding["kind"], finding["container"]) == ("object-missing", first["session"]["id"])
