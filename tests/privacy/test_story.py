"""The end-to-end story, as a new user would live it: from onboarding to an auditor who verifies offline."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from app.audit.checkpoint import VerifierKey
from app.main import replay_deletions
from app.services import backup
from app.services.attesting import open_document
from app.store.cell import make_database
from tests.audit.test_streams import Receiver, receiver
from tests.cell import Cell, Tenant, running_cell, settings_of
from tests.conftest import with_database
from tests.privacy.made import dialogue, rows_of, until
from tests.privacy.test_erasure import archive, finished
from tests.privacy.test_incidents import sealed_events

__all__ = ["receiver"]

AMERICAN_KEY = {
    "provider": "aws-kms",
    "key_arn": "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "role_arn": "arn:aws:iam::111122223333:role/confide",
}


async def refuse_a_key_abroad(tenant: Tenant) -> None:
    answer = await tenant.admin.post("/v1/keys/bindings", json=AMERICAN_KEY)
    assert answer.status_code in {403, 409, 422}, answer.text
    assert (await tenant.auditor.get("/v1/privacy/consents")).json() == {"consents": []}


async def answer_an_access_request(tenant: Tenant, session: UUID) -> None:
    answer = await tenant.admin.post(
        "/v1/privacy/exports", json={"subject": "customer-1"}, headers={"confide-purpose": "subject-access"}
    )
    assert f"sessions/{session}.json" in archive(answer)


async def erase(cell: Cell, tenant: Tenant, session: UUID) -> None:
    asked = await tenant.admin.post("/v1/privacy/erasures", json={"subject": "customer-1"})
    done = await finished(tenant, asked.json()["id"])
    key = VerifierKey.parse(cell.parts.services.privacy.attestor.verifier)
    _, receipt = open_document(done["receipt"], [key])
    assert str(session) in {each["id"] for each in receipt["containers"]}
    assert all("leaf" in each for each in receipt["containers"])
    assert "checkpoint" in receipt


async def leak_and_notify(cell: Cell, tenant: Tenant, session: UUID, receiver: Receiver) -> None:
    issued = (await tenant.admin.post("/v1/api-keys", json={"name": "leaked", "role": "runtime"})).json()
    thief = cell.client(issued["secret"])
    assert (await thief.get(f"/v1/sessions/{session}")).status_code == 200
    assert (await tenant.admin.post(f"/v1/api-keys/{issued['key']['id']}/revoke")).status_code == 200
    assert (await thief.get(f"/v1/sessions/{session}")).status_code == 401
    await sealed_events(cell)
    detected = datetime.now(UTC)
    body = {"kind": "leaked-api-key", "detected_at": detected.isoformat()}
    incident = (await cell.operator.post("/v1/incidents", json=body)).json()
    path = f"/v1/incidents/{incident['id']}"
    window = {
        "since": (detected - timedelta(hours=1)).isoformat(),
        "until": (detected + timedelta(hours=1)).isoformat(),
    }
    scope = await cell.operator.post(f"{path}/scope", json={"api_key": issued["key"]["id"], **window})
    assert [each["id"] for each in scope.json()["parts"][0]["listed"]] == [str(session)]
    contact = {"url": receiver.url, "region": "eu-central-1"}
    assert (await tenant.admin.put("/v1/privacy/contact", json=contact)).status_code == 200
    notice = {"audience": "customer", "tenants": [str(tenant.id)]}
    told = (await cell.operator.post(f"{path}/notices", json=notice)).json()
    assert told["customer"]["kept"] is True

    async def taken() -> bool:  # by the watch, or by us
        await cell.parts.services.privacy.outbox.deliver()
        return bool(receiver.taken)

    await until(taken)
    mine = (await tenant.auditor.get("/v1/privacy/incidents")).json()["parts"]
    assert mine[0]["containers"][0]["id"] == str(session)


async def hand_over_evidence(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    period = {
        "from": (datetime.now(UTC) - timedelta(days=1)).isoformat(),
        "to": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
    }
    await sealed_events(cell)
    answer = await tenant.auditor.get("/v1/evidence/archive", params=period)
    with zipfile.ZipFile(BytesIO(answer.content)) as handed:
        handed.extractall(tmp_path / "evidence")
    exported = await tenant.auditor.get("/v1/audit/export", params={"format": "ndjson"})
    assert exported.status_code == 200, exported.text
    (tmp_path / "log.export").write_bytes(exported.content)
    # Offline from here on: files and a public key.
    verifier = (tmp_path / "evidence" / "verifier.txt").read_text().strip()
    _, deletion = open_document(
        (tmp_path / "evidence" / "controls" / "q-deletion.note").read_text(), [VerifierKey.parse(verifier)]
    )
    assert deletion["result"] == "kept"
    command = [sys.executable, "-m", "app.audit.verify", str(tmp_path / "log.export"), "--key", verifier, "--json"]
    command += ["--checkpoint", str(tmp_path / "evidence" / "checkpoint.txt")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


@pytest.mark.timeout(600)
async def test_the_story_from_onboarding_to_offline_verification(
    database: str, postgres: str, tmp_path: Path, receiver: Receiver
) -> None:
    state = tmp_path / "state"
    async with running_cell(database, state) as cell:
        tenant = await cell.tenant("european")
        await refuse_a_key_abroad(tenant)
        gone, kept = await dialogue(tenant, "call-1", "customer-1"), await dialogue(tenant, "call-2", "customer-2")
        await answer_an_access_request(tenant, gone)
        await backup.dump(database, tmp_path / "data", tmp_path / "keys")
        await erase(cell, tenant, gone)
    name = f"story_{secrets.token_hex(8)}"
    await make_database(postgres, name)
    restored = with_database(postgres, name)
    try:
        await backup.restore(restored, tmp_path / "data", tmp_path / "keys")
        await replay_deletions(settings_of(restored, state))
        reaching = {"audit_private_receivers": "yes", "audit_receiver_ca": tmp_path / "cert.pem"}
        async with running_cell(restored, state, **reaching) as cell:
            assert await rows_of(cell, gone) == 0
            again = Tenant(
                tenant.id, *(cell.client(tenant.keys[role]) for role in ("runtime", "admin", "auditor")), tenant.keys
            )
            assert (await again.runtime.get(f"/v1/sessions/{gone}")).status_code == 404
            assert (await again.runtime.get(f"/v1/sessions/{kept}")).status_code == 200
            await leak_and_notify(cell, again, kept, receiver)
            await hand_over_evidence(cell, again, tmp_path)
    finally:
        connection = await asyncpg.connect(postgres)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()
