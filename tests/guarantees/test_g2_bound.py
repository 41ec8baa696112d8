"""G2: a ciphertext opens only as what it was written as. The attacker here may write any row of the database."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.errors import Tampered
from app.services.sealing import object_id, open_object
from tests.cell import Cell, Tenant, running_cell
from tests.dialogue.calls import commit, done, load, refused

CHUNK = 16 * 1024
HEAD = 28 + 24 + 32  # header, salt, commitment
TAG = 16
BODY = b"x" * 40_000
OBJECT = "container_id = $1 AND id = $2"
TURN = "container_id = $1 AND number = $2"
CONTAINER = "id = $1"


async def _stored(tenant: Tenant, own: str, body: bytes = BODY) -> str:
    """A session with two objects, two turns and a label; its path."""
    turns = [{"json": "first"}, {"json": "second"}]
    made = await commit(tenant.runtime, external_id=own, create={"labels": ["l"]}, turns=turns)
    path = f"/v1/sessions/{made['session']['id']}"
    done(await tenant.runtime.put(f"{path}/context/c/k", content=body))
    done(await tenant.runtime.put(f"{path}/context/c/l", content=b"other"))
    return path


def _id(path: str) -> str:
    return path.split("/")[3]


def _object(cell: Cell, tenant: Tenant, path: str, key: str = "k") -> tuple[str, tuple[str, UUID]]:
    """How an object's row is named."""
    keys = cell.parts.services.keyring.get(tenant.id)
    assert keys is not None
    return OBJECT, (_id(path), object_id(keys, UUID(_id(path)), "c", key))


async def _tampered(client: Any, path: str, method: str = "GET", **body: Any) -> None:
    problem = refused(await client.request(method, path, **body), 500, "tampered")
    assert "x" * 20 not in str(problem)


async def _events(tenant: Tenant) -> int:
    query = {"action": "tamper.refused", "limit": 1000}
    return len(done(await tenant.auditor.get("/v1/audit/events", params=query))["events"])


def _flip(sealed: bytes, bit: int) -> bytes:
    changed = bytearray(sealed)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


async def _swap(superuser: Any, table: str, columns: str, one: tuple[str, Any], two: tuple[str, Any]) -> None:
    """Exchange ``columns`` of two rows, each named by a condition and its arguments."""
    rows = [await superuser.fetchrow(f"SELECT {columns} FROM {table} WHERE {at}", *of) for at, of in (one, two)]
    assert None not in rows
    for (at, of), row in ((one, rows[1]), (two, rows[0])):
        sets = ", ".join(f"{name} = ${len(of) + n}" for n, name in enumerate(columns.split(", "), 1))
        await superuser.execute(f"UPDATE {table} SET {sets} WHERE {at}", *of, *row)


# ---------------------------------------------------------------- bits


