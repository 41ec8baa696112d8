"""Incidents: the history, the blast radius, notices."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.audit.checkpoint import VerifierKey
from app.services import outbox as outboxes
from tests.audit.test_streams import Receiver, receiver
from tests.cell import Cell, Tenant, running_cell
from tests.privacy.made import dialogue, sql, until

__all__ = ["receiver"]

TO_AMERICA = {
    "scope": "incident-notice",
    "destination": "us-east-1",
    "safeguard": "scc",
    "expires_at": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
}


async def opened(cell: Cell, hours_ago: float = 1) -> dict[str, Any]:
    detected = datetime.now(UTC) - timedelta(hours=hours_ago)
    body = {"kind": "leaked-api-key", "detected_at": detected.isoformat(), "words": "Planted Qx77 words"}
    answer = await cell.operator.post("/v1/incidents", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def sealed_events(cell: Cell) -> None:
    """Wait until everything that has happened is in the sealed log."""

    async def done() -> bool:
        rows = await sql(
            cell,
            "SELECT count(*) FROM confide_audit.journal j"
            " WHERE NOT EXISTS (SELECT FROM confide_audit.event e WHERE e.tenant_id = j.tenant_id AND e.id = j.id)",
        )
        return rows[0][0] == 0

    await until(done)


async def test_the_history_is_only_ever_added_to_and_its_words_are_sealed(cell: Cell, tenant: Tenant) -> None:
    incident = await opened(cell)
    path = f"/v1/incidents/{incident['id']}"
    assert (
        await cell.operator.post(f"{path}/entries", json={"phase": "confirmed", "words": "Yes."})
    ).status_code == 201
    told = await cell.operator.post(f"{path}/notices", json={"audience": "authority", "words": "By telephone."})
    assert told.json()["authority"]["kept"] is True
    closed = await cell.operator.post(f"{path}/entries", json={"phase": "closed"})
    assert closed.json()["phase"] == "closed"
    assert (await cell.operator.post(f"{path}/entries", json={"words": "Late."})).status_code == 409
    history = (await cell.operator.get(path)).json()["history"]
    assert [entry["number"] for entry in history] == [1, 2, 3, 4]
    assert history[0]["words"] == "Planted Qx77 words"
    stored = await sql(cell, "SELECT words FROM confide.incident_entry WHERE words IS NOT NULL")
    assert not any("Qx77" in row["words"] for row in stored)
    for change in ("UPDATE confide.incident_entry SET kind = 'note'", "DELETE FROM confide.incident_entry",
                   "DELETE FROM confide.incident"):  # fmt: skip
        with pytest.raises(asyncpg.PostgresError, match="never changed"):
            await sql(cell, change)
    assert (await tenant.admin.get(path)).status_code == 403


async def test_g6_a_blast_radius_names_what_was_opened_and_each_tenant_reads_only_its_part(
    cell: Cell, tenant: Tenant
) -> None:
    other = await cell.tenant("other")
    begun = datetime.now(UTC) - timedelta(minutes=5)
    opened_ones = {await dialogue(tenant, f"call-{n}", f"customer-{n % 2}") for n in range(3)}
    await dialogue(other, "call-1", "customer-1")
    key = (await tenant.admin.post("/v1/api-keys", json={"name": "leaked", "role": "runtime"})).json()
    leaked = cell.client(key["secret"])
    touched = min(opened_ones)
    assert (await leaked.get(f"/v1/sessions/{touched}")).status_code == 200
    await sealed_events(cell)
    incident = await opened(cell)
    window = {"since": begun.isoformat(), "until": (datetime.now(UTC) + timedelta(minutes=5)).isoformat()}
    path = f"/v1/incidents/{incident['id']}/scope"
    by_key = (await cell.operator.post(path, json={"api_key": key["key"]["id"], **window})).json()["parts"]
    assert [(part["tenant"], part["containers"], part["subjects"]) for part in by_key] == [(str(tenant.id), 1, 1)]
    assert [each["id"] for each in by_key[0]["listed"]] == [str(touched)]
    everything = (await cell.operator.post(path, json=window)).json()["parts"]
    assert {part["tenant"] for part in everything} == {str(tenant.id), str(other.id)}
    by_generation = await cell.operator.post(path, json={"generation": 1, "tenant": str(tenant.id), **window})
    assert {UUID(each["id"]) for each in by_generation.json()["parts"][0]["listed"]} >= opened_ones
    await told_when_all_are(cell, incident, tenant, other)
    mine = (await tenant.auditor.get("/v1/privacy/incidents")).json()["parts"]
    assert all(part["scope"]["customer_due"].startswith(incident["customer"]["due"][:19]) for part in mine)
    ids = {each["id"] for part in mine for each in part["containers"]}
    assert {str(each) for each in opened_ones} <= ids
    theirs = (await other.auditor.get("/v1/privacy/incidents")).json()["parts"]
    assert not ids & {each["id"] for part in theirs for each in part["containers"]}


async def told_when_all_are(cell: Cell, incident: dict[str, Any], *affected: Tenant) -> None:
    """Customers are told when each of the affected is, and not before."""
    path = f"/v1/incidents/{incident['id']}"
    for number, tenant in enumerate(affected):
        shown = (await cell.operator.get(path)).json()["customer"]
        assert set(shown["untold"]) == {str(each.id) for each in affected[number:]}
        assert shown["told_at"] is None
        assert shown["kept"] is False
        notice = {"audience": "customer", "tenants": [str(tenant.id)]}
        assert (await cell.operator.post(f"{path}/notices", json=notice)).status_code == 201
    shown = (await cell.operator.get(path)).json()["customer"]
    assert (shown["untold"], shown["kept"]) == ([], True)


async def test_an_affected_tenant_that_nobody_told_is_overdue_though_another_was_told(
    cell: Cell, tenant: Tenant
) -> None:
    await cell.parts.services.privacy.watch.close()
    incidents = cell.parts.services.privacy.incidents
    other = await cell.tenant("other")
    for each in (tenant, other):
        await dialogue(each, "call-1")
    await sealed_events(cell)
    overdue, kept = await opened(cell, hours_ago=30), await opened(cell, hours_ago=30)
    now = datetime.now(UTC)
    window = {"since": (now - timedelta(hours=1)).isoformat(), "until": (now + timedelta(minutes=5)).isoformat()}
    for incident, told in ((overdue, [tenant]), (kept, [tenant, other])):
        path = f"/v1/incidents/{incident['id']}"
        assert (await cell.operator.post(f"{path}/scope", json=window)).status_code == 200
        notice = {"audience": "customer", "tenants": [str(each.id) for each in told]}
        assert (await cell.operator.post(f"{path}/notices", json=notice)).status_code == 201
    assert await incidents.raise_overdue() == 1
    assert await incidents.raise_overdue() == 0
    shown = [(await cell.operator.get(f"/v1/incidents/{each['id']}")).json()["customer"] for each in (overdue, kept)]
    assert [each["overdue"] for each in shown] == [True, False]
    assert shown[0]["untold"] == [str(other.id)]


@pytest.fixture
async def reaching(database: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[Cell]:
    """A worker that trusts the receiver's certificate, and lets it stand on this machine; only the test delivers."""
    trusting = {"audit_private_receivers": "yes", "audit_receiver_ca": tmp_path / "cert.pem"}
    async with running_cell(database, tmp_path / "state", **trusting) as cell:
        await cell.parts.services.privacy.watch.close()
        yield cell


