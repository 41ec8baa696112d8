"""Every control's query runs, answers kept on a healthy cell, and shows a failure that is planted."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from app.__main__ import main
from app.audit.checkpoint import Checkpoint, Signer, VerifierKey
from app.identity import new_id
from app.services.attesting import open_document
from app.services.evidence_controls import CONTROLS
from app.services.trust import Document, Statement, terms
from app.store.evidence import CHECKS, run
from app.store.ledger import Transaction
from tests.cell import Cell, Tenant, running_cell
from tests.module_cell import in_module, module_database, tenant
from tests.privacy.made import dialogue
from tests.privacy.test_incidents import sealed_events

__all__ = ["module_database", "tenant"]

EVENT = (
    "INSERT INTO confide_audit.event (tenant_id, epoch, leaf, sealed_at, id, time, action, outcome, purpose, principal,"
    " entry) SELECT tenant_id, epoch, leaf + 100000000, sealed_at, '{id}', now(), '{action}', '{outcome}', {purpose},"
    " principal, convert_to((convert_from(entry, 'UTF8')::jsonb || '{change}')::text, 'UTF8')"
    " FROM confide_audit.event WHERE tenant_id = '{tenant}' AND action = 'context.commit' LIMIT 1"
)
T = "tenant_id = '{tenant}'"


def event(action: str = "context.load", outcome: str = "allowed", purpose: str = "'serve'", **change: Any) -> str:
    """A row in the sealed log that the service would never have written."""
    text = EVENT.replace("{action}", action).replace("{outcome}", outcome).replace("{purpose}", purpose)
    return text.replace("{change}", json.dumps(change))


JOB = (
    "INSERT INTO confide.job (tenant_id, id, kind, state, spec, deadline, created_at, updated_at) VALUES"
    " ('{tenant}', '{id}', 'erasure', 'blocked', '{}', now() - interval '1 second', now(), now())"
)

PLANTED = {
    "sealed": f"UPDATE confide.context_object SET body = 'plaintext' WHERE {T}",
    "container-keys": f"DELETE FROM confide.container_key WHERE {T}",
    "key-use-logged": f"UPDATE confide.context_object SET version = '{{id}}' WHERE {T}",
    "revoked-keys": f"UPDATE confide.api_key SET revoked_at = now() - interval '1 hour' WHERE {T} AND role = 'runtime'",
    "exact-scopes": f"UPDATE confide.api_key SET scopes = scopes || '{{context:read}}' WHERE {T} AND role = 'auditor'",
    "key-rotation": f"UPDATE confide.api_key SET created_at = now() - interval '2 years' WHERE {T}",
    "no-operator-access": event(role="operator"),
    "region": event(region="us-east-1"),
    "transfers": (
        "INSERT INTO confide.notice_contact (tenant_id, url, host, region, set_by)"
        " VALUES ('{tenant}', 'x', 'x', 'us-east-1', '{id}')"
    ),
    "retention": f"UPDATE confide.container SET expires_at = now() - interval '1 hour' WHERE {T}",
    "erasures": JOB,
    "erased-stays-erased": (
        "INSERT INTO confide.erased (tenant_id, job_id, container_id, kind, objects, turns, keys, event_id)"
        " SELECT tenant_id, '{id}', id, kind, 0, 0, 0, '{id}' FROM confide.container WHERE tenant_id = '{tenant}'"
    ),
    "access-requests": (
        "INSERT INTO confide.bulk_read (tenant_id, id, kind, purpose, api_key, principal, started_at) VALUES"
        " ('{tenant}', '{id}', 'subject', 'subject-access', '{id}', '{id}', now() - interval '2 hours')"
    ),
    "purposes": event(purpose="'training'"),
    "log-without-gaps": event(seq=100_000),
    "log-sealed": (
        "INSERT INTO confide_audit.journal (tenant_id, id, time, writer, seq, flush, action, outcome, facts)"
        " VALUES ('{tenant}', '{id}', now() - interval '5 minutes', '{id}', 1, 1, 'context.load', 'allowed', '{}')"
    ),
    "tampering": event("tamper.refused", "denied", reason="tampered"),
    "incidents-told": (
        "INSERT INTO confide.incident_part (tenant_id, incident_id, at, scope, containers)"
        " VALUES ('{tenant}', '{id}', now() - interval '25 hours', '{}', '[]')"
    ),
    "customer-key": (
        "INSERT INTO confide_keys.binding (tenant_id, id, provider, fields, external_id, state, created_at, changed_at)"
        " VALUES ('{tenant}', '{id}', 'aws-kms', '{}', 'x', 'active', now(), now())"
    ),
    "terms": "DELETE FROM confide.trust_acceptance WHERE tenant_id = '{tenant}'",
    "denials-logged": event(outcome="denied", reason=""),
    "holds-explained": (
        "INSERT INTO confide.legal_hold (tenant_id, id, container_id, reason, set_by, api_key)"
        " VALUES ('{tenant}', '{id}', '{id}', 'plaintext', '{id}', '{id}')"
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    """Its operator asks for a contract."""
    state = tmp_path_factory.mktemp("state")
    file = state / "trust.yaml"
    file.write_text("documents:\n  - {id: dpa, title: Data processing agreement, version: '1'}\n")
    async with running_cell(module_database, state, trust_file=file) as made:
        yield made


async def accept(tenant: Tenant) -> None:
    made = await tenant.admin.post("/v1/trust/acceptances", json={"document": "dpa", "version": "1"})
    assert made.status_code == 201, made.text


async def healthy(cell: Cell, tenant: Tenant) -> None:
    """A tenant in good order: dialogues, terms accepted, everything sealed."""
    for n in range(2):
        await dialogue(tenant, f"call-{n}", "customer-1")
    await accept(tenant)
    await sealed_events(cell)


async def planted(cell: Cell, name: str, tenant: Tenant) -> list[str]:
    """What the check finds with its failure planted: by the superuser, past triggers, and rolled back afterwards."""
    connection = await asyncpg.connect(cell.url)
    try:
        await connection.execute("BEGIN; SET LOCAL session_replication_role = replica")
        text = PLANTED[name].replace("{tenant}", str(tenant.id)).replace("{id}", str(new_id()))
        await connection.execute(text)
        return (await run(Transaction(connection), CHECKS[name], tenant.id, *around(), terms_of(cell)))[1]
    finally:
        await connection.close()


def terms_of(cell: Cell) -> Any:
    return cell.parts.services.privacy.evidence.documents


def around() -> tuple[datetime, datetime]:
    return datetime.now(UTC) - timedelta(days=2), datetime.now(UTC) + timedelta(minutes=1)


async def look(cell: Cell, tenant: Tenant, name: str) -> tuple[int, list[str]]:
    async with cell.parts.services.privacy.ledger.transaction(tenant.id) as tx:
        return await run(tx, CHECKS[name], tenant.id, *around(), terms_of(cell))


@in_module
async def test_every_check_is_kept_on_a_healthy_cell_and_broken_by_its_planted_failure(
    cell: Cell, tenant: Tenant
) -> None:
    assert set(PLANTED) == set(CHECKS)
    await healthy(cell, tenant)
    for name in CHECKS:
        assert (await look(cell, tenant, name))[1] == [], name
    for name in PLANTED:
        assert await planted(cell, name, tenant), name


@in_module
async def test_terms_are_kept_by_the_present_version_only_or_while_there_is_time_for_it(
    cell: Cell, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_cell = cell.parts.services.privacy.evidence
    today = datetime.now(UTC).date()

    async def found(**change: str) -> list[str]:
        now = Document(**({"id": "dpa", "title": "Data processing agreement", "version": "1"} | change))
        monkeypatch.setattr(of_cell, "documents", terms(Statement(documents=[now])))
        return (await look(cell, tenant, "terms"))[1]

    soon = {"version": "2", "announced": "2026-01-01", "effective": str(today + timedelta(days=2))}
    assert await found() == ["dpa"]
    assert await found(**soon) == ["dpa"]  # who never accepted any has no time left
    await accept(tenant)
    assert await found() == []
    assert await found(**soon) == []
    assert await found(**soon | {"effective": str(today)}) == ["dpa"]
    assert await found(version="2") == ["dpa"]
    assert await found(title="Another text under the same version") == ["dpa"]
    assert await found(url="https://example.com/exchanged") == ["dpa"]
    monkeypatch.setattr(of_cell, "documents", [])
    assert (await look(cell, tenant, "terms"))[1] == ["no document"]
    period = {"from": around()[0].isoformat(), "to": around()[1].isoformat(), "control": "q-dpa"}
    assert (await tenant.auditor.get("/v1/evidence", params=period)).json()["evidence"]["result"] == "broken"


@in_module
async def test_being_told_means_that_a_notice_was_delivered_within_the_time_from_detection(
    cell: Cell, tenant: Tenant
) -> None:
    hour = timedelta(hours=1)
    now = datetime.now(UTC)

    async def found(due: timedelta, delivered: timedelta | None, *, noticed: bool = True) -> bool:
        """Whether an incident breaks it, with its part, its due time and a notice, each so long ago."""
        incident = new_id()
        async with cell.parts.services.privacy.ledger.transaction(tenant.id) as tx:
            scope = json.dumps({"customer_due": (now - due).isoformat()})
            await tx.connection.execute(
                "INSERT INTO confide.incident_part (tenant_id, incident_id, at, scope, containers)"
                " VALUES ($1, $2, $3, $4, '[]')", tenant.id, incident, now - 3 * hour, scope,
            )  # fmt: skip
            if noticed:
                at = None if delivered is None else now - delivered
                await tx.connection.execute(
                    "INSERT INTO confide.notice (tenant_id, id, incident_id, audience, body, created_at, delivered_at)"
                    " VALUES ($1, $2, $3, 'customer', '{}', $4, $5)", tenant.id, new_id(), incident, now - 3 * hour, at,
                )  # fmt: skip
        return str(incident) in (await look(cell, tenant, "incidents-told"))[1]

    assert not await found(hour, 2 * hour)
    assert await found(2 * hour, hour)  # too late
    assert await found(hour, None)  # written, and never delivered
    assert await found(hour, None, noticed=False)
    assert not await found(-hour, None, noticed=False)  # there is time left


def test_every_control_has_a_query_or_says_what_is_not_evidenced() -> None:
    assert len(CONTROLS) == 39
    for name, control in CONTROLS.items():
        assert control.checks or control.beyond, name
        assert set(control.checks) <= set(CHECKS), name
    assert {check for control in CONTROLS.values() for check in control.checks} == set(CHECKS)


@in_module
async def test_evidence_is_signed_and_verifies_offline_with_its_checkpoint(cell: Cell, tenant: Tenant) -> None:
    await healthy(cell, tenant)
    period = {
        "from": (datetime.now(UTC) - timedelta(hours=1)).isoformat(),
        "to": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
    }
    one = await tenant.auditor.get("/v1/evidence", params={"control": "cc6.1", **period})
    assert one.status_code == 200, one.text
    key = VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)
    kind, document = open_document(one.json()["note"], [key])
    assert (kind, document["result"]) == ("evidence", "kept")
    assert document["leaves"][0]["events"] > 0
    assert Checkpoint.open(one.json()["checkpoint"].encode(), [key]).size > document["leaves"][0]["last"]
    physical = (await tenant.auditor.get("/v1/evidence", params={"control": "cc6.4", **period})).json()["evidence"]
    assert physical["result"] == "not-evidenced"
    assert (await tenant.auditor.get("/v1/evidence", params={"control": "cc9.9", **period})).status_code == 404
    whole = await tenant.auditor.get("/v1/evidence/archive", params=period)
    with zipfile.ZipFile(io.BytesIO(whole.content)) as archive:
        given = VerifierKey.parse(archive.read("verifier.txt").decode().strip())
        for name in CONTROLS:
            assert open_document(archive.read(f"controls/{name}.note").decode(), [given])[1]["control"] == name
        summary = json.loads(archive.read("summary.json"))
    assert {each["result"] for each in summary.values()} <= {"kept", "empty", "not-evidenced"}
    assert (await tenant.runtime.get("/v1/evidence/archive", params=period)).status_code == 403


@in_module
async def test_the_archive_verifies_with_one_command_and_every_change_of_it_is_found(
    cell: Cell, tenant: Tenant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await healthy(cell, tenant)
    period = {
        "from": (datetime.now(UTC) - timedelta(hours=1)).isoformat(),
        "to": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
    }
    whole = (await tenant.auditor.get("/v1/evidence/archive", params=period)).content
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    key = files["verifier.txt"].decode().strip()

    def verified(changed: dict[str, bytes | None], vkey: str = key) -> int:
        path = tmp_path / "evidence.zip"
        with zipfile.ZipFile(path, "w") as made:
            for name, content in (files | changed).items():
                if content is not None:
                    made.writestr(name, content)
        status = main(["audit", "verify", str(path), "--key", vkey, "--json"])
        assert json.loads(capsys.readouterr().out)["verified"] is (status == 0)
        return status

    assert verified({}) == 0
    note = files["controls/cc6.1.note"]
    assert verified({"controls/cc6.1.note": note.replace(b'"result":"kept"', b'"result":"empt"')}) == 1
    assert verified({"controls/cc6.1.note": files["controls/cc6.2.note"]}) == 1  # signed, but as another's
    assert verified({"summary.json": files["summary.json"].replace(b"not-evidenced", b"kept")}) == 1
    assert verified({"checkpoint.txt": b""}) == 1
    assert verified({"controls/p8.note": None, "summary.json": without(files["summary.json"], "p8")}) == 3
    stranger = Signer("confide.local/eu-central-1/audit", bytes(32)).verifier.text()
    assert verified({}, stranger) == 1
    assert main(["audit", "verify", str(tmp_path / "evidence.zip"), "--key", "no key"]) == 2


def without(summary: bytes, name: str) -> bytes:
    return json.dumps({each: told for each, told in json.loads(summary).items() if each != name}).encode()


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_check_names_its_tenant(name: str) -> None:
    assert "$1" in CHECKS[name].failures
