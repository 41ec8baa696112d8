"""G8: erasing a subject or a session removes its rows and destroys its keys, and a signed receipt says so."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.audit.checkpoint import VerifierKey
from app.services.attesting import open_document
from app.services.deletion_journal import read_journal
from tests.cell import Cell, Tenant, running_cell
from tests.module_cell import cell, in_module, module_database, tenant
from tests.privacy.made import dialogue, rows_of, sql, until

__all__ = ["cell", "module_database", "tenant"]
pytestmark = in_module


async def finished(tenant: Tenant, job: str, state: str = "done") -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = (await tenant.auditor.get(f"/v1/privacy/erasures/{job}")).json()
        return found if found["state"] == state and (state != "done" or found.get("receipt")) else None

    return await until(look)


async def test_g8_erasing_a_subject_removes_rows_and_keys_of_all_its_sessions(cell: Cell, tenant: Tenant) -> None:
    sessions = [await dialogue(tenant, f"call-{n}", "customer-1") for n in range(3)]
    other = await dialogue(tenant, "call-9", "customer-2")
    branched = await tenant.runtime.post(f"/v1/sessions/{sessions[0]}/branch", json={"external_id": "copy"})
    assert branched.status_code == 201, branched.text
    copy = UUID(branched.json()["session"]["id"])
    asked = await tenant.admin.post("/v1/privacy/erasures", json={"subject": "customer-1"})
    assert asked.status_code == 202, asked.text
    done = await finished(tenant, asked.json()["id"])
    for session in [*sessions, copy]:
        assert await rows_of(cell, session) == 0
        assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code == 404
    assert await rows_of(cell, other) > 0
    assert done["removed"]["containers"] == 5  # three sessions, the copy, the subject
    assert done["removed"]["keys"] == 5
    # The receipt verifies offline, and names the audit events of what was destroyed.
    key = VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)
    kind, receipt = open_document(done["receipt"], [key])
    assert kind == "erasure-receipt"
    assert {each["id"] for each in receipt["containers"]} >= {str(each) for each in sessions}
    events = (await tenant.auditor.get("/v1/audit/events", params={"action": "privacy.erasure"})).json()["events"]
    assert {each["event"] for each in receipt["containers"]} <= {event["id"] for event in events}
    journal = {each.container for each in read_journal(cell.parts.services.privacy.deletions.folder)}
    assert journal >= {*sessions, copy}


async def test_g8_a_hold_blocks_an_erasure_and_says_so_until_it_is_released(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1", "customer-1")
    reason = "Litigation Zx81planted"
    held = await tenant.admin.post("/v1/privacy/holds", json={"subject": "customer-1", "reason": reason})
    assert held.status_code == 201, held.text
    # A runtime can't lift it.
    patched = await tenant.runtime.patch(f"/v1/sessions/{session}", json={"hold": False})
    assert patched.json()["hold"] is True
    assert (await tenant.runtime.delete(f"/v1/sessions/{session}")).status_code == 409
    asked = (await tenant.admin.post("/v1/privacy/erasures", json={"session": str(session)})).json()
    blocked = await finished(tenant, asked["id"], "blocked")
    assert [each["hold"] for each in blocked["blocked_by"]] == [held.json()["id"]]
    assert await rows_of(cell, session) > 0
    stored = await sql(cell, "SELECT reason FROM confide.legal_hold WHERE tenant_id = $1", tenant.id)
    assert b"Zx81planted" not in stored[0]["reason"]
    listed = (await tenant.admin.get("/v1/privacy/holds")).json()["holds"]
    assert [(each["reason"], "released_at" in each) for each in listed] == [(reason, False)]
    assert (await tenant.admin.delete(f"/v1/privacy/holds/{held.json()['id']}")).status_code == 200
    await finished(tenant, asked["id"])
    assert await rows_of(cell, session) == 0


async def test_g8_an_erasure_by_id_needs_no_key(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1")
    await sql(cell, "UPDATE confide.tenant SET key_state = 'revoked', epoch = epoch + 1 WHERE id = $1", tenant.id)
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    asked = await tenant.admin.post("/v1/privacy/erasures", json={"session": str(session)})
    assert asked.status_code == 202, asked.text
    await finished(tenant, asked.json()["id"])
    assert await rows_of(cell, session) == 0


async def test_g6_nobody_erases_or_sees_another_tenants(cell: Cell, tenant: Tenant) -> None:
    stranger = await cell.tenant("other")
    session = await dialogue(tenant, "call-1", "customer-1")
    for target in ({"session": str(session)}, {"external_id": "call-1"}, {"subject": "customer-1"}):
        assert (await stranger.admin.post("/v1/privacy/erasures", json=target)).status_code == 404
    asked = (await tenant.admin.post("/v1/privacy/erasures", json={"session": str(session)})).json()
    assert (await stranger.auditor.get(f"/v1/privacy/erasures/{asked['id']}")).status_code == 404
    assert (await tenant.runtime.post("/v1/privacy/erasures", json={"session": str(session)})).status_code == 403


def archive(answer: Any) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(answer.content)) as opened:
        return {name: json.loads(opened.read(name)) for name in opened.namelist()}


async def test_g10_a_subjects_data_is_an_archive_under_the_purpose_subject_access(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1", "customer-1")
    await dialogue(tenant, "call-2", "customer-2")
    refused = await tenant.admin.post(
        "/v1/privacy/exports", json={"subject": "customer-1"}, headers={"confide-purpose": "tenant-export"}
    )
    assert refused.status_code == 403
    answer = await tenant.admin.post(
        "/v1/privacy/exports", json={"subject": "customer-1"}, headers={"confide-purpose": "subject-access"}
    )
    assert answer.status_code == 200, answer.text
    files = archive(answer)
    assert files["manifest.json"]["containers"] == 2
    exported = files[f"sessions/{session}.json"]
    assert exported["external_id"] == "call-1"
    assert [turn["json"]["text"] for turn in exported["turns"]] == ["Hello", "Hi"]
    assert exported["objects"][0]["json"] == {"city": "Bern"}
    events = (await tenant.auditor.get("/v1/audit/events", params={"action": "context.export"})).json()["events"]
    assert {event["purpose"] for event in events} == {"subject-access"}
    assert (await tenant.runtime.post("/v1/privacy/exports", json={"subject": "customer-1"})).status_code == 403


async def test_g10_reading_everything_needs_tenant_export_and_is_rate_limited(cell: Cell, tenant: Tenant) -> None:
    await dialogue(tenant, "call-1", "customer-1")
    await dialogue(tenant, "call-2")
    bulk = {"headers": {"confide-purpose": "tenant-export"}, "json": {"tenant": True}}
    answers = [await tenant.admin.post("/v1/privacy/exports", **bulk) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert archive(answers[0])["manifest.json"]["containers"] == 3
    denied = await tenant.admin.post(
        "/v1/privacy/exports", json={"tenant": True}, headers={"confide-purpose": "subject-access"}
    )
    assert denied.status_code == 403


async def test_g8_a_tenant_that_leaves_is_erased_with_its_keys_and_its_log_stays(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1", "customer-1")
    assert (await tenant.admin.post("/v1/privacy/offboarding", json={"confirm": "wrong"})).status_code == 422
    asked = await tenant.admin.post("/v1/privacy/offboarding", json={"confirm": "acme"})
    assert asked.status_code == 202, asked.text
    assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code in {401, 403}

    async def certificate() -> str | None:
        return (await tenant.auditor.get("/v1/privacy/offboarding")).json().get("receipt")

    note = await until(certificate)
    kind, document = open_document(note, [VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)])
    assert kind == "offboarding-certificate"
    assert document["containers"] == 2
    assert document["keys"]["root_keys"] == 1
    for table in ("confide_keys.root_key", "confide_keys.index_key", "confide.container", "confide.context_object"):
        assert (await sql(cell, f"SELECT count(*) FROM {table} WHERE tenant_id = $1", tenant.id))[0][0] == 0
    events = await tenant.auditor.get("/v1/audit/events", params={"action": "offboard"})
    assert events.status_code == 200
    assert len(events.json()["events"]) >= 3


async def test_g8_what_one_worker_erased_no_other_worker_serves_at_its_next_statement(
    database: str, tmp_path: Path
) -> None:
    async with running_cell(database, tmp_path / "state") as one, running_cell(database, tmp_path / "state") as two:
        tenant = await one.tenant()
        session = await dialogue(tenant, "call-1", "customer-1")
        warm = two.client(tenant.keys["runtime"])
        asked_for = {"session": str(session), "context": [{}], "turns": {"last": 5}}
        assert (await warm.post("/v1/load", json=asked_for)).status_code == 200  # its caches know the session's key
        asked = (await tenant.admin.post("/v1/privacy/erasures", json={"session": str(session)})).json()
        await until(lambda: _gone(one, session))
        assert (await warm.post("/v1/load", json=asked_for)).status_code == 404
        put = {"session": str(session), "put": [{"collection": "state", "key": "slots", "json": 1}]}
        assert (await warm.post("/v1/commit", json=put)).status_code == 404
        await finished(tenant, asked["id"])


async def _gone(cell: Cell, session: UUID) -> bool:
    return await rows_of(cell, session) == 0


async def test_g8_a_deletion_that_the_journal_cannot_hold_is_not_confirmed(
    cell: Cell, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await dialogue(tenant, "call-1")

    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cell.parts.services.privacy.deletions, "_write", full)
    assert (await tenant.runtime.delete(f"/v1/sessions/{session}")).status_code == 503
