"""The gate: one and the same 401, key formats offline, region, sources, rates, and denials that are counted."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from app.crypto import apikeys
from app.errors import RateLimited, Unauthenticated
from app.identity import NO_UUID, new_id
from app.services.access import Access
from app.services.rate import Rates
from tests.cell import REGION, Cell, Tenant, running_cell
from tests.control.support import events, make_key, shape, sql

UNKNOWN = apikeys.mint("dev", REGION, new_id())


async def refused(cell: Cell, key: str | None, **headers: str) -> tuple:
    client = cell.client(key)
    answer = await client.get("/v1/tenant", headers=headers)
    assert answer.status_code == 401
    return shape(answer)


async def test_every_failure_is_one_and_the_same_401(cell: Cell, tenant: Tenant) -> None:
    good = tenant.keys["admin"]
    ended = await make_key(tenant.admin, role="admin", ttl=3600)
    await sql(cell, "UPDATE confide.api_key SET expires_at = now() WHERE id = $1 RETURNING 1", ended["key"]["id"])
    revoked = await make_key(tenant.admin, role="admin")
    await tenant.admin.post(f"/v1/api-keys/{revoked['key']['id']}/revoke")
    elsewhere = await make_key(tenant.admin, role="admin", sources=["203.0.113.0/24"])
    parsed = apikeys.parse(good)
    forged = apikeys.mint("dev", REGION, parsed.key_id)
    shapes = [
        await refused(cell, None),
        await refused(cell, "nonsense"),
        await refused(cell, good[:-1]),
        await refused(cell, good[:-1] + ("0" if good[-1] != "0" else "1")),
        await refused(cell, good + "0"),
        await refused(cell, UNKNOWN),
        await refused(cell, UNKNOWN),
        await refused(cell, forged),
        await refused(cell, apikeys.mint("live", REGION, parsed.key_id)),
        await refused(cell, apikeys.mint_enrolment("dev", REGION, new_id())),
        await refused(cell, ended["secret"]),
        await refused(cell, revoked["secret"]),
        await refused(cell, elsewhere["secret"]),
        await refused(cell, None, authorization=f"Basic {good}"),
        await refused(cell, None, authorization=good),
        await refused(cell, None, authorization="Bearer"),
        await refused(cell, None, authorization="Bearer " + "x" * 5000),
    ]
    assert len(set(map(repr, shapes))) == 1


async def test_an_unknown_key_takes_about_as_long_as_a_wrong_secret(cell: Cell, tenant: Tenant) -> None:
    key_id = apikeys.parse(tenant.keys["admin"]).key_id

    async def seconds(authorization: str) -> float:
        started = time.perf_counter()
        with pytest.raises(Unauthenticated):
            await cell.parts.services.access.authenticate(f"Bearer {authorization}".encode(), "127.0.0.1")
        return time.perf_counter() - started

    # Turn by turn and the least of each, so that what else the machine does falls on both.
    wrong, unknown = [], []
    for _ in range(30):
        wrong.append(await seconds(apikeys.mint("dev", REGION, key_id)))
        unknown.append(await seconds(apikeys.mint("dev", REGION, new_id())))
    # Both ask the database and compare a digest; only a known id also has its tenant's rate read.
    assert 0.1 < min(wrong) / min(unknown) < 10


async def test_the_scheme_is_case_insensitive(cell: Cell, tenant: Tenant) -> None:
    answer = await cell.anyone.get("/v1/tenant", headers={"authorization": f"bEARER {tenant.keys['admin']}"})
    assert answer.status_code == 200


async def test_a_key_of_another_region_is_sent_to_the_right_cell(database: str, tmp_path) -> None:
    cells = MappingProxyType({"us-east-1": "https://us.example.com"})
    async with running_cell(database, tmp_path, cells=cells) as cell:
        known = await cell.client(apikeys.mint("dev", "us-east-1", new_id())).get("/v1/tenant")
        assert known.status_code == 421
        assert known.json()["base_url"] == "https://us.example.com"
        unlisted = await cell.client(apikeys.mint("dev", "ap-south-1", new_id())).get("/v1/tenant")
        assert unlisted.status_code == 421
        assert "base_url" not in unlisted.json()
        typo = apikeys.mint("dev", "us-east-1", new_id())[:-6] + "000000"
        assert (await cell.client(typo).get("/v1/tenant")).status_code == 401


async def test_a_key_works_from_a_listed_source_only(cell: Cell, tenant: Tenant) -> None:
    access: Access = cell.parts.services.access
    made = await make_key(tenant.admin, sources=["10.1.0.0/16", "2001:db8::/32"])
    token = f"Bearer {made['secret']}".encode()
    for address in ("10.1.2.3", "2001:db8::1", "::ffff:10.1.2.3"):
        assert (await access.authenticate(token, address)).tenant == tenant.id
    for address in ("10.2.0.1", "2001:db9::1", "", "unix:", "10.1.2.3.4", "testserver"):
        with pytest.raises(Unauthenticated):
            await access.authenticate(token, address)


async def test_a_key_that_expires_while_it_is_cached_is_refused(cell: Cell, tenant: Tenant) -> None:
    access = cell.parts.services.access
    made = await make_key(tenant.admin, ttl=3600)
    token = f"Bearer {made['secret']}".encode()
    await access.authenticate(token, "127.0.0.1")
    known = next(iter(reversed(access._known.values())))
    known.expires_at = time.time() - 0.001
    with pytest.raises(Unauthenticated):
        await access.authenticate(token, "127.0.0.1")


async def test_a_warm_request_asks_the_database_nothing_at_the_gate(cell: Cell, tenant: Tenant, monkeypatch) -> None:
    access = cell.parts.services.access
    token = f"Bearer {tenant.keys['runtime']}".encode()
    await access.authenticate(token, "127.0.0.1")

    async def never(_key) -> None:
        pytest.fail("a cached key was looked up")

    monkeypatch.setattr(access._rows, "find", never)
    assert await access.authenticate(token, "127.0.0.1") is await access.authenticate(token, "127.0.0.1")


async def test_strangers_denials_become_one_event_in_the_cells_log(cell: Cell, tenant: Tenant) -> None:
    for _ in range(40):
        await refused(cell, UNKNOWN)
        await refused(cell, "nonsense")
    assert await events(cell, NO_UUID, "api-key.denied") == []
    await cell.parts.denials.flush()
    [event] = await events(cell, NO_UUID, "api-key.denied")
    assert event["detail"] == {"unknown": 40, "malformed": 40}
    assert (event["outcome"], event["reason"]) == ("denied", "unauthenticated")
    assert await events(cell, tenant.id, "api-key.denied") == []


async def test_a_denial_for_scope_is_an_event_in_the_tenants_log_and_a_flood_of_them_is_counted(
    cell: Cell, tenant: Tenant
) -> None:
    for _ in range(25):
        assert (await tenant.runtime.get("/v1/tenant")).status_code == 403
    single = await events(cell, tenant.id, "access.denied")
    assert len(single) == 10
    assert single[0]["reason"] == "scope"
    assert single[0]["detail"] == {"route": "get_own_tenant"}
    assert single[0]["api_key"] == str(apikeys.parse(tenant.keys["runtime"]).key_id)
    await cell.parts.denials.flush()
    summary = (await events(cell, tenant.id, "access.denied"))[-1]
    assert summary["detail"] == {"count": 15}


async def test_a_revoked_key_gets_401_and_no_403_that_would_tell_it_exists(cell: Cell, tenant: Tenant) -> None:
    made = await make_key(tenant.admin)
    client = cell.client(made["secret"])
    assert (await client.get("/v1/tenant")).status_code == 403
    await sql(cell, "UPDATE confide.api_key SET revoked_at = now() WHERE id = $1 RETURNING 1", made["key"]["id"])
    assert (await client.get("/v1/tenant")).status_code == 401


async def test_the_rate_is_per_tenant_and_says_when_to_come_again(cell: Cell, tenant: Tenant, other: Tenant) -> None:
    await sql(cell, "UPDATE confide.tenant SET rate_per_second = 1 WHERE id = $1 RETURNING 1", tenant.id)
    cell.parts.services.access._known.clear()
    answers = [await tenant.admin.get("/v1/tenant") for _ in range(12)]
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited
    assert limited[0].headers["retry-after"] == "1"
    assert (await other.admin.get("/v1/tenant")).status_code == 200


def test_a_bucket_fills_again_at_its_rate() -> None:
    now = [100.0]
    rates = Rates(2, lambda: now[0])
    tenant = new_id()
    rates.admit(tenant, None)
    rates.admit(tenant, None)
    with pytest.raises(RateLimited):
        rates.admit(tenant, None)
    now[0] += 0.5
    rates.admit(tenant, None)
    with pytest.raises(RateLimited) as refusal:
        rates.admit(tenant, None)
    assert refusal.value.retry_after == 1
    rates.admit(new_id(), None)
    now[0] += 1000
    for _ in range(2):
        rates.admit(tenant, None)
    with pytest.raises(RateLimited):
        rates.admit(tenant, None)


async def test_last_use_is_written_in_batches(cell: Cell, tenant: Tenant) -> None:
    await tenant.admin.get("/v1/tenant")
    await cell.parts.services.access.flush()
    keys = (await tenant.admin.get("/v1/api-keys")).json()["keys"]
    used = {key["name"]: key.get("last_used_at") for key in keys}
    assert used["first-admin"] is not None
    assert used["runtime"] is None
    assert datetime.now(UTC) - datetime.fromisoformat(used["first-admin"]) < timedelta(minutes=1)


async def test_a_stored_key_is_a_digest_under_the_pepper(cell: Cell, tenant: Tenant) -> None:
    secret = tenant.keys["runtime"]
    stored = await sql(cell, "SELECT digest FROM confide.api_key WHERE id = $1", apikeys.parse(secret).key_id)
    pepper = cell.parts.services.secrets.pepper
    rights = (str(tenant.id), "runtime")
    principal = str(
        await sql(cell, "SELECT principal FROM confide.api_key WHERE id = $1", apikeys.parse(secret).key_id)
    )
    scopes = "context:read,context:write"
    assert apikeys.matches(pepper, secret, stored, rights[0], principal, rights[1], scopes, "serve", "anywhere", "")
    assert not apikeys.matches(pepper, secret, stored)
    assert secret.encode() not in stored


@pytest.mark.parametrize(
    "change",
    [
        "tenant_id = '01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f'",
        "principal = '01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f'",
        "role = 'admin'",
        "scopes = scopes || 'audit:read'::text",
        "purposes = purposes || 'tenant-export'::text",
        "sources = '{127.0.0.1/32}'",
    ],
)
async def test_g2_a_key_whose_row_was_given_other_rights_is_no_key(cell: Cell, tenant: Tenant, change: str) -> None:
    key = apikeys.parse(tenant.keys["runtime"]).key_id
    await sql(cell, f"UPDATE confide.api_key SET {change} WHERE id = $1 RETURNING 1", key)
    cell.parts.services.access.forget(key)
    cell.parts.services.access._known.clear()
    answer = await tenant.runtime.post("/v1/load", json={"external_id": "x"})
    assert answer.status_code == 401


async def test_a_key_of_another_cells_pepper_is_refused(database: str, tmp_path) -> None:
    async with running_cell(database, tmp_path / "a") as cell:
        secret = (await cell.tenant()).keys["admin"]
    async with running_cell(database, tmp_path / "b") as stranger:
        assert (await stranger.client(secret).get("/v1/tenant")).status_code == 401