async def test_g2_every_flipped_bit_of_header_first_and_last_chunk_is_refused(
    cell: Cell, tenant: Tenant, superuser: Any
) -> None:
    """Through the service's own opening of a row: each bit of header, salt, commitment, the whole first chunk and the
    whole last one; of the chunk between, each 97th.
    """
    body = b"y" * (2 * CHUNK + 1000)
    at, of = _object(cell, tenant, await _stored(tenant, "a", body))
    row = dict(await superuser.fetchrow(f"SELECT * FROM confide.context_object WHERE {at}", *of))
    keys = cell.parts.services.keyring.get(tenant.id)
    assert keys is not None
    ck = keys.container_key(row["container_id"], row["ck_generation"])
    assert ck is not None
    assert open_object(keys, ck, row["container_id"], row).body == body
    changed = bytearray(row["body"])
    first_ends, last_starts = HEAD + CHUNK + TAG, HEAD + 2 * (CHUNK + TAG)
    row["body"] = memoryview(changed)
    opened, tried = [], 0
    bits = (range(first_ends * 8), range(first_ends * 8, last_starts * 8, 97), range(last_starts * 8, len(changed) * 8))
    for bit in chain.from_iterable(bits):
        changed[bit // 8] ^= 1 << bit % 8
        tried += 1
        with suppress(Tampered):
            open_object(keys, ck, row["container_id"], row)
            opened.append(bit)
        changed[bit // 8] ^= 1 << bit % 8
    assert opened == []
    assert tried > 8 * (HEAD + CHUNK + 1000)
    assert open_object(keys, ck, row["container_id"], row).body == body


async def test_g2_flipped_bits_are_refused_over_http_with_an_event_each(
    cell: Cell, tenant: Tenant, superuser: Any
) -> None:
    path = await _stored(tenant, "a")
    at, of = _object(cell, tenant, path)
    sealed = await superuser.fetchval(f"SELECT body FROM confide.context_object WHERE {at}", *of)
    size, last = len(sealed), HEAD + 2 * (CHUNK + TAG)
    write = f"UPDATE confide.context_object SET body = $3 WHERE {at}"
    places = [*range(0, HEAD * 8, 13), *range(HEAD * 8, last * 8, 10_007), *range(last * 8, size * 8, 1_009)]
    places += range((size - TAG) * 8, size * 8, 11)
    for bit in places:
        await superuser.execute(write, *of, _flip(sealed, bit))
        await _tampered(tenant.runtime, f"{path}/context/c/k")
    assert await _events(tenant) == len(places)
    await superuser.execute(write, *of, sealed)
    assert (await tenant.runtime.get(f"{path}/context/c/k")).content == BODY


async def test_g2_one_refused_object_refuses_the_whole_answer(tenant: Tenant, superuser: Any) -> None:
    path = await _stored(tenant, "a")
    await superuser.execute("UPDATE confide.context_object SET body = body || '\\x00'")
    head = {"content-type": "application/json"}
    await _tampered(tenant.runtime, "/v1/load", "POST", json={"session": _id(path), "context": [{}]})
    await _tampered(tenant.runtime, f"{path}/context")
    await _tampered(tenant.runtime, f"{path}/branch", "POST", json={})
    await _tampered(tenant.runtime, f"{path}/context/c/k", "PATCH", content=b"{}", headers=head)
    assert await _events(tenant) == 4


CHANGES = {
    "truncated at a chunk": f"body = substr(body, 1, greatest(length(body) - {CHUNK}, 9))",
    "truncated by a byte": "body = substr(body, 1, length(body) - 1)",
    "emptied": "body = '\\x'",
    "only a header": "body = substr(body, 1, 40)",
    "lengthened": "body = body || '\\x00'",
    "content type changed": "content_type = 'text/html'",
    "version changed": "version = gen_random_uuid()",
    "generation changed": "ck_generation = 2",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
async def test_g2_a_changed_object_is_refused(tenant: Tenant, superuser: Any, change: str) -> None:
    path = await _stored(tenant, "a")
    await superuser.execute(f"UPDATE confide.context_object SET {change}")
    await _tampered(tenant.runtime, f"{path}/context/c/k")
    assert await _events(tenant) == 1


# ---------------------------------------------------------------- moved rows

COLUMNS = ["body", "version, body", "version, body, content_type, ck_generation, size"]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("far", ["object", "container", "tenant"])
async def test_g2_a_row_moved_to_another_object_container_or_tenant_is_refused(
    cell: Cell, tenant: Tenant, superuser: Any, columns: str, far: str
) -> None:
    other = await cell.tenant("other") if far == "tenant" else tenant
    one = await _stored(tenant, "a", b"body one")
    two, key = (one, "l") if far == "object" else (await _stored(other, "b", b"body two"), "k")
    places = _object(cell, tenant, one), _object(cell, other, two, key)
    await _swap(superuser, "confide.context_object", columns, *places)
    await _tampered(tenant.runtime, f"{one}/context/c/k")
    await _tampered(other.runtime, f"{two}/context/c/{key}")
    await _swap(superuser, "confide.context_object", columns, *places)
    assert (await tenant.runtime.get(f"{one}/context/c/k")).content == b"body one"


async def test_g2_an_older_body_under_a_newer_version_is_refused(tenant: Tenant, superuser: Any) -> None:
    path = await _stored(tenant, "a", b"old")
    old = await superuser.fetch("SELECT id, body FROM confide.context_object")
    done(await tenant.runtime.put(f"{path}/context/c/k", content=b"new"))
    for row in old:
        await superuser.execute("UPDATE confide.context_object SET body = $1 WHERE id = $2", row["body"], row["id"])
    await _tampered(tenant.runtime, f"{path}/context/c/k")


async def test_g2_rows_taken_whole_into_another_tenant_open_for_nobody(
    cell: Cell, tenant: Tenant, superuser: Any
) -> None:
    other = await cell.tenant("other")
    await _stored(other, "warm")
    path = await _stored(tenant, "a")
    for table, column in (("container", "id"), ("container_key", "container_id"), ("context_object", "container_id")):
        await superuser.execute(f"UPDATE confide.{table} SET tenant_id = $1 WHERE {column} = $2", other.id, _id(path))
    await _tampered(other.runtime, f"{path}/context")
    await _tampered(other.runtime, path)
    refused(await tenant.runtime.get(path), 404)
    assert await _events(other) == 2


@pytest.mark.parametrize("columns", ["number", "id", "body", "id, body"])
async def test_g2_turns_that_changed_places_are_refused(tenant: Tenant, superuser: Any, columns: str) -> None:
    path = await _stored(tenant, "a")
    if columns == "number":
        for old, new in ((1, 99), (2, 1), (99, 2)):
            await superuser.execute("UPDATE confide.turn SET number = $1 WHERE number = $2", new, old)
    else:
        await _swap(superuser, "confide.turn", columns, (TURN, (_id(path), 1)), (TURN, (_id(path), 2)))
    await _tampered(tenant.runtime, f"{path}/turns")
    await _tampered(tenant.runtime, "/v1/load", "POST", json={"session": _id(path), "turns": {"last": 1}})
    await _tampered(tenant.runtime, f"{path}/turns/pop", "POST", json={"count": 1})
    assert await _events(tenant) == 3


@pytest.mark.parametrize(
    "change", ["content_type = 'text/html'", "body = substr(body, 1, length(body) - 1)", "ck_generation = 9"]
)
async def test_g2_a_changed_turn_is_refused(tenant: Tenant, superuser: Any, change: str) -> None:
    path = await _stored(tenant, "a")
    await superuser.execute(f"UPDATE confide.turn SET {change} WHERE number = 2")
    await _tampered(tenant.runtime, f"{path}/turns")


async def test_g2_names_of_a_container_cannot_be_moved(tenant: Tenant, superuser: Any) -> None:
    one, two = await _stored(tenant, "a"), await _stored(tenant, "b")
    places = [(CONTAINER, (_id(path),)) for path in (one, two)]
    await _swap(superuser, "confide.container", "meta, meta_version", places[0], places[1])
    for path in (one, two):
        await _tampered(tenant.runtime, path)
    assert await _events(tenant) == 2


# ---------------------------------------------------------------- keys and names, seen by a worker that has nothing
# cached


async def test_g2_swapped_container_keys_are_refused(database: str, tmp_path: Path, superuser: Any) -> None:
    async with running_cell(database, tmp_path / "state") as before:
        tenant = await before.tenant()
        one, two = await _stored(tenant, "a"), await _stored(tenant, "b")
    places = [("container_id = $1", (_id(path),)) for path in (one, two)]
    await _swap(superuser, "confide.container_key", "sealed", places[0], places[1])
    async with running_cell(database, tmp_path / "state") as after:
        client = after.client(tenant.keys["runtime"])
        await _tampered(client, f"{one}/context/c/k")
        await _tampered(client, f"{two}/context/c/new", "PUT", content=b"x")
        await _tampered(client, "/v1/load", "POST", json={"external_id": "b", "context": [{}]})
        await _tampered(client, "/v1/commit", "POST", json={"external_id": "a", "turns": [{"json": 1}]})
        watcher = Tenant(tenant.id, client, client, after.client(tenant.keys["auditor"]), {})
        assert await _events(watcher) == 4


@pytest.mark.parametrize("planted", [bytes(32), os.urandom(32), os.urandom(140)], ids=["zeros", "key", "sealed"])
async def test_g2_a_key_that_the_attacker_knows_is_never_used(
    database: str, tmp_path: Path, superuser: Any, planted: bytes
) -> None:
    async with running_cell(database, tmp_path / "state") as before:
        tenant = await before.tenant()
        path = await _stored(tenant, "a")
    await superuser.execute("UPDATE confide.container_key SET sealed = $1", planted)
    async with running_cell(database, tmp_path / "state") as after:
        await _tampered(after.client(tenant.keys["runtime"]), f"{path}/context/c/new", "PUT", content=b"x")
    assert await superuser.fetchval("SELECT count(*) FROM confide.context_object") == 2


async def test_g2_an_external_id_cannot_be_made_to_name_another_session(
    database: str, tmp_path: Path, superuser: Any
) -> None:
    async with running_cell(database, tmp_path / "state") as before:
        tenant = await before.tenant()
        one, two = await _stored(tenant, "a", b"of a"), await _stored(tenant, "b", b"of b")
    tags = {str(row["id"]): row["external_tag"] for row in await superuser.fetch("SELECT * FROM confide.container")}
    await superuser.execute("UPDATE confide.container SET external_tag = NULL")
    for place, other in ((_id(one), _id(two)), (_id(two), _id(one))):
        await superuser.execute("UPDATE confide.container SET external_tag = $1 WHERE id = $2", tags[other], place)
    async with running_cell(database, tmp_path / "state") as after:
        client = after.client(tenant.keys["runtime"])
        await _tampered(client, "/v1/load", "POST", json={"external_id": "a", "context": [{}]})
        await _tampered(client, "/v1/commit", "POST", json={"external_id": "b", "turns": [{"json": 1}]})


async def test_g2_a_session_cannot_be_given_another_person_s_subject(
    database: str, tmp_path: Path, superuser: Any
) -> None:
    ids = {}
    async with running_cell(database, tmp_path / "state") as before:
        tenant = await before.tenant()
        for person in ("p", "q"):
            put = [{"collection": "c", "key": "k", "json": person}]
            body = {"external_id": f"of-{person}", "create": {"subject": person}, "subject": {"put": put}}
            ids[person] = (await commit(tenant.runtime, **body))["subject"]["id"]
    await superuser.execute("UPDATE confide.container SET subject_id = $1 WHERE subject_id = $2", ids["q"], ids["p"])
    async with running_cell(database, tmp_path / "state") as after:
        client = after.client(tenant.keys["runtime"])
        await _tampered(client, "/v1/load", "POST", json={"external_id": "of-p", "subject": True})


async def test_g2_what_was_written_still_opens_on_another_worker(database: str, tmp_path: Path) -> None:
    async with running_cell(database, tmp_path / "state") as before:
        tenant = await before.tenant()
        path = await _stored(tenant, "a")
    async with running_cell(database, tmp_path / "state") as after:
        client = after.client(tenant.keys["runtime"])
        assert (await client.get(f"{path}/context/c/k")).content == BODY
        assert len((await load(client, external_id="a", turns={"last": 9}))["turns"]) == 2
