"""Tenants: onboarding through a token that works once, settings, suspension, and two logs for an operator's act."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from app.crypto import apikeys
from app.identity import NO_UUID, new_id
from tests.cell import REGION, Cell, Tenant
from tests.control.support import events, make_key, shape, sql


async def enrol(cell: Cell, token: str, name: str = "first-admin"):
    return await cell.anyone.post("/v1/enrolments/redeem", json={"token": token, "name": name})


async def created(cell: Cell, **body: object) -> dict:
    answer = await cell.operator.post("/v1/tenants", json={"name": "acme"} | body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_tenant_is_created_with_its_keys_and_a_token(cell: Cell) -> None:
    made = await created(cell, require_preconditions=True, ttl_idle_seconds=60, ttl_max_seconds=120, rate_per_second=7)
    tenant = made["tenant"]
    assert (tenant["state"], tenant["key_state"], tenant["region"]) == ("active", "active", REGION)
    assert (tenant["require_preconditions"], tenant["ttl_idle_seconds"], tenant["rate_per_second"]) == (True, 60, 7)
    assert made["enrolment"]["token"].startswith("cfe_dev_")
    assert await sql(cell, "SELECT count(*) FROM confide_keys.root_key WHERE tenant_id::text = $1", tenant["id"]) == 1
    shown = await cell.operator.get(f"/v1/tenants/{tenant['id']}")
    assert shown.json() == tenant
    assert "token" not in shown.text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "A"},
        {"name": "a" * 64},
        {"name": "-a"},
        {"name": "a\n"},
        {"name": 5},
        {"name": "a", "region": "us-east-1"},
        {"name": "a", "state": "suspended"},
        {"name": "a", "epoch": 9},
        {"name": "a", "ttl_idle_seconds": 0},
        {"name": "a", "rate_per_second": 0},
        {"name": "a", "rate_per_second": True},
        {"name": "a", "require_preconditions": "yes"},
    ],
)
async def test_a_tenant_that_cant_be_is_refused(cell: Cell, body: dict) -> None:
    assert (await cell.operator.post("/v1/tenants", json=body)).status_code == 422


async def test_an_idle_time_beyond_the_greatest_is_refused(cell: Cell) -> None:
    body = {"name": "a", "ttl_idle_seconds": 100, "ttl_max_seconds": 50}
    assert (await cell.operator.post("/v1/tenants", json=body)).status_code == 422


async def test_the_enrolment_token_works_once_also_for_many_at_the_same_moment(cell: Cell) -> None:
    made = await created(cell)
    token = made["enrolment"]["token"]
    answers = await asyncio.gather(*(enrol(cell, token, f"admin-{number}") for number in range(16)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 15
    keys = await sql(cell, "SELECT count(*) FROM confide.api_key WHERE tenant_id::text = $1", made["tenant"]["id"])
    assert keys == 1
    assert (await enrol(cell, token)).status_code == 401


async def test_redeeming_is_in_the_tenants_own_log(cell: Cell) -> None:
    made = await created(cell)
    issued = (await enrol(cell, made["enrolment"]["token"])).json()
    [event] = await events(cell, made["tenant"]["id"], "tenant.enrol")
    assert event["api_key"] == issued["key"]["id"]
    assert event["principal"] == issued["key"]["principal"]
    assert event["detail"]["enrolment"] == str(apikeys.parse_enrolment(made["enrolment"]["token"]).key_id)
    assert "source" in event


async def test_every_bad_token_is_the_same_401(cell: Cell, tenant: Tenant) -> None:
    made = await created(cell)
    token = made["enrolment"]["token"]
    late = (await created(cell))["enrolment"]["token"]
    await sql(
        cell,
        "UPDATE confide.enrolment SET expires_at = now() WHERE id = $1 RETURNING 1",
        apikeys.parse_enrolment(late).key_id,
    )
    used = (await created(cell))["enrolment"]["token"]
    await enrol(cell, used)
    bad = [
        "x",
        token[:-1],
        token + "0",
        late,
        used,
        apikeys.mint_enrolment("dev", REGION, apikeys.parse_enrolment(token).key_id),
        apikeys.mint_enrolment("dev", REGION, new_id()),
        apikeys.mint_enrolment("live", REGION, new_id()),
        tenant.keys["admin"],
    ]
    shapes = {repr(shape(await enrol(cell, each))) for each in bad}
    assert len(shapes) == 1
    assert "401" in next(iter(shapes))
    assert (await enrol(cell, token)).status_code == 201
    await cell.parts.denials.flush()
    assert (await events(cell, NO_UUID, "api-key.denied"))[-1]["detail"]["enrolment"] == len(bad)


async def test_a_token_of_another_region_names_the_region(cell: Cell) -> None:
    answer = await enrol(cell, apikeys.mint_enrolment("dev", "us-east-1", new_id()))
    assert answer.status_code == 421


async def test_an_enrolment_token_is_no_api_key_and_the_other_way_round(cell: Cell, tenant: Tenant) -> None:
    token = (await created(cell))["enrolment"]["token"]
    assert (await cell.client(token).get("/v1/tenant")).status_code == 401
    assert (await enrol(cell, tenant.keys["admin"])).status_code == 401


async def test_an_operators_act_stands_in_both_logs(cell: Cell) -> None:
    made = await created(cell)
    tenant = made["tenant"]["id"]
    await cell.operator.post(f"/v1/tenants/{tenant}/suspend")
    await cell.operator.post(f"/v1/tenants/{tenant}/resume")
    for log in (NO_UUID, tenant):
        for action in ("tenant.create", "tenant.suspend", "tenant.resume"):
            [event] = await events(cell, log, action)
            assert event["role"] == "operator"
            assert event["detail"]["tenant"] == tenant


async def test_a_suspended_tenant_is_served_nothing_at_once_and_its_operator_everything(
    cell: Cell, tenant: Tenant, other: Tenant
) -> None:
    path = f"/v1/tenants/{tenant.id}"
    assert (await tenant.admin.get("/v1/tenant")).status_code == 200
    suspended = await cell.operator.post(f"{path}/suspend")
    assert suspended.json()["state"] == "suspended"
    calls = [
        (tenant.admin, "GET", "/v1/tenant", None),
        (tenant.admin, "PATCH", "/v1/tenant", {"require_preconditions": True}),
        (tenant.admin, "GET", "/v1/api-keys", None),
        (tenant.admin, "POST", "/v1/api-keys", {"name": "x", "role": "runtime"}),
        (tenant.auditor, "GET", "/v1/audit/events", None),
        (tenant.runtime, "POST", "/v1/commit", {"external_id": "a", "create": {}}),
        (tenant.runtime, "POST", "/v1/load", {"external_id": "a"}),
    ]
    for client, method, where, body in calls:
        answer = await client.request(method, where, json=body)
        assert answer.status_code == 403, (where, answer.text)
        assert answer.json()["type"] == "urn:confide:problem:tenant-suspended"
    assert (await cell.operator.get(path)).json()["state"] == "suspended"
    assert (await other.admin.get("/v1/tenant")).status_code == 200
    denied = [event for event in await events(cell, tenant.id) if event.get("reason") == "suspended"]
    assert len(denied) >= 5
    await cell.operator.post(f"{path}/resume")
    assert (await tenant.admin.get("/v1/tenant")).status_code == 200


async def test_a_suspended_tenants_token_isnt_redeemed_and_isnt_used_up(cell: Cell) -> None:
    made = await created(cell)
    path = f"/v1/tenants/{made['tenant']['id']}"
    await cell.operator.post(f"{path}/suspend")
    assert (await enrol(cell, made["enrolment"]["token"])).status_code == 403
    await cell.operator.post(f"{path}/resume")
    assert (await enrol(cell, made["enrolment"]["token"])).status_code == 201


async def test_suspending_twice_is_no_error_and_moves_the_epoch_once(cell: Cell, tenant: Tenant) -> None:
    for _ in range(2):
        assert (await cell.operator.post(f"/v1/tenants/{tenant.id}/suspend")).status_code == 200
    assert await sql(cell, "SELECT epoch FROM confide.tenant WHERE id = $1", tenant.id) == 2


async def test_a_tenant_that_is_leaving_is_not_resumed(cell: Cell, tenant: Tenant) -> None:
    await sql(cell, "UPDATE confide.tenant SET state = 'leaving' WHERE id = $1 RETURNING 1", tenant.id)
    for verb in ("suspend", "resume"):
        assert (await cell.operator.post(f"/v1/tenants/{tenant.id}/{verb}")).status_code == 409


@pytest.mark.parametrize("verb", ["", "/suspend", "/resume"])
async def test_an_unknown_tenant_is_404(cell: Cell, verb: str) -> None:
    method = "POST" if verb else "GET"
    for tenant in (new_id(), NO_UUID):
        assert (await cell.operator.request(method, f"/v1/tenants/{tenant}{verb}")).status_code == 404


async def test_an_admin_changes_settings_and_every_worker_reads_them_anew(cell: Cell, tenant: Tenant) -> None:
    before = await sql(cell, "SELECT epoch FROM confide.tenant WHERE id = $1", tenant.id)
    answer = await tenant.admin.patch("/v1/tenant", json={"require_preconditions": True, "ttl_idle_seconds": 600})
    assert answer.status_code == 200
    assert answer.json()["require_preconditions"] is True
    created, changed = (datetime.fromisoformat(answer.json()[name]) for name in ("created_at", "changed_at"))
    assert changed > created
    assert await sql(cell, "SELECT epoch FROM confide.tenant WHERE id = $1", tenant.id) == before + 1
    [event] = await events(cell, tenant.id, "tenant.update")
    assert event["detail"] == {"require_preconditions": "true", "ttl_idle_seconds": "600"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"rate_per_second": 1000000}, 422),
        ({"lease_seconds": 300}, 422),
        ({"state": "active"}, 422),
        ({"region": "us-east-1"}, 422),
        ({"ttl_idle_seconds": 315360000}, 422),
        ({"ttl_max_seconds": 1}, 422),
        ({"ttl_idle_seconds": -1}, 422),
        ({"require_preconditions": None}, 422),
    ],
)
async def test_settings_that_arent_an_admins_or_cant_be_are_refused(tenant: Tenant, body: dict, status: int) -> None:
    before = (await tenant.admin.get("/v1/tenant")).json()
    assert (await tenant.admin.patch("/v1/tenant", json=body)).status_code == status
    assert (await tenant.admin.get("/v1/tenant")).json() == before


async def test_an_operator_pages_through_all_tenants(cell: Cell) -> None:
    made = [(await created(cell, name=f"t{number}"))["tenant"]["id"] for number in range(5)]
    first = (await cell.operator.get("/v1/tenants", params={"limit": 3})).json()
    second = (await cell.operator.get("/v1/tenants", params={"limit": 3, "cursor": first["cursor"]})).json()
    assert [tenant["id"] for tenant in first["tenants"] + second["tenants"]] == made
    assert "cursor" not in second


async def test_no_tenant_is_made_for_an_operator_whose_key_was_revoked(cell: Cell) -> None:
    made = (await cell.operator.post("/v1/operator-keys", json={"name": "gone"})).json()
    gone = cell.client(made["secret"])
    assert (await gone.get("/v1/tenants")).status_code == 200
    await sql(cell, "UPDATE confide.api_key SET revoked_at = now() WHERE id::text = $1 RETURNING 1", made["key"]["id"])
    assert (await gone.post("/v1/tenants", json={"name": "x"})).status_code == 401
    assert await sql(cell, "SELECT count(*) FROM confide.tenant") == 0


async def test_no_operator_gets_into_a_tenant_after_its_enrolment(cell: Cell, tenant: Tenant) -> None:
    await make_key(tenant.admin)
    for method, path in (
        ("GET", "/v1/api-keys"),
        ("POST", "/v1/api-keys"),
        ("GET", "/v1/audit/events"),
        ("POST", "/v1/load"),
        ("PATCH", "/v1/tenant"),
        ("GET", "/v1/tenant"),
    ):
        body = {} if method != "GET" else None
        assert (await cell.operator.request(method, path, json=body)).status_code == 403
