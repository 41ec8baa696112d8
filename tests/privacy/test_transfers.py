"""G9: a key in another region needs a consent that stands, from the binding's creation to its last call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.kms.aws_cell import AwsSettings
from app.kms.azure_cell import AzureSettings
from app.kms.binding import LocalBinding
from app.kms.registry import KmsSettings
from app.services.key_transfers import destination
from tests.cell import REGION, Cell, Tenant, running_cell
from tests.keys.customers import QUICK, AzureCustomer, World, activated, checked, consent
from tests.kms.conftest import authority, fake_azure
from tests.kms.fake_azure import FakeAzure
from tests.kms.rigs_azure import OUR_CLIENT, OUR_SECRET
from tests.privacy.made import dialogue, sql, until
from tests.privacy.test_incidents import sealed_events

__all__ = ["authority", "fake_azure"]

AMERICAN_KEY = {
    "provider": "aws-kms",
    "key_arn": "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    "role_arn": "arn:aws:iam::111122223333:role/confide",
}


@pytest.fixture
def world(fake_azure: FakeAzure, tmp_path: Path) -> World:
    return World(None, None, fake_azure, tmp_path / "keys")  # type: ignore[arg-type]  no AWS, no Transit here


@pytest.fixture
async def cell(database: str, tmp_path: Path, world: World) -> AsyncIterator[Cell]:
    world.folder.mkdir(mode=0o700)
    azure = AzureSettings(
        client_id=OUR_CLIENT,
        client_secret=OUR_SECRET,
        resolver=world.azure.resolver(),
        ca_file=world.azure.ca_file,
    )
    aws = AwsSettings("arn:aws:iam::111122223333:role/cell", "AKIAIOSFODNN7EXAMPLE", "x" * 40)
    kms = KmsSettings(REGION, LocalBinding("vendor"), QUICK, dev=True, local_folder=world.folder, azure=azure, aws=aws)
    async with running_cell(database, tmp_path / "state", kms) as made:
        yield made


async def allow(tenant: Tenant, *regions: str) -> None:
    policy = {"allowed_kms_regions": [REGION, *regions], "lease_seconds": 1}
    assert (await tenant.admin.patch("/v1/keys/policy", json=policy)).status_code == 200


async def served(tenant: Tenant) -> bool:
    answer = await tenant.runtime.post("/v1/load", json={"external_id": "call-1", "turns": {"last": 1}})
    assert answer.status_code in {200, 403, 503}, answer.text
    return bool(answer.status_code == 200)


async def state_of(tenant: Tenant, binding: str) -> Any:
    return (await tenant.admin.get(f"/v1/keys/bindings/{binding}")).json()["state"]


async def residency(tenant: Tenant) -> Any:
    now = datetime.now(UTC)
    period = {"from": (now - timedelta(hours=1)).isoformat(), "to": now.isoformat(), "control": "q-residency"}
    return (await tenant.auditor.get("/v1/evidence", params=period)).json()["evidence"]["result"]


async def test_g9_a_binding_abroad_is_refused_at_creation_though_the_policy_allows_its_region(
    cell: Cell, tenant: Tenant
) -> None:
    assert (await tenant.admin.post("/v1/keys/bindings", json=AMERICAN_KEY)).status_code == 422  # not even allowed
    await allow(tenant, "us-east-1")
    refused = await tenant.admin.post("/v1/keys/bindings", json=AMERICAN_KEY)
    assert refused.status_code == 403
    assert "/v1/privacy/consents" in refused.json()["detail"]
    assert (await tenant.admin.get("/v1/keys/bindings")).json()["bindings"] == []
    await sealed_events(cell)
    found = await tenant.auditor.get("/v1/audit/events", params={"action": "binding.create", "outcome": "denied"})
    assert len(found.json()["events"]) == 1
    await consent(tenant, "us-west-2")  # another destination's doesn't do
    assert (await tenant.admin.post("/v1/keys/bindings", json=AMERICAN_KEY)).status_code == 403
    given = await consent(tenant, "us-east-1")
    made = await tenant.admin.post("/v1/keys/bindings", json=AMERICAN_KEY)
    assert made.status_code == 201, made.text
    # The consent is withdrawn: nobody is called, and the doctor says why.
    assert (await tenant.admin.post(f"/v1/privacy/consents/{given}/revoke")).status_code == 200
    found = await tenant.admin.post(f"/v1/keys/bindings/{made.json()['id']}/check")
    assert [(each["name"], each["outcome"]) for each in found.json()["checks"]] == [("transfer-consented", "fail")]
    assert found.json()["ok"] is False


async def test_g9_a_vaults_own_answer_decides_and_without_a_consent_it_cant_be_activated(
    cell: Cell, tenant: Tenant, world: World
) -> None:
    await allow(tenant, "westeurope")
    customer = AzureCustomer(world)
    made = (await tenant.admin.post("/v1/keys/bindings", json=customer.body())).json()
    customer.paste(made["steps"])
    path = f"/v1/keys/bindings/{made['id']}"
    found = (await tenant.admin.post(f"{path}/check")).json()
    assert [each["name"] for each in found["checks"] if each["outcome"] == "fail"] == ["transfer-consented"]
    assert (await tenant.admin.post(f"{path}/activate")).status_code == 403
    given = await consent(tenant)
    assert (await tenant.admin.post(f"{path}/check")).json()["ok"] is True
    assert (await tenant.admin.post(f"/v1/privacy/consents/{given}/revoke")).status_code == 200
    assert (await tenant.admin.post(f"{path}/activate")).status_code == 403  # checked, and all the same
    assert await state_of(tenant, made["id"]) == "checked"


async def test_g9_an_active_key_abroad_stops_with_its_consent_and_comes_back_with_a_new_one(
    cell: Cell, tenant: Tenant, world: World
) -> None:
    await dialogue(tenant, "call-1")
    binding = await checked(tenant, AzureCustomer(world), lease=1)
    await activated(cell, tenant, binding)
    assert await served(tenant)
    assert await residency(tenant) == "kept"
    given = (await tenant.auditor.get("/v1/privacy/consents")).json()["consents"][0]["id"]
    assert (await tenant.admin.post(f"/v1/privacy/consents/{given}/revoke")).status_code == 200
    assert not await served(tenant)  # at the next statement
    assert await state_of(tenant, binding) == "revoked"
    assert cell.parts.services.auditing.alarms["transfer-without-consent"] == 1
    assert await residency(tenant) == "broken"
    calls = await kms_calls(cell)
    await cell.parts.services.keys.watch._prober.run_due()
    assert await kms_calls(cell) == calls  # nobody asks a key abroad whether it would serve
    assert (await tenant.admin.post("/v1/keys/rotate")).status_code in {403, 404}
    await consent(tenant)
    await until(lambda: served(tenant))
    assert await state_of(tenant, binding) == "active"
    assert await residency(tenant) == "kept"
    codes = await sql(
        cell,
        "SELECT facts::jsonb #>> '{detail,code}' AS code FROM confide_audit.journal WHERE action = 'binding.state'"
        " AND facts::jsonb #>> '{detail,code}' IS NOT NULL ORDER BY time",
    )
    assert [row["code"] for row in codes] == ["no-consent", "granted"]


async def test_g9_a_consent_that_ends_stops_the_key_even_where_no_watch_runs(
    cell: Cell, tenant: Tenant, world: World
) -> None:
    await dialogue(tenant, "call-1")
    await activated(cell, tenant, await checked(tenant, AzureCustomer(world), lease=1))
    assert await served(tenant)
    await cell.parts.services.privacy.watch.close()
    await sql(cell, "UPDATE confide.consent SET expires_at = granted_at + interval '1 microsecond'")

    async def dark() -> bool:
        return not await served(tenant)

    await until(dark)  # within the lease of a second: the keys can't be loaded again
    residency = cell.parts.services.privacy.residency
    assert await residency.stop_unconsented() == 1
    assert await residency.stop_unconsented() == 0
    assert cell.parts.services.auditing.alarms["transfer-without-consent"] == 1


async def test_g9_a_key_in_use_that_nobody_asked_where_it_is_is_asked_and_stopped(
    cell: Cell, tenant: Tenant, world: World
) -> None:
    await dialogue(tenant, "call-1")
    binding = await checked(tenant, AzureCustomer(world), lease=1)
    await activated(cell, tenant, binding)
    # As it stood before transfers were known: its region isn't on record, and there is no consent.
    await sql(cell, "UPDATE confide.consent SET revoked_at = now(), revoked_by = granted_by")
    await sql(cell, "UPDATE confide_keys.binding SET transfer_to = NULL, described_at = '-infinity'")
    residency_ = cell.parts.services.privacy.residency
    assert await residency_.stop_unconsented() == 0

    async def known() -> bool:
        await cell.parts.services.keys.prober.run_due()
        rows = await sql(cell, "SELECT FROM confide_keys.binding WHERE transfer_to = 'westeurope'")
        return bool(rows)

    await until(known)

    async def stopped() -> bool:  # by this look, or by the watch's own
        await residency_.stop_unconsented()
        return bool(await state_of(tenant, binding) == "revoked")

    await until(stopped)
    assert not await served(tenant)


async def kms_calls(cell: Cell) -> int:
    rows = await sql(cell, "SELECT count(*) FROM confide_audit.journal WHERE action LIKE 'kms.%'")
    return int(rows[0][0])


def test_g9_a_key_of_the_same_country_at_another_cloud_is_at_home() -> None:
    from app.services.key_transfers import abroad  # noqa: PLC0415

    assert abroad("germanywestcentral", "eu-central-1") is None
    assert abroad("eu-central-1", "eu-central-1") is None
    assert abroad("westeurope", "eu-central-1") == "westeurope"
    assert abroad(None, "eu-central-1") is None  # not known yet: the doctor refuses an unknown region
    assert destination(LocalBinding("x"), KmsSettings(REGION, LocalBinding("v"), dev=True)) is None
