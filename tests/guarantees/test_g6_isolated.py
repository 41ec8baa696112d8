"""G6: two tenants, every route and role, generated from the OpenAPI document; and the row-level wall, from the
catalogue.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.store.connection import connector
from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done

ROLES = ("runtime", "admin", "auditor", "operator", "nobody")
ABSENT = "01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f"


def _same(answer: httpx2.Response) -> tuple[Any, ...]:
    """What a caller can see of an answer, without the request's own ids."""
    own = {"confide-request-id", "confide-trace-id", "date", "content-length"}
    body = re.sub(r"urn:uuid:[0-9a-f-]{36}", "urn:uuid:", answer.text)
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in own)
    return answer.status_code, headers, body


async def _document(cell: Cell) -> dict[str, Any]:
    document: dict[str, Any] = done(await cell.anyone.get("/openapi.json"))
    return document


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _example(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """A body that the route takes, if it takes one."""
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content and "example" in content["application/json"]:
        return {"json": content["application/json"]["example"]}
    if "application/json" in content:
        return {"json": {}}
    if "application/merge-patch+json" in content:
        return {"content": b"{}", "headers": {"content-type": "application/merge-patch+json"}}
    return {"content": b"x"} if content else {}


async def _belongings(cell: Cell, tenant: Tenant) -> dict[str, list[str]]:
    """Ids of everything that a tenant has, by the first part of the paths that name them."""
    made = await commit(
        tenant.runtime,
        external_id="shared-name",
        create={"subject": "shared-person", "labels": ["shared-label"]},
        put=[{"collection": "c", "key": "k", "json": {"secret": str(tenant.id)}, "tags": ["t"]}],
        turns=[{"json": str(tenant.id)}],
        subject={"put": [{"collection": "c", "key": "k", "json": str(tenant.id)}]},
        app={"name": "shared-app", "put": [{"collection": "c", "key": "k", "json": str(tenant.id)}]},
    )
    keys = done(await tenant.admin.get("/v1/api-keys"))
    listed = next(value for value in keys.values() if isinstance(value, list))
    return {
        "sessions": [made["session"]["id"]],
        "subjects": [made["subject"]["id"]],
        "apps": [made["app"]["id"]],
        "api-keys": [each["id"] for each in listed],
        "tenants": [str(tenant.id)],
    }


def _clients(cell: Cell, tenant: Tenant) -> dict[str, httpx2.AsyncClient]:
    own = {"runtime": tenant.runtime, "admin": tenant.admin, "auditor": tenant.auditor}
    return own | {"operator": cell.operator, "nobody": cell.anyone}


async def test_g6_every_route_answers_for_another_tenant_s_resource_as_for_none(cell: Cell) -> None:
    """Byte for byte, header for header; and nothing of the other tenant has changed afterwards."""
    one, other = await cell.tenant("one"), await cell.tenant("other")
    foreign = await _belongings(cell, other)
    await _belongings(cell, one)
    before = await _everything(cell, other.id)
    document = await _document(cell)
    tried = 0
    for method, path, operation in _operations(document):
        if "{id}" not in path or path.startswith("/v1/tenants/"):
            continue
        kind = path.split("/")[2]
        ids = foreign.get(kind, [str(other.id)])
        for role, client in _clients(cell, one).items():
            for place in ids:
                answers = []
                for asked in (place, ABSENT):
                    url = re.sub(r"\{[a-z_]+\}", "c", path.replace("{id}", asked)).replace("/c/c", "/c/k")
                    answers.append(await client.request(method, url, **_example(document, operation)))
                foreign_answer, absent_answer = answers
                assert foreign_answer.status_code in {400, 401, 403, 404, 405, 422}, (method, path, role)
                assert _same(foreign_answer) == _same(absent_answer), (method, path, role)
                assert str(other.id) not in foreign_answer.text
                if role in operation.get("x-confide-roles", []):
                    assert foreign_answer.status_code in {404, 422}, (method, path, role, foreign_answer.text)
                tried += 1
    assert tried > 100
    assert await _everything(cell, other.id) == before


async def test_g6_roles_reach_exactly_what_the_document_says(cell: Cell) -> None:
    tenant = await cell.tenant("one")
    own = await _belongings(cell, tenant)
    document = await _document(cell)
    for method, path, operation in _operations(document):
        allowed = operation.get("x-confide-roles")
        url = re.sub(r"\{[a-z_]+\}", "k", path.replace("{id}", ABSENT))
        for role, client in _clients(cell, tenant).items():
            if operation["security"] == []:
                continue
            if role == "nobody":
                answer = await client.request(method, url, **_example(document, operation))
                assert answer.status_code == 401, (method, path)
            elif allowed is not None and role not in allowed:
                answer = await client.request(method, url, **_example(document, operation))
                assert answer.status_code == 403, (method, path, role, answer.text)
    assert own["sessions"]


async def test_g11_neither_operator_nor_auditor_nor_admin_opens_context(cell: Cell) -> None:
    tenant = await cell.tenant("one")
    own = await _belongings(cell, tenant)
    document = await _document(cell)
    context = {"context:read", "context:write"}
    seen = 0
    for method, path, operation in _operations(document):
        if operation.get("x-confide-scope") not in context:
            continue
        kind = path.split("/")[2]
        url = re.sub(r"\{[a-z_]+\}", "k", path.replace("{id}", own.get(kind, [ABSENT])[0]).replace("{collection}", "c"))
        for role in ("operator", "auditor", "admin"):
            answer = await _clients(cell, tenant)[role].request(method, url, **_example(document, operation))
            assert answer.status_code == 403, (method, path, role)
            assert str(tenant.id) not in answer.text
            seen += 1
    assert seen > 60


async def test_g6_lists_and_look_ups_show_nothing_of_another_tenant(cell: Cell) -> None:
    one, other = await cell.tenant("one"), await cell.tenant("other")
    foreign = await _belongings(cell, other)
    hidden = [str(other.id), *foreign["sessions"], *foreign["subjects"], *foreign["apps"], *foreign["api-keys"]]
    for body in ({"external_id": "shared-name"}, {"subject": "shared-person"}, {"label": "shared-label"}):
        assert done(await one.runtime.post("/v1/sessions/lookup", json=body)) == {"sessions": []}
    texts = []
    for method, path, operation in _operations(await _document(cell)):
        if method != "GET" or "{" in path or operation["security"] == []:
            continue
        roles = [role for role in operation.get("x-confide-roles", []) if role != "operator"]
        texts += [(await _clients(cell, one)[role].get(path)).text for role in roles]
    assert len(texts) > 3
    for text in texts:
        assert not [each for each in hidden if each in text]
    made = await commit(one.runtime, external_id="shared-name", create={"subject": "shared-person"})
    assert made["session"]["created"] is True
    assert made["session"]["id"] not in foreign["sessions"]


async def _everything(cell: Cell, tenant: UUID) -> list[Any]:
    """All rows of a tenant's data, as a superuser sees them."""
    connection = await asyncpg.connect(cell.parts.settings.database_url)
    try:
        rows: list[Any] = []
        for table in ("container", "container_key", "context_object", "turn", "container_label", "enrolment"):
            query = f"SELECT * FROM confide.{table} WHERE tenant_id = $1 ORDER BY 1, 2, 3"
            rows += [tuple(row) for row in await connection.fetch(query, tenant)]
        keys = (
            "SELECT id, role, revoked_at, replaced_by, expires_at FROM confide.api_key WHERE tenant_id = $1 ORDER BY 1"
        )
        return rows + [tuple(row) for row in await connection.fetch(keys, tenant)]
    finally:
        await connection.close()


# ---------------------------------------------------------------- the second wall: row-level security

TABLES = """
SELECT c.oid::regclass::text AS name, n.nspname AS schema, c.relkind, c.relrowsecurity AS enabled,
       c.relforcerowsecurity AS forced,
       pg_get_userbyid(c.relowner) AS owner,
       (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attname = CASE WHEN c.relname = 'tenant' THEN 'id' ELSE 'tenant_id' END) AS wall,
       (SELECT bool_or(has_table_privilege(r, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE'))
        FROM unnest(ARRAY['confide_service', 'confide_auditor']) AS r) AS reachable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname LIKE 'confide%' AND c.relkind IN ('r', 'p') ORDER BY 1
"""
OF_THE_CELL = re.compile(
    r"confide\.(cell|detection_mark)|confide_keys\.vendor_kek|confide_migrations\.schema_version|confide_audit\.(writer|.*(origin|epoch|signer|lead|sealer|state).*)"
)


async def _tables(superuser: Any) -> list[Any]:
    return list(await superuser.fetch(TABLES))


async def test_g6_every_table_of_tenants_has_forced_row_level_security(cell: Cell, superuser: Any) -> None:
    tables = await _tables(superuser)
    assert len(tables) > 15
    bare = [t for t in tables if t["wall"] is not None and not (t["enabled"] and t["forced"])]
    assert [t["name"] for t in bare if t["reachable"]] == []
    unwalled = [t["name"] for t in tables if t["wall"] is None and not OF_THE_CELL.fullmatch(t["name"])]
    assert unwalled == []


async def test_g6_the_service_owns_nothing_and_passes_no_wall(cell: Cell, superuser: Any) -> None:
    assert {table["owner"] for table in await _tables(superuser)} == {"confide_owner"}
    rights = await superuser.fetchrow(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcanlogin,"
        " pg_has_role('confide_service', 'confide_owner', 'MEMBER') AS owns"
        " FROM pg_roles WHERE rolname = 'confide_service'"
    )
    assert not any(rights.values())


async def test_g6_with_one_tenant_named_nothing_of_another_is_visible_or_writable(
    cell: Cell, database: str, superuser: Any
) -> None:
    one, other = await cell.tenant("one"), await cell.tenant("other")
    for tenant in (one, other):
        await _belongings(cell, tenant)
    tables = [table for table in await _tables(superuser) if table["wall"] is not None]
    await cell.parts.services.access.flush()  # when keys were last used, which is written now and then
    connection = await connector(database)()
    kept = [table for table in tables if not table["name"].startswith("confide_audit.")]  # the sealer writes there
    before = [await _rows_of(superuser, table, other.id) for table in kept]
    filled = 0
    try:
        for table in tables:
            name, wall = table["name"], table["wall"]
            there = await superuser.fetchval(f"SELECT count(*) FROM {name} WHERE {wall} = $1", other.id)
            filled += there > 0
            for named in (str(one.id), ""):
                await _blind(connection, name, wall, other.id, named)
        assert filled >= 8
        assert [await _rows_of(superuser, table, other.id) for table in kept] == before
    finally:
        await connection.close()


async def _blind(connection: Any, name: str, wall: str, other: UUID, named: str) -> None:
    """Neither SELECT nor UPDATE nor DELETE nor INSERT reaches a row of ``other`` while ``named`` is set."""
    forbidden = (asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)
    for statement in (
        f"SELECT count(*) FROM {name} WHERE {wall} = $1",
        f"WITH gone AS (UPDATE {name} SET {wall} = {wall} WHERE {wall} = $1 RETURNING 1) SELECT count(*) FROM gone",
        f"WITH gone AS (DELETE FROM {name} WHERE {wall} = $1 RETURNING 1) SELECT count(*) FROM gone",
    ):
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('confide.tenants', $1, true)", "{" + named + "}")
                assert await connection.fetchval(statement, other) == 0, (name, statement)
        except forbidden:
            continue
    columns = f"INSERT INTO {name} ({wall}) VALUES ($1)"
    with pytest.raises((*forbidden, asyncpg.PostgresError)) as caught:  # noqa: PT012  the statement needs its transaction
        async with connection.transaction():
            await connection.execute("SELECT set_config('confide.tenants', $1, true)", "{" + named + "}")
            await connection.execute(columns, other)
    # Columns that are missing would be told after the wall has let the row pass; a missing partition is told before.
    assert caught.value.sqlstate in {"42501", "P0001"} or "no partition" in str(caught.value), (name, caught.value)


async def _rows_of(superuser: Any, table: Any, tenant: UUID) -> list[str]:
    query = f"SELECT t::text FROM {table['name']} AS t WHERE {table['wall']} = $1 ORDER BY 1"
    return [row[0] for row in await superuser.fetch(query, tenant)]


async def test_g6_the_wall_is_seen_by_the_test(cell: Cell, database: str, superuser: Any) -> None:
    """The control: with the other tenant named, its rows are there."""
    other = await cell.tenant("other")
    await _belongings(cell, other)
    connection = await connector(database)()
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('confide.tenants', $1, true)", "{" + str(other.id) + "}")
            for table in ("container", "context_object", "turn", "container_key"):
                assert await connection.fetchval(f"SELECT count(*) FROM confide.{table}") > 0
    finally:
        await connection.close()


@pytest.mark.parametrize("statement", ["UPDATE {} SET action = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
async def test_g4_the_service_cannot_change_or_remove_audit_rows(
    cell: Cell, database: str, superuser: Any, statement: str
) -> None:
    tenant = await cell.tenant("one")
    parts = [t["name"] for t in await _tables(superuser) if re.fullmatch(r"confide_audit\.journal.*", t["name"])]
    assert len(parts) >= 2
    connection = await connector(database)()
    try:
        for part in parts:
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)):  # noqa: PT012  as above
                async with connection.transaction():
                    await connection.execute(
                        "SELECT set_config('confide.tenants', $1, true)", "{" + str(tenant.id) + "}"
                    )
                    await connection.execute(statement.format(part))
    finally:
        await connection.close()
    for part in parts:
        with pytest.raises(asyncpg.PostgresError):
            await superuser.execute(statement.format(part) if "TRUNCATE" in statement else f"TRUNCATE {part}")
