"""The log's own retention: the tenant's policy, what the leader drops, and what stays provable and is told."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest

from app.audit.event import decode
from app.audit.verify import Report, verify
from app.identity import NO_UUID
from app.services.audit_cross_check import cross_check
from tests.audit.conftest import a_turn, events, sealed, verifier_keys
from tests.audit.journal_rows import superuser
from tests.cell import REGION, Cell, Tenant

pytestmark = pytest.mark.usefixtures("one_day")  # months are counted


async def test_the_policy_is_13_months_and_at_least_12_and_an_administrators_to_change(
    cell: Cell, tenant: Tenant
) -> None:
    found = (await tenant.auditor.get("/v1/audit/retention")).json()
    assert (found["months"], found["dropped"], found["held"]) == (13, [], [])
    for months in (11, 121, "13"):
        assert (await tenant.admin.patch("/v1/audit/retention", json={"months": months})).status_code == 422
    assert (await tenant.auditor.patch("/v1/audit/retention", json={"months": 24})).status_code == 403
    changed = await tenant.admin.patch("/v1/audit/retention", json={"months": 24})
    assert (changed.status_code, changed.json()["months"]) == (200, 24)
    event = (await events(tenant, action="audit.retention"))[0]
    assert event["detail"] == {"months": 24, "before": 13}
    other = await cell.tenant("other")
    assert (await other.auditor.get("/v1/audit/retention")).json()["months"] == 13


async def test_g4_the_leader_drops_what_is_due_and_nothing_else_and_the_rest_stays_provable(
    cell: Cell, tenant: Tenant
) -> None:
    audit = cell.parts.services.audit
    await a_turn(tenant)
    await sealed(cell, tenant)
    kept = (await tenant.auditor.get("/v1/audit/checkpoint")).content
    gone = (await events(tenant, order="oldest"))[0]["id"]
    archived = (await tenant.auditor.get("/v1/audit/export")).content
    await aged(cell, tenant.id)
    others = [log for log in await logs(cell) if log != tenant.id]
    for log in others:
        await aged(cell, log)
    assert await audit.retention.drop_due() == 0
    held = (await tenant.auditor.get("/v1/audit/retention")).json()["held"]
    assert held == []  # this tenant's part may go: others' aren't exported
    for log in others:
        await exported(cell, log)
    await tenant.admin.patch("/v1/audit/retention", json={"months": 36})
    assert await audit.retention.drop_due() == 0
    held = (await tenant.auditor.get("/v1/audit/retention")).json()["held"]
    assert [one["why"] for one in held] == ["the month is kept for 36 months"]
    await tenant.admin.patch("/v1/audit/retention", json={"months": 12})
    assert await audit.retention.drop_due() == 1
    audit.sealer.start()
    await sealed(cell, tenant)

    told = (await tenant.auditor.get("/v1/audit/retention")).json()
    first = told["dropped"][0]
    assert (first["epoch"], first["first"], first["events"]) == (1, 0, first["end"])
    assert datetime.fromisoformat(told["oldest_event"]) > datetime.fromisoformat(first["newest"])
    event = (await events(tenant, action="audit.retention"))[0]
    assert {**event["detail"], "month": ""} == {"epoch": 1, "first": 0, "end": first["end"], "month": ""}
    page = (await tenant.auditor.get("/v1/audit/events", params={"to": first["newest"]})).json()
    assert (page["events"], len(page["dropped"])) == ([], 1)
    counted = (
        await tenant.auditor.get("/v1/audit/summary", params={"from": first["oldest"], "to": first["newest"]})
    ).json()
    assert (counted["events"], len(counted["dropped"])) == (0, 1)
    assert "dropped" not in (await tenant.auditor.get("/v1/audit/events", params={"from": told["oldest_event"]})).json()
    assert len(await audit.retention.dropped(tenant.id, None, None)) == 1
    assert (await tenant.auditor.get("/v1/audit/proof/inclusion", params={"event": gone})).status_code == 404
    refused = await tenant.auditor.get("/v1/audit/export", params={"to": first["oldest"]})
    assert refused.status_code == 404

    size = int(kept.split(b"\n")[1])
    proof = await tenant.auditor.get("/v1/audit/proof/consistency", params={"from": size})
    assert proof.status_code == 200
    export = await tenant.auditor.get("/v1/audit/export", params={"known": size})
    keys = await verifier_keys(tenant)
    report = verify(export.content.splitlines(), keys, kept)
    assert (report.exit_code, report.first) == (0, first["end"]), report.findings
    assert verify(archived.splitlines(), keys).exit_code == 0
    assert decode(archived.splitlines()[2])["id"] == gone


async def begun_anew(cell: Cell, tenant: Tenant) -> int:
    """Everything that was sealed is dropped, and a turn follows; answers the first leaf that is stored."""
    for number in range(3):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    await cell.parts.services.audit.sealer.close()
    for log in await logs(cell):
        await exported(cell, log)
        await aged(cell, log)
    assert await cell.parts.services.audit.retention.drop_due() == 1
    cell.parts.services.audit.sealer.start()
    for number in range(3):
        await a_turn(tenant, 10 + number)
    await sealed(cell, tenant)
    return int((await tenant.auditor.get("/v1/audit/retention")).json()["dropped"][-1]["end"])


CHANGED = {
    "deleted": ("DELETE FROM confide_audit.event WHERE tenant_id = $1 AND leaf = $2", 0),
    "edited": (
        (
            "UPDATE confide_audit.event SET entry = replace(convert_from(entry, 'UTF8'), 'allowed', 'a11owed')::bytea"
            " WHERE tenant_id = $1 AND leaf = $2 + 1"
        ),
        1,
    ),
    "inserted where everything was dropped": (
        (
            "INSERT INTO confide_audit.event SELECT tenant_id, epoch, $2 - 1, sealed_at, gen_random_uuid(), time,"
            " action, outcome, principal, api_key, container, kek, kms_request_id, purpose, entry"
            " FROM confide_audit.event WHERE tenant_id = $1 AND leaf = $2 + 1"
        ),
        None,
    ),
}


async def test_g4_what_is_changed_beside_a_dropped_range_is_found(cell: Cell, tenant: Tenant) -> None:
    first = await begun_anew(cell, tenant)
    keys = await verifier_keys(tenant)
    pool = cell.parts.services.audit.pools[0]

    async def found() -> Report:
        await sealed(cell, tenant)
        export = await tenant.auditor.get("/v1/audit/export")
        return verify(export.content.splitlines(), keys)

    async with superuser(cell.url, replica=True) as admin:
        for what, (change, place) in CHANGED.items():
            report = await found()
            assert (report.exit_code, report.first) == (0, first), (what, report.findings)
            rows = await admin.fetch("SELECT * FROM confide_audit.event WHERE tenant_id = $1", tenant.id)
            await admin.execute(change, tenant.id, first)
            report = await found()
            assert report.exit_code == 1, what
            assert report.first_bad_leaf == (report.end if place is None else first + place), what
            ids = [row["id"] for row in rows]
            await admin.execute(
                "DELETE FROM confide_audit.event WHERE tenant_id = $1 AND (id = ANY($2) OR leaf < $3)",
                tenant.id,
                ids,
                first,
            )
            await admin.copy_records_to_table("event", schema_name="confide_audit", records=rows)
        before = {finding.kind for finding in (await cross_check(pool, tenant.id, REGION)).findings}
        await admin.execute(
            "INSERT INTO confide_audit.dropped SELECT tenant_id, epoch, beyond, beyond + 2, oldest, newest, 2"
            " FROM confide_audit.dropped WHERE tenant_id = $1",
            tenant.id,
        )
        await admin.execute("DELETE FROM confide_audit.event WHERE tenant_id = $1 AND leaf < $2", tenant.id, first + 2)
    kinds = {finding.kind for finding in (await cross_check(pool, tenant.id, REGION)).findings}
    assert kinds - before == {"dropped-unknown"}


async def test_g11_operators_read_the_cells_own_log_and_nobody_elses(cell: Cell, tenant: Tenant) -> None:
    await sealed(cell, tenant)
    found = (await cell.operator.get("/v1/cell/audit/events", params={"limit": 1000})).json()["events"]
    assert {event["tenant"] for event in found} == {str(NO_UUID)}
    assert "tenant.create" in {event["action"] for event in found}
    note = await cell.operator.get("/v1/cell/audit/checkpoint")
    assert note.text.split("\n")[0].endswith(str(NO_UUID))
    await sealed(cell, tenant)
    size = int(note.text.split("\n")[1])
    export = await cell.operator.get("/v1/cell/audit/export", params={"known": size})
    listed = (await cell.operator.get("/v1/cell/audit/checkpoints")).json()
    report = verify(export.content.splitlines(), listed["keys"], note.content)
    assert (report.exit_code, report.tenant) == (0, str(NO_UUID))
    proof = await cell.operator.get("/v1/cell/audit/proof/inclusion", params={"event": found[-1]["id"]})
    assert proof.status_code == 200
    await sealed(cell, tenant)
    consistency = await cell.operator.get("/v1/cell/audit/proof/consistency", params={"from": size})
    assert consistency.status_code == 200
    assert (await cell.operator.get("/v1/cell/audit/summary")).json()["action"]["tenant.create"] == 1
    for path in ("events", "summary", "checkpoint", "checkpoints", "export"):
        for client in (tenant.auditor, tenant.admin, tenant.runtime):
            assert (await client.get(f"/v1/cell/audit/{path}")).status_code == 403
        if path != "checkpoint":
            assert (await cell.operator.get(f"/v1/audit/{path}")).status_code == 403


async def logs(cell: Cell) -> list[UUID]:
    async with superuser(cell.url) as admin:
        return [row["tenant_id"] for row in await admin.fetch("SELECT tenant_id FROM confide_audit.log")]


async def exported(cell: Cell, log: UUID) -> None:
    """As its reader would have done it while the sealer ran."""
    await cell.parts.services.audit.signing.checkpoint(log)
    async with superuser(cell.url) as admin:
        await admin.execute(
            "INSERT INTO confide_audit.exported (tenant_id, epoch, first, beyond, event)"
            " SELECT tenant_id, epoch, 0, size, gen_random_uuid() FROM confide_audit.log WHERE tenant_id = $1",
            log,
        )


async def aged(cell: Cell, log: UUID) -> None:
    """As if everything of that log that was exported, or else all, had been sealed two years ago."""
    async with superuser(cell.url, replica=True) as admin:
        month = await admin.fetchval(
            "SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '2 years')::date"
        )
        await cell.parts.services.audit.sealer.close()
        await admin.execute("SELECT confide_audit.make_event_partitions($1)", month)
        beyond = await admin.fetchval(
            "SELECT coalesce((SELECT max(beyond) FROM confide_audit.exported WHERE tenant_id = $1),"
            " (SELECT size FROM confide_audit.log WHERE tenant_id = $1))",
            log,
        )
        await admin.execute(
            "UPDATE confide_audit.event SET sealed_at = sealed_at - interval '2 years',"
            " time = time - interval '2 years'"
            " WHERE tenant_id = $1 AND leaf < $2",
            log,
            beyond,
        )
