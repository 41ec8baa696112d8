"""G9, G10: residency, consents, purposes, the trust page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from app.audit.checkpoint import VerifierKey
from app.config import load
from app.identity import Purpose
from app.services.attesting import open_document
from app.services.trust import TrustFileError, load_statement
from tests.cell import Cell, Tenant, running_cell
from tests.keys.waiting import ended
from tests.module_cell import cell, in_module, module_database, tenant
from tests.privacy.made import dialogue, sql
from tests.privacy.test_incidents import sealed_events

__all__ = ["cell", "module_database", "tenant"]


@in_module
async def test_g9_a_transfer_needs_a_consent_that_is_absent_by_default_and_revocable(
    cell: Cell, tenant: Tenant
) -> None:
    residency = cell.parts.services.privacy.residency
    assert await residency.allowed(tenant.id, "eu-central-1", "kms")
    assert not await residency.allowed(tenant.id, "us-east-1", "kms")
    assert (await tenant.auditor.get("/v1/privacy/consents")).json() == {"consents": []}
    ends = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"scope": "kms", "destination": "us-east-1", "safeguard": "scc", "expires_at": ends}
    made = await tenant.admin.post("/v1/privacy/consents", json=body)
    assert made.status_code == 201, made.text
    assert await residency.allowed(tenant.id, "us-east-1", "kms")
    assert not await residency.allowed(tenant.id, "us-east-1", "audit-stream")
    listed = (await tenant.auditor.get("/v1/privacy/consents")).json()["consents"]
    assert [each["safeguard"] for each in listed] == ["scc"]
    assert (await tenant.auditor.post(f"/v1/privacy/consents/{made.json()['id']}/revoke")).status_code == 403
    assert (await tenant.admin.post(f"/v1/privacy/consents/{made.json()['id']}/revoke")).status_code == 200
    assert not await residency.allowed(tenant.id, "us-east-1", "kms")


@in_module
async def test_g9_two_cells_side_by_side_each_refuse_the_others_key_and_name_the_right_cell(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    import asyncio  # noqa: PLC0415

    from app.store.migrate import upgrade  # noqa: PLC0415

    await asyncio.to_thread(upgrade, empty_database)
    urls = {"eu-central-1": "https://eu.example.com", "us-east-1": "https://us.example.com"}
    async with (
        running_cell(database, tmp_path / "eu", cells=urls) as eu,
        running_cell(empty_database, tmp_path / "us", cells=urls, region="us-east-1") as us,
    ):
        european, american = await eu.tenant("acme"), await us.tenant("acme")
        for own, other, right in ((european, us, "eu"), (american, eu, "us")):
            answer = await other.client(own.keys["runtime"]).post("/v1/load", json={"external_id": "x"})
            assert answer.status_code == 421
            assert answer.json()["base_url"] == f"https://{right}.example.com"
        assert await dialogue(european, "call-1") != await dialogue(american, "call-1")


@in_module
async def test_g10_the_statement_is_signed_reproducible_and_sums_to_the_logs_count(cell: Cell, tenant: Tenant) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=1)
    for n in range(3):
        await dialogue(tenant, f"call-{n}", "customer-1")
    exported = await tenant.admin.post(
        "/v1/privacy/exports", json={"subject": "customer-1"}, headers={"confide-purpose": "subject-access"}
    )
    assert exported.status_code == 200
    ended = datetime.now(UTC)
    await sealed_events(cell)
    period = {"from": begun.isoformat(), "to": ended.isoformat()}
    first = (await tenant.auditor.get("/v1/privacy/statement", params=period)).json()
    second = (await tenant.auditor.get("/v1/privacy/statement", params=period)).json()
    assert first["note"] == second["note"]
    kind, document = open_document(first["note"], [VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)])
    assert kind == "purpose-statement"
    assert document["total"] == sum(row["openings"] for row in document["leaves"])
    assert document["total"] == sum(each["openings"] for each in document["openings"])
    assert document["by_purpose"]["subject-access"] >= 4
    counted = 0
    cursor = None
    while True:
        params = period | {"limit": 1000, "outcome": "allowed"} | ({"cursor": cursor} if cursor else {})
        page = (await tenant.auditor.get("/v1/audit/events", params=params)).json()
        counted += sum("purpose" in event for event in page["events"])
        cursor = page.get("cursor")
        if cursor is None:
            break
    assert counted == document["total"]


@in_module
async def test_g10_what_a_job_opened_stands_in_the_statement_by_job_and_issuer(cell: Cell, tenant: Tenant) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=1)
    for n in range(3):
        await dialogue(tenant, f"call-{n}", "customer-1")
    job = (await tenant.admin.post("/v1/keys/rekey")).raise_for_status().json()["job"]
    await ended(tenant, job)
    ended_at = datetime.now(UTC)
    await sealed_events(cell)
    period = {"from": begun.isoformat(), "to": ended_at.isoformat()}
    found = (await tenant.auditor.get("/v1/privacy/statement", params=period)).json()["statement"]
    keys = (await tenant.admin.get("/v1/api-keys")).json()["keys"]
    admin = next(each["principal"] for each in keys if each["role"] == "admin")
    assert found["by_job"] == {job: {"issuer": admin, "openings": found["by_purpose"]["maintenance"]}}
    assert found["by_job"][job]["openings"] >= 4  # three sessions and the subject
    assert found["total"] == sum(found["by_purpose"].values())


@in_module
async def test_g9_the_database_takes_no_tenant_of_another_region_and_moves_none(cell: Cell, tenant: Tenant) -> None:
    for change in (
        "INSERT INTO confide.tenant (id, region, name) VALUES (gen_random_uuid(), 'us-east-1', 'x')",
        f"UPDATE confide.tenant SET region = 'us-east-1' WHERE id = '{tenant.id}'",
        "UPDATE confide.cell SET region = 'us-east-1'",
        "INSERT INTO confide.cell (region) VALUES ('us-east-1')",
    ):
        with pytest.raises(asyncpg.PostgresError):
            await sql(cell, change)


@in_module
async def test_g10_training_is_not_a_purpose_and_no_setting_adds_one(cell: Cell, tenant: Tenant) -> None:
    assert {purpose.value for purpose in Purpose} == {"serve", "subject-access", "tenant-export", "maintenance"}
    asked = {"name": "trainer", "role": "runtime", "purposes": ["training"]}
    assert (await tenant.admin.post("/v1/api-keys", json=asked)).status_code == 422
    refused = await tenant.runtime.post("/v1/load", json={"external_id": "x"}, headers={"confide-purpose": "training"})
    assert refused.status_code == 400
    with pytest.raises(Exception, match="not a setting"):
        load({"CONFIDE_ENV": "dev", "CONFIDE_PURPOSES": "training"})
    names = [name for name in vars(cell.parts.settings.__class__).get("__annotations__", {}) if "purpose" in name]
    assert names == []


@in_module
async def test_the_trust_page_states_what_the_deployment_says_and_acceptance_is_recorded(
    database: str, tmp_path: Path
) -> None:
    file = tmp_path / "trust.yaml"
    file.write_text(
        "operator: Example <b>AG</b>\nnotice_days: 30\n"
        "sub_processors:\n  - {name: Cloud, purpose: hosting, region: eu-central-1}\n"
        "documents:\n  - {id: dpa, title: Data processing agreement, version: 2026-01}\n"
    )
    async with running_cell(database, tmp_path / "state", trust_file=file) as cell:
        tenant = await cell.tenant()
        page = (await cell.anyone.get("/v1/trust")).json()
        assert page["sub_processors"][0]["region"] == "eu-central-1"
        assert page["incident_clock"]["customer_hours"] == 24
        shown = await cell.anyone.get("/trust")
        assert shown.status_code == 200
        assert "Example &lt;b&gt;AG" in shown.text
        old = {"document": "dpa", "version": "2025-01"}
        assert (await tenant.admin.post("/v1/trust/acceptances", json=old)).status_code == 422
        made = await tenant.admin.post("/v1/trust/acceptances", json={"document": "dpa", "version": "2026-01"})
        assert made.status_code == 201, made.text
        events = (await tenant.auditor.get("/v1/audit/events", params={"action": "trust.accept"})).json()["events"]
        assert events[0]["detail"]["version"] == "2026-01"


def test_a_trust_file_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trust.yaml"
    file.write_text("sub_procesors: []\n")
    with pytest.raises(TrustFileError):
        load_statement(file)


@pytest.mark.parametrize(("effective", "right"), [("2026-03-31", True), ("2026-03-30", False), ("soon", False)])
def test_a_change_is_announced_for_its_notice_period_or_the_file_is_refused(
    tmp_path: Path, effective: str, right: bool
) -> None:
    file = tmp_path / "trust.yaml"
    change = f'{{announced: "2026-03-01", effective: "{effective}", what: Another sub-processor}}'
    file.write_text(f"notice_days: 30\nchanges:\n  - {change}\n")
    if right:
        assert load_statement(file).changes[0].effective == effective
        return
    with pytest.raises(TrustFileError, match="CONFIDE_TRUST_FILE"):
        load_statement(file)


@pytest.mark.parametrize(("effective", "right"), [("2026-03-31", True), ("2026-03-30", False), ("", False)])
def test_a_documents_new_version_is_announced_for_its_notice_period_too(
    tmp_path: Path, effective: str, right: bool
) -> None:
    file = tmp_path / "trust.yaml"
    known = f'{{id: dpa, title: DPA, version: "2", announced: "2026-03-01", effective: "{effective}"}}'
    file.write_text(f"notice_days: 30\ndocuments:\n  - {known}\n")
    if right:
        assert load_statement(file).documents[0].effective == effective
        return
    with pytest.raises(TrustFileError, match="CONFIDE_TRUST_FILE"):
        load_statement(file)


@in_module
async def test_g9_an_audit_stream_leaves_the_region_only_under_a_consent(cell: Cell, tenant: Tenant) -> None:
    abroad = {"url": "https://siem.example.com/in", "region": "us-east-1"}
    assert (await tenant.admin.post("/v1/audit/streams", json=abroad)).status_code == 403
    ends = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"scope": "audit-stream", "destination": "us-east-1", "safeguard": "scc", "expires_at": ends}
    made = (await tenant.admin.post("/v1/privacy/consents", json=body)).json()
    created = await tenant.admin.post("/v1/audit/streams", json=abroad)
    assert created.status_code == 201, created.text
    period = {
        "from": (datetime.now(UTC) - timedelta(hours=1)).isoformat(),
        "to": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
        "control": "q-residency",
    }
    assert (await tenant.auditor.get("/v1/evidence", params=period)).json()["evidence"]["result"] == "kept"
    await tenant.admin.post(f"/v1/privacy/consents/{made['id']}/revoke")
    assert (await tenant.auditor.get("/v1/evidence", params=period)).json()["evidence"]["result"] == "broken"
