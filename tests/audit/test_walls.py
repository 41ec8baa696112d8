"""What the database itself refuses: changes of audit rows, other tenants' rows, and drops of what must stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from app.audit.event import commitment, decode
from app.audit.verify import verify
from app.identity import NO_UUID
from app.store.connection import connector
from tests.audit.conftest import a_turn, events, sealed, verifier_keys
from tests.audit.journal_rows import append_rows, by_hand, login, superuser
from tests.cell import Cell, Tenant

TABLES = ("event", "event_object", "node", "checkpoint", "exported", "journal")


async def test_g4_the_database_refuses_update_delete_and_truncate_on_audit_rows(cell: Cell, tenant: Tenant) -> None:
    await a_turn(tenant)
    await sealed(cell, tenant)
    await tenant.auditor.get("/v1/audit/export")
    service = await connector(cell.url)()
    await service.execute("SELECT set_config('confide.tenants', $1, false)", "{" + str(tenant.id) + "}")
    async with superuser(cell.url) as admin:
        await admin.execute("SET ROLE confide_owner")
        for table in TABLES:
            partitions = await admin.fetch(
                f"SELECT relid::text AS name FROM pg_partition_tree('confide_audit.{table}') WHERE isleaf"
            )
            names = [f"confide_audit.{table}", *(row["name"] for row in partitions)]
            for name in names:
                for statement in (
                    f"UPDATE {name} SET tenant_id = tenant_id",
                    f"DELETE FROM {name}",
                    f"TRUNCATE {name}",
                ):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await service.execute(statement)
            for statement in (f"UPDATE {names[0]} SET tenant_id = tenant_id", f"DELETE FROM {names[0]}"):
                with pytest.raises(asyncpg.RaiseError, match="never changed"):
                    await admin.execute(statement)
            for name in names:
                with pytest.raises(asyncpg.RaiseError, match="never changed"):
                    await admin.execute(f"TRUNCATE {name}")
    await service.close()


async def test_g6_the_service_sees_only_the_tenants_that_a_statement_names(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    await a_turn(tenant)
    await sealed(cell, tenant)
    service = await connector(cell.url)()
    for table in ("log", "event", "node", "checkpoint", "event_object"):
        assert await service.fetchval(f"SELECT count(*) FROM confide_audit.{table}") == 0
        await service.execute("SELECT set_config('confide.tenants', $1, false)", "{" + str(other.id) + "}")
        found = await service.fetch(f"SELECT DISTINCT tenant_id FROM confide_audit.{table}")
        assert {row["tenant_id"] for row in found} <= {other.id}
        await service.execute("SELECT set_config('confide.tenants', '', false)")
    await service.close()


async def test_g6_another_tenants_events_proofs_and_streams_do_not_exist(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    await a_turn(tenant)
    await sealed(cell, tenant)
    event = (await events(tenant))[0]
    assert (await other.auditor.get("/v1/audit/proof/inclusion", params={"event": event["id"]})).status_code == 404
    assert {one["tenant"] for one in await events(other)} == {str(other.id)}
    lines = (await other.auditor.get("/v1/audit/export")).content.splitlines()
    assert {decode(line)["tenant"] for line in lines if line.startswith(b"{")} == {str(other.id)}


async def test_g6_an_auditors_own_login_reads_his_tenant_and_nothing_else(cell: Cell, tenant: Tenant) -> None:
    await cell.tenant("other")
    await a_turn(tenant)
    await sealed(cell, tenant)
    async with login(cell.url, "confide_auditor") as auditor, superuser(cell.url) as admin:
        assert await auditor.fetchval("SELECT count(*) FROM confide_audit.events") == 0
        name = await auditor.fetchval("SELECT session_user")
        await admin.execute("SET ROLE confide_owner")
        await admin.execute("SELECT confide_audit.admit_auditor($1, $2)", name, tenant.id)
        rows = await auditor.fetch("SELECT tenant_id, action, entry FROM confide_audit.events")
        assert {row["tenant_id"] for row in rows} == {tenant.id}
        assert any(row["action"] == "context.commit" for row in rows)
        await auditor.execute("SELECT set_config('confide.tenants', $1, false)", "{" + str(NO_UUID) + "}")
        assert {row["tenant_id"] for row in await auditor.fetch("SELECT tenant_id FROM confide_audit.event")} == {
            tenant.id
        }
        for statement in (
            "SELECT * FROM confide_audit.journal",
            "SELECT * FROM confide_audit.auditor",
            "SELECT * FROM confide_audit.erasable",
            "SELECT * FROM confide.container",
            "SELECT * FROM confide_keys.root_key",
            "SELECT * FROM confide_audit.unsealed(now(), 1, NULL)",
            "INSERT INTO confide_audit.event SELECT * FROM confide_audit.event",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await auditor.execute(statement)


@pytest.mark.usefixtures("one_day")
async def test_a_day_of_the_journal_goes_only_when_every_row_is_sealed(cell: Cell, tenant: Tenant) -> None:
    old = datetime.now(UTC) - timedelta(days=5)
    async with by_hand(cell) as seal, superuser(cell.url) as admin:
        await admin.execute("SELECT confide_audit.make_journal_partition($1::date)", old.date())
        await append_rows(cell.url, tenant.id, [old, old])
        with pytest.raises(asyncpg.RaiseError, match="not sealed"):
            await admin.fetchval("SELECT confide_audit.drop_journal_partition($1::date)", old.date())
        await seal()
        assert await admin.fetchval("SELECT confide_audit.drop_journal_partition($1::date)", old.date()) == 2
        with pytest.raises(asyncpg.RaiseError, match="two days"):
            await admin.fetchval("SELECT confide_audit.drop_journal_partition(now()::date)")


@pytest.mark.usefixtures("one_day")
async def test_g4_a_month_of_events_goes_only_whole_expired_signed_and_exported(cell: Cell, tenant: Tenant) -> None:
    await a_turn(tenant)
    await sealed(cell, tenant)
    async with superuser(cell.url, replica=True) as admin:
        month = await admin.fetchval("SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date")
        with pytest.raises(asyncpg.RaiseError, match="kept for 13 months"):
            await admin.fetch("SELECT * FROM confide_audit.drop_event_partition($1)", month)
        # As if the whole log were two years old.
        await cell.parts.services.audit.sealer.close()
        await admin.execute("SELECT confide_audit.make_event_partitions(($1::date - interval '2 years')::date)", month)
        for table in ("event", "event_object"):
            await admin.execute(
                f"UPDATE confide_audit.{table} SET sealed_at = sealed_at - interval '2 years',"
                " time = time - interval '2 years'"
            )
        old = await admin.fetchval("SELECT ($1::date - interval '2 years')::date", month)
        with pytest.raises(asyncpg.RaiseError, match=r"no checkpoint|not exported"):
            await admin.fetch("SELECT * FROM confide_audit.drop_event_partition($1)", old)
        for log in await admin.fetch("SELECT tenant_id, epoch, size FROM confide_audit.log"):
            await cell.parts.services.audit.signing.checkpoint(log["tenant_id"])
            await admin.execute(
                "INSERT INTO confide_audit.exported (tenant_id, epoch, first, beyond, event)"
                " VALUES ($1, $2, 0, $3, gen_random_uuid())",
                *log.values(),
            )
        size = await admin.fetchval("SELECT size FROM confide_audit.log WHERE tenant_id = $1", tenant.id)
        dropped = await admin.fetch("SELECT * FROM confide_audit.drop_event_partition($1)", old)
        assert {(row["tenant_id"], row["first"], row["beyond"]) for row in dropped} >= {(tenant.id, 0, size)}
    cell.parts.services.audit.sealer.start()
    await a_turn(tenant, 2)
    await sealed(cell, tenant)
    export = await tenant.auditor.get("/v1/audit/export", params={"known": size})
    report = verify(export.content.splitlines(), await verifier_keys(tenant))
    assert (report.exit_code, report.first) == (0, size)  # the tree is verifiable without the leaves that went


async def test_g8_an_erased_address_leaves_every_proof_intact(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    await a_turn(tenant)
    await sealed(cell, tenant)
    async with superuser(cell.url) as admin:
        rows = await admin.fetch("SELECT * FROM confide_audit.erasable WHERE tenant_id = $1", tenant.id)
    assert rows
    assert all(commitment(row["value"], row["salt"]) == row["commitment"] for row in rows)
    before = (await tenant.auditor.get("/v1/audit/checkpoint")).content
    erased = await cell.parts.services.audit.erasables.erase(tenant.id, [row["commitment"] for row in rows])
    assert erased == len(rows)
    async with superuser(cell.url) as admin:
        assert not await admin.fetch("SELECT * FROM confide_audit.erasable WHERE tenant_id = $1", tenant.id)
    export = await tenant.auditor.get("/v1/audit/export", params={"known": int(before.split(b"\n")[1])})
    assert verify(export.content.splitlines(), await verifier_keys(tenant), before).exit_code == 0
    assert rows[0]["commitment"] in export.text
