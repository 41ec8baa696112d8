"""API keys: exact scopes, no escalation, rotation that overlaps, revocation at once, no word of other tenants."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from app.crypto import apikeys
from app.identity import NO_UUID, ROLE_SCOPES, Role, new_id
from tests.cell import Cell, Tenant
from tests.control.support import events, make_key, shape, sql

CONTROL = [
    ("POST", "/v1/tenants", "operator"),
    ("GET", "/v1/tenants", "operator"),
    ("GET", "/v1/tenants/{id}", "operator"),
    ("POST", "/v1/tenants/{id}/suspend", "operator"),
    ("POST", "/v1/tenants/{id}/resume", "operator"),
    ("GET", "/v1/operator-keys", "operator"),
    ("POST", "/v1/operator-keys", "operator"),
    ("POST", "/v1/operator-keys/{id}/revoke", "operator"),
    ("POST", "/v1/operator-keys/{id}/rotate", "operator"),
    ("GET", "/v1/tenant", "admin auditor"),
    ("PATCH", "/v1/tenant", "admin"),
    ("POST", "/v1/api-keys", "admin"),
    ("GET", "/v1/api-keys", "admin"),
    ("GET", "/v1/api-keys/{id}", "admin"),
    ("POST", "/v1/api-keys/{id}/rotate", "admin"),
    ("POST", "/v1/api-keys/{id}/revoke", "admin"),
    ("GET", "/v1/audit/events", "admin auditor"),
    ("POST", "/v1/load", "runtime"),
    ("POST", "/v1/commit", "runtime"),
]


@pytest.mark.parametrize(("method", "path", "roles"), CONTROL)
async def test_each_route_lets_exactly_its_roles_in(
    cell: Cell, tenant: Tenant, method: str, path: str, roles: str
) -> None:
    clients = {"operator": cell.operator, "admin": tenant.admin, "auditor": tenant.auditor, "runtime": tenant.runtime}
    for role, client in clients.items():
        body = {} if method in {"POST", "PATCH"} else None
        answer = await client.request(method, path.replace("{id}", str(new_id())), json=body)
        if role in roles.split():
            assert answer.status_code not in {401, 403}, (role, answer.text)
        else:
            assert answer.status_code == 403, (role, answer.text)
            assert answer.json()["type"] == "urn:confide:problem:forbidden"


async def test_a_key_carries_the_scopes_of_its_role_or_fewer(tenant: Tenant) -> None:
    for role in (Role.RUNTIME, Role.ADMIN, Role.AUDITOR):
        made = await make_key(tenant.admin, role=role.value)
        assert set(made["key"]["scopes"]) == ROLE_SCOPES[role]
    fewer = await make_key(tenant.admin, scopes=["context:read"])
    assert fewer["key"]["scopes"] == ["context:read"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"role": "runtime", "scopes": ["api-keys"]}, "/scopes"),
        ({"role": "runtime", "scopes": ["cell:write"]}, "/scopes"),
        ({"role": "auditor", "scopes": ["context:read"]}, "/scopes"),
        ({"role": "admin", "scopes": ["context:read"]}, "/scopes"),
        ({"role": "auditor", "purposes": ["serve"]}, "/purposes"),
        ({"role": "runtime", "purposes": ["tenant-export"]}, "/purposes"),
        ({"role": "runtime", "sources": ["10.0.0.1/8"]}, "/sources"),
        ({"role": "runtime", "sources": ["::ffff:1.2.3.4/200"]}, "/sources"),
        ({"role": "runtime", "ttl": 10, "expires_at": "2040-01-01T00:00:00Z"}, "/ttl"),
        ({"role": "runtime", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"role": "runtime", "expires_at": "2099-01-01T00:00:00Z"}, "/expires_at"),
        ({"role": "operator"}, "/role"),
        ({"role": "root"}, "/role"),
        ({"role": "runtime", "purposes": ["training"]}, "/purposes/0"),
        ({"role": "runtime", "name": "Über"}, "/name"),
        ({"role": "runtime", "name": ""}, "/name"),
        ({"role": "runtime", "name": "a", "tenant": str(new_id())}, None),
        ({"role": "runtime", "principal": str(new_id())}, None),
    ],
)
async def test_a_key_that_no_role_can_have_is_refused(tenant: Tenant, body: dict, pointer: str | None) -> None:
    answer = await tenant.admin.post("/v1/api-keys", json={"name": "x"} | body)
    assert answer.status_code == 422, answer.text
    if pointer is not None:
        assert answer.json()["pointer"] == pointer


async def test_an_admin_passes_on_no_more_than_his_own_key_carries(cell: Cell, tenant: Tenant) -> None:
    narrow = await make_key(tenant.admin, role="admin", name="narrow", scopes=["api-keys"], purposes=[])
    client = cell.client(narrow["secret"])
    for body in (
        {"role": "admin"},
        {"role": "admin", "scopes": ["keys:write"]},
        {"role": "admin", "scopes": ["api-keys"]},  # with all of the role's purposes
        {"role": "auditor"},
        {"role": "auditor", "scopes": ["audit:read"]},
    ):
        answer = await client.post("/v1/api-keys", json={"name": "x"} | body)
        assert answer.status_code == 403, (body, answer.text)
    denied = await events(cell, tenant.id, "api-key.create")
    assert [event["outcome"] for event in denied if event["outcome"] != "allowed"] == ["denied"] * 5
    # Opening context to serve is a runtime's business, which every issuer of keys may give out.
    assert (await client.post("/v1/api-keys", json={"name": "x", "role": "runtime"})).status_code == 201
    again = {"name": "x", "role": "admin", "scopes": ["api-keys"], "purposes": []}
    assert (await client.post("/v1/api-keys", json=again)).status_code == 201


async def test_rotating_a_mightier_key_is_no_way_around(cell: Cell, tenant: Tenant) -> None:
    narrow = await make_key(tenant.admin, role="admin", name="narrow", scopes=["api-keys"], purposes=[])
    client = cell.client(narrow["secret"])
    first = next(k for k in (await client.get("/v1/api-keys")).json()["keys"] if k["name"] == "first-admin")
    answer = await client.post(f"/v1/api-keys/{first['id']}/rotate", json={"overlap_seconds": 3600})
    assert answer.status_code == 403
    assert (await tenant.admin.get("/v1/tenant")).status_code == 200
    assert "replaced_by" not in (await tenant.admin.get(f"/v1/api-keys/{first['id']}")).json()


async def test_the_secret_is_shown_once_and_kept_nowhere(cell: Cell, tenant: Tenant) -> None:
    made = await make_key(tenant.admin)
    secret = made["secret"].rsplit("_", 1)[1]
    for path in ("/v1/api-keys", f"/v1/api-keys/{made['key']['id']}"):
        assert secret not in (await tenant.admin.get(path)).text
    assert secret not in str(await events(cell, tenant.id))


async def test_a_rotated_key_and_its_successor_both_work_until_the_overlap_ends(cell: Cell, tenant: Tenant) -> None:
    old = await make_key(tenant.admin, role="auditor", name="eyes", sources=["127.0.0.0/8"], ttl=86400)
    path = f"/v1/api-keys/{old['key']['id']}"
    answer = await tenant.admin.post(f"{path}/rotate", json={"overlap_seconds": 600})
    assert answer.status_code == 201, answer.text
    new = answer.json()
    for field in ("principal", "name", "role", "scopes", "purposes", "sources"):
        assert new["key"][field] == old["key"][field]
    assert new["secret"] != old["secret"]
    life = datetime.fromisoformat(new["key"]["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < life <= timedelta(days=1)
    record = (await tenant.admin.get(path)).json()
    assert record["replaced_by"] == new["key"]["id"]
    assert datetime.fromisoformat(record["expires_at"]) - datetime.now(UTC) < timedelta(seconds=601)
    for secret in (old["secret"], new["secret"]):
        assert (await cell.client(secret).get("/v1/tenant")).status_code == 200
    await sql(cell, "UPDATE confide.api_key SET expires_at = now() WHERE id::text = $1 RETURNING 1", old["key"]["id"])
    assert (await cell.client(old["secret"]).get("/v1/tenant")).status_code == 401
    assert (await cell.client(new["secret"]).get("/v1/tenant")).status_code == 200


async def test_an_overlap_of_zero_ends_the_old_key_at_once(cell: Cell, tenant: Tenant) -> None:
    old = await make_key(tenant.admin, role="auditor")
    client = cell.client(old["secret"])
    assert (await client.get("/v1/tenant")).status_code == 200
    await tenant.admin.post(f"/v1/api-keys/{old['key']['id']}/rotate", json={"overlap_seconds": 0})
    assert (await client.get("/v1/tenant")).status_code == 401


async def test_an_overlap_never_prolongs_a_key(tenant: Tenant) -> None:
    old = await make_key(tenant.admin, ttl=60)
    path = f"/v1/api-keys/{old['key']['id']}"
    await tenant.admin.post(f"{path}/rotate", json={"overlap_seconds": 604800})
    assert (await tenant.admin.get(path)).json()["expires_at"] == old["key"]["expires_at"]


@pytest.mark.parametrize("overlap", [-1, 604801, 1.5, "60", None, 2**70])
async def test_an_overlap_is_0_to_7_days(tenant: Tenant, overlap: object) -> None:
    old = await make_key(tenant.admin)
    answer = await tenant.admin.post(f"/v1/api-keys/{old['key']['id']}/rotate", json={"overlap_seconds": overlap})
    assert answer.status_code == 422


async def test_a_key_is_rotated_once_and_not_after_its_end(tenant: Tenant) -> None:
    old = await make_key(tenant.admin)
    path = f"/v1/api-keys/{old['key']['id']}/rotate"
    answers = await asyncio.gather(*(tenant.admin.post(path, json={"overlap_seconds": 60}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    gone = await make_key(tenant.admin)
    await tenant.admin.post(f"/v1/api-keys/{gone['key']['id']}/revoke")
    answer = await tenant.admin.post(f"/v1/api-keys/{gone['key']['id']}/rotate", json={"overlap_seconds": 60})
    assert answer.status_code == 409


async def test_revocation_is_effective_at_the_next_call_though_the_key_was_cached(cell: Cell, tenant: Tenant) -> None:
    """By another worker: this one has heard of nothing."""
    made = await make_key(tenant.admin, role="admin")
    client = cell.client(made["secret"])
    assert (await client.get("/v1/api-keys")).status_code == 200
    await sql(cell, "UPDATE confide.api_key SET revoked_at = now() WHERE id::text = $1 RETURNING 1", made["key"]["id"])
    for method, path, body in (
        ("GET", "/v1/api-keys", None),
        ("GET", "/v1/tenant", None),
        ("PATCH", "/v1/tenant", {"require_preconditions": True}),
        ("POST", "/v1/api-keys", {"name": "x", "role": "admin"}),
        ("GET", "/v1/audit/events", None),
    ):
        assert (await client.request(method, path, json=body)).status_code == 401, path
    assert (await tenant.admin.get("/v1/tenant")).json()["require_preconditions"] is False


async def test_revoking_twice_keeps_the_first_time(tenant: Tenant) -> None:
    made = await make_key(tenant.admin)
    path = f"/v1/api-keys/{made['key']['id']}/revoke"
    first = (await tenant.admin.post(path)).json()
    assert first["revoked_at"] == (await tenant.admin.post(path)).json()["revoked_at"]


async def test_another_tenants_key_is_the_same_404_as_none_at_all(cell: Cell, tenant: Tenant, other: Tenant) -> None:
    theirs = (await make_key(other.admin))["key"]["id"]
    operators = (await cell.operator.get("/v1/operator-keys")).json()["keys"][0]["id"]
    for method, end, body in (
        ("GET", "", None),
        ("POST", "/revoke", None),
        ("POST", "/rotate", {"overlap_seconds": 0}),
    ):
        shapes = set()
        for key in (theirs, operators, str(new_id()), str(NO_UUID)):
            answer = await tenant.admin.request(method, f"/v1/api-keys/{key}{end}", json=body)
            assert answer.status_code == 404
            shapes.add(repr(shape(answer)))
        assert len(shapes) == 1
    assert "revoked_at" not in (await other.admin.get(f"/v1/api-keys/{theirs}")).json()


async def test_a_list_shows_the_own_keys_only_and_its_cursor_is_bound(
    cell: Cell, tenant: Tenant, other: Tenant
) -> None:
    made = [(await make_key(tenant.admin, name=f"k{number}"))["key"]["id"] for number in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await tenant.admin.get("/v1/api-keys", params=query)).json()
        seen += [key["id"] for key in page["keys"]]
        last, cursor = cursor, page.get("cursor")
        if cursor is None:
            break
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen)) == 8
    for client, path in ((other.admin, "/v1/api-keys"), (cell.operator, "/v1/operator-keys")):
        assert (await client.get(path, params={"cursor": last})).status_code == 400
    for bad in ("x", last[:-2], last + "A", "%00", "A" * 1000):
        assert (await tenant.admin.get("/v1/api-keys", params={"cursor": bad})).status_code == 400


async def test_each_change_of_a_key_is_an_event_with_ids_only(cell: Cell, tenant: Tenant) -> None:
    made = await make_key(tenant.admin, name="agent-smith")
    key = made["key"]["id"]
    rotated = (await tenant.admin.post(f"/v1/api-keys/{key}/rotate", json={"overlap_seconds": 60})).json()
    await tenant.admin.post(f"/v1/api-keys/{key}/revoke")
    [created] = [e for e in await events(cell, tenant.id, "api-key.create") if e["detail"].get("key") == key]
    [rotate] = await events(cell, tenant.id, "api-key.rotate")
    [revoke] = await events(cell, tenant.id, "api-key.revoke")
    assert created["detail"] == {"key": key, "role": "runtime"}
    assert rotate["detail"] == {"key": key, "successor": rotated["key"]["id"], "overlap_seconds": 60}
    assert revoke["detail"] == {"key": key}
    admin = str(apikeys.parse(tenant.keys["admin"]).key_id)
    assert {e["api_key"] for e in (created, rotate, revoke)} == {admin}
    assert "agent-smith" not in str(await events(cell, tenant.id))


async def test_operators_issue_and_revoke_operators_keys_and_nothing_else(cell: Cell, tenant: Tenant) -> None:
    made = (await cell.operator.post("/v1/operator-keys", json={"name": "on-call"})).json()
    assert made["key"]["role"] == "operator"
    second = cell.client(made["secret"])
    assert (await second.get("/v1/tenants")).status_code == 200
    assert (await second.post(f"/v1/operator-keys/{made['key']['id']}/revoke")).status_code == 200
    assert (await second.get("/v1/tenants")).status_code == 401
    tenants_key = (await make_key(tenant.admin))["key"]["id"]
    assert (await cell.operator.post(f"/v1/operator-keys/{tenants_key}/revoke")).status_code == 404
    for scope in ("context:read", "audit:read", "api-keys"):
        answer = await cell.operator.post("/v1/operator-keys", json={"name": "x", "scopes": [scope]})
        assert answer.status_code == 422


async def test_a_reading_operator_cant_make_a_writing_one(cell: Cell) -> None:
    made = (await cell.operator.post("/v1/operator-keys", json={"name": "r", "scopes": ["cell:read"]})).json()
    reader = cell.client(made["secret"])
    assert (await reader.get("/v1/tenants")).status_code == 200
    assert (await reader.post("/v1/operator-keys", json={"name": "w"})).status_code == 403
    assert (await reader.post("/v1/tenants", json={"name": "w"})).status_code == 403