async def test_a_notice_is_tried_until_delivered_and_operators_see_the_outbox(
    reaching: Cell, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "PAUSES", (600.0,))
    cell, tenant = reaching, await reaching.tenant()
    outbox = cell.parts.services.privacy.outbox
    contact = {"url": receiver.url, "region": "eu-central-1"}
    assert (await tenant.admin.put("/v1/privacy/contact", json=contact)).status_code == 200
    assert "/events" not in (await sql(cell, "SELECT url FROM confide.notice_contact"))[0]["url"]
    abroad = contact | {"region": "us-east-1"}
    assert (await tenant.admin.put("/v1/privacy/contact", json=abroad)).status_code == 403
    incident = await opened(cell)
    told = await cell.operator.post(
        f"/v1/incidents/{incident['id']}/notices", json={"audience": "customer", "tenants": [str(tenant.id)]}
    )
    assert told.status_code == 201, told.text
    receiver.refusals = [500, 302]
    for tries in (1, 2):
        assert await outbox.deliver() == 0
        [waiting] = (await cell.operator.get("/v1/notices")).json()["notices"]
        assert (waiting["attempts"], waiting["delivered_at"]) == (tries, None)
        assert waiting["last_error"] == f"status-{(500, 302)[tries - 1]}"
        assert await outbox.deliver() == 0  # not before its pause is over
        await sql(cell, "UPDATE confide.notice SET next_at = now()")
    assert await outbox.deliver() == 1
    assert await outbox.deliver() == 0
    [done] = (await cell.operator.get("/v1/notices")).json()["notices"]
    assert (done["attempts"], done["delivered_at"] is not None) == (3, True)
    assert "notice-undelivered" not in cell.parts.services.auditing.alarms  # there was time left
    [(headers, body)] = receiver.taken
    assert json.loads(body)["incident"] == incident["id"]
    line = b64decode(headers["confide-signature"]).decode()
    signature = b64decode(line.rsplit(" ", 1)[1])[4:]
    VerifierKey.parse(cell.parts.services.privacy.attestor.verifier).verify(body, signature)


async def test_a_notice_waits_for_a_contact_and_goes_nowhere_without_a_consent_that_stands(
    reaching: Cell, receiver: Receiver
) -> None:
    cell, tenant = reaching, await reaching.tenant()
    outbox = cell.parts.services.privacy.outbox
    incident = await opened(cell, hours_ago=30)
    notice = {"audience": "customer", "tenants": [str(tenant.id)]}
    assert (await cell.operator.post(f"/v1/incidents/{incident['id']}/notices", json=notice)).status_code == 201

    async def tried() -> str | None:
        await sql(cell, "UPDATE confide.notice SET next_at = now()")
        await outbox.deliver()
        [found] = (await cell.operator.get("/v1/notices")).json()["notices"]
        return str(found.get("last_error") or "") or None

    alarms = cell.parts.services.auditing.alarms
    assert await tried() == "no-contact"
    assert alarms["notice-undelivered"] == 1  # its time is over
    given = (await tenant.admin.post("/v1/privacy/consents", json=TO_AMERICA)).json()
    contact = {"url": receiver.url, "region": "us-east-1"}
    assert (await tenant.admin.put("/v1/privacy/contact", json=contact)).status_code == 200
    assert (await tenant.admin.post(f"/v1/privacy/consents/{given['id']}/revoke")).status_code == 200
    assert await tried() == "no-consent"
    assert receiver.taken == []
    assert alarms["notice-undelivered"] == 2
    assert (await tenant.admin.post("/v1/privacy/consents", json=TO_AMERICA)).status_code == 201
    assert await tried() is None
    assert len(receiver.taken) == 1
    assert alarms["notice-undelivered"] == 2
