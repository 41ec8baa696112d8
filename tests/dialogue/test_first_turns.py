"""A session's first commit: what it makes besides, at once or not at all, and who else makes it meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from tests.cell import Cell, Tenant, running_cell
from tests.dialogue.calls import commit, done, load, name, refused, sql, text, words_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUT = {"collection": "c", "key": "k", "json": 1}


async def test_g7_a_refused_commit_leaves_no_subject_behind(cell: Cell, tenant: Tenant) -> None:
    body = {"external_id": name(), "create": {"subject": name()}, "put": [PUT], "expected_commit": 7}
    refused(await tenant.runtime.post("/v1/commit", json=body), 412, "precondition-failed")
    made = "SELECT count(*) FROM confide.container WHERE tenant_id = $1"
    assert (await sql(cell, made, tenant.id))[0][0] == 0


async def test_sessions_that_begin_at_once_for_a_new_subject_share_one(tenant: Tenant) -> None:
    person = name()
    bodies = [{"external_id": name(), "create": {"subject": person}, "turns": [text("a")]} for _ in range(12)]
    answers = await asyncio.gather(*(tenant.runtime.post("/v1/commit", json=body) for body in bodies))
    made = {done(answer)["session"]["id"] for answer in answers}
    found = done(await tenant.runtime.post("/v1/sessions/lookup", json={"subject": person}))["sessions"]
    assert {each["id"] for each in found} == made
    assert len(made) == 12


async def test_a_commit_writes_to_the_subject_that_the_session_has_now(
    module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker that knows the session still, when another has removed it and made one for somebody else."""
    state, own, first, second = tmp_path_factory.mktemp("two"), name(), name(), name()
    async with running_cell(module_database, state) as here, running_cell(module_database, state) as elsewhere:
        tenant = await here.tenant("two-workers")
        client = elsewhere.client(tenant.keys["runtime"])
        before = await commit(tenant.runtime, external_id=own, create={"subject": first}, subject={})
        done(await client.delete(f"/v1/sessions/{before['session']['id']}"), 204)
        after = await commit(client, external_id=own, create={"subject": second}, subject={})
        told = await commit(tenant.runtime, external_id=own, subject={"put": [PUT]})
        assert told["subject"]["id"] == after["subject"]["id"] != before["subject"]["id"]
        refused(await client.get(f"/v1/subjects/{before['subject']['id']}/context/c/k"), 404)


async def test_a_session_that_somebody_else_made_after_a_load_found_none_is_written_to(
    module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state, own = tmp_path_factory.mktemp("two"), name()
    async with running_cell(module_database, state) as here, running_cell(module_database, state) as elsewhere:
        tenant = await here.tenant("two-workers")
        refused(await tenant.runtime.post("/v1/load", json={"external_id": own}), 404)
        client = elsewhere.client(tenant.keys["runtime"])
        theirs = await commit(client, external_id=own, create={}, turns=[text("a")])
        ours = await commit(tenant.runtime, external_id=own, create={"subject": name()}, turns=[text("b")])
        assert (ours["session"]["id"], ours["session"].get("created", False)) == (theirs["session"]["id"], False)
        assert words_of((await load(client, external_id=own, turns={"last": 9}))["turns"]) == ["a", "b"]
