"""The schema goes down and up again, to each revision and to nothing: what a customer stored survives what it may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.store.migrate import MIGRATIONS, current, downgrade, upgrade
from tests.cell import Cell, running_cell
from tests.dialogue.calls import commit, done, load

SCHEMAS = {"confide", "confide_keys", "confide_audit"}
STORED = {"collection": "c", "key": "k", "json": {"secret": "a word"}, "tags": ["t"]}


def _revisions() -> list[str]:
    """From the first to the head."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


REVISIONS = _revisions()
HEAD = REVISIONS[-1]


async def _rows(url: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


async def _schemas(url: str) -> set[str]:
    found = await _rows(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'confide%'")
    return {row["nspname"] for row in found} & SCHEMAS


async def _shape(url: str) -> list[str]:
    """Columns, constraints, indexes, policies, functions and rights, in words that two databases can be compared by."""
    spaces = "n.nspname IN ('confide', 'confide_keys', 'confide_audit')"
    # Partitions are made by the running service, for the day; they are no part of a revision. A downgrade that drops
    # a column leaves a gap in the numbering, so that positions aren't compared.
    found = await _rows(
        url,
        f"""
        SELECT concat_ws(' ', 'column', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                         a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) AS said
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE {spaces} AND NOT c.relispartition AND c.relkind IN ('r', 'p', 'v')
        UNION ALL
        SELECT concat_ws(' ', 'constraint', n.nspname, c.relname, o.conname, pg_get_constraintdef(o.oid))
          FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {spaces} AND NOT c.relispartition
        UNION ALL
        SELECT concat_ws(' ', 'index', pg_get_indexdef(c.oid))
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {spaces} AND NOT c.relispartition AND c.relkind IN ('i', 'I')
        UNION ALL
        SELECT concat_ws(' ', 'policy', schemaname, tablename, policyname, permissive, roles, cmd, qual, with_check)
          FROM pg_policies JOIN pg_namespace n ON n.nspname = schemaname
          JOIN pg_class c ON c.relname = tablename AND c.relnamespace = n.oid
         WHERE {spaces} AND NOT c.relispartition
        UNION ALL
        SELECT concat_ws(' ', 'rights', n.nspname, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity,
                         (SELECT string_agg(acl::text, ',' ORDER BY acl::text) FROM unnest(c.relacl) acl))
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {spaces} AND NOT c.relispartition AND c.relkind IN ('r', 'p', 'v', 'S')
        UNION ALL
        SELECT concat_ws(' ', 'function', pg_get_functiondef(p.oid),
                         (SELECT string_agg(acl::text, ',' ORDER BY acl::text) FROM unnest(p.proacl) acl))
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {spaces}
        UNION ALL
        SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid))
          FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE {spaces} AND NOT c.relispartition AND NOT t.tgisinternal
        ORDER BY said
        """,
    )
    return [row["said"] for row in found]


async def _stored(cell: Cell) -> str:
    """A tenant with one object in a session; its runtime key."""
    tenant = await cell.tenant()
    await commit(tenant.runtime, external_id="s", create={"subject": "person"}, put=[STORED])
    await _still_there(cell, tenant.keys["runtime"])
    return tenant.keys["runtime"]


async def _still_there(cell: Cell, key: str) -> None:
    found = await load(cell.client(key), external_id="s", context=[{"collection": "c", "key": "k"}])
    assert [each["json"] for each in found["session"]["context"]] == [STORED["json"]]


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_what_is_stored_survives_the_way_down_and_up(empty_database: str, tmp_path: Path, revision: str) -> None:
    await asyncio.to_thread(upgrade, empty_database)
    before = await _shape(empty_database)
    async with running_cell(empty_database, tmp_path / "state") as cell:
        key = await _stored(cell)
    await asyncio.to_thread(downgrade, empty_database, revision)
    assert await asyncio.to_thread(current, empty_database) == revision
    await asyncio.to_thread(upgrade, empty_database)
    assert await asyncio.to_thread(current, empty_database) == HEAD
    assert await _shape(empty_database) == before
    async with running_cell(empty_database, tmp_path / "state") as cell:
        await _still_there(cell, key)
        written = {"collection": "c", "key": "later", "json": 1}
        await commit(cell.client(key), external_id="s", put=[written])
        await _stored_by_another(cell)


async def _stored_by_another(cell: Cell) -> None:
    """The cell takes new tenants, too."""
    tenant = await cell.tenant("another")
    await commit(tenant.runtime, external_id="s", create={}, put=[STORED])
    await _still_there(cell, tenant.keys["runtime"])


async def test_each_revision_goes_down_to_what_was_before_it(empty_database: str) -> None:
    shapes = {}
    for revision in REVISIONS:
        await asyncio.to_thread(upgrade, empty_database, revision)
        shapes[revision] = await _shape(empty_database)
    for revision in REVISIONS[-2::-1]:
        await asyncio.to_thread(downgrade, empty_database, revision)
        assert await _shape(empty_database) == shapes[revision], revision


async def test_base_removes_everything_and_head_serves_again(empty_database: str, tmp_path: Path) -> None:
    assert await asyncio.to_thread(current, empty_database) is None
    await asyncio.to_thread(upgrade, empty_database)
    assert await _schemas(empty_database) == SCHEMAS
    async with running_cell(empty_database, tmp_path / "state") as cell:
        key = await _stored(cell)
    await asyncio.to_thread(downgrade, empty_database, "base")
    assert await _schemas(empty_database) == set()
    assert await asyncio.to_thread(current, empty_database) is None
    await asyncio.to_thread(upgrade, empty_database)
    async with running_cell(empty_database, tmp_path / "anew") as cell:
        await _stored(cell)
        assert (await cell.client(key).get("/v1/tenant")).status_code == 401
        done(await cell.anyone.get("/openapi.json"))
