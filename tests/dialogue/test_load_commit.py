"""A dialogue turn's load and commit: selectors, all or nothing, expected numbers, repeats, batches, bad requests."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.cell import Cell, Tenant, running_cell
from tests.dialogue.calls import commit, done, load, name, names_of, refused, say, session, sql, text, words_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


def put(collection: str, key: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"collection": collection, "key": key, "json": value, **more}


# ---------------------------------------------------------------- load


async def _filled(tenant: Tenant) -> str:
    own = name()
    objects = [put("a", str(n), n, tags=["even"] if n % 2 == 0 else ["odd", "x"]) for n in range(4)]
    await commit(tenant.runtime, external_id=own, create={"subject": name()}, put=[*objects, put("b", "0", 0)])
    return own


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ([{}], {"a0", "a1", "a2", "a3", "b0"}),
        ([{"collection": "a"}], {"a0", "a1", "a2", "a3"}),
        ([{"collection": "a", "key": "2"}], {"a2"}),
        ([{"collection": "a", "newest": 2}], {"a3", "a2"}),
        ([{"newest": 1}], {"b0"}),
        ([{"tag": "odd"}], {"a1", "a3"}),
        ([{"tag": "odd", "newest": 1}], {"a3"}),
        ([{"collection": "b", "tag": "odd"}], set()),
        ([{"collection": "a", "tag": "x"}, {"collection": "b"}], {"a1", "a3", "b0"}),
        ([{"collection": "none"}], set()),
        ([{"collection": "a", "key": "9"}], set()),
        ([], set()),
        (None, set()),
    ],
)
async def test_selectors_take_what_they_name(tenant: Tenant, selectors: Any, expected: set[str]) -> None:
    own = await _filled(tenant)
    loaded = await load(tenant.runtime, external_id=own, **({"context": selectors} if selectors is not None else {}))
    found = loaded["session"].get("context", [])
    assert {each["collection"] + each["key"] for each in found} == expected
    versions = [each["version"] for each in found]
    assert versions == sorted(versions, reverse=True)


async def test_a_load_brings_subject_and_app_with_their_own_selectors(tenant: Tenant) -> None:
    own, app = name(), name()
    await commit(
        tenant.runtime,
        external_id=own,
        create={"subject": name()},
        put=[put("s", "1", 1)],
        turns=[text("hello")],
        subject={"put": [put("p", "1", 1), put("q", "1", 1)]},
        app={"name": app, "put": [put("x", "1", 1), put("y", "1", 1)]},
    )
    everything = await load(tenant.runtime, external_id=own, context=[{}], turns={"last": 1}, subject=True, app=app)
    assert names_of(everything["session"]) == [("s", "1")]
    assert set(names_of(everything["subject"])) == {("p", "1"), ("q", "1")}
    assert set(names_of(everything["app"])) == {("x", "1"), ("y", "1")}
    narrow = {"subject_context": [{"collection": "q"}], "app_context": [{"collection": "y", "key": "1"}]}
    part = await load(tenant.runtime, external_id=own, subject=True, app=app, **narrow)
    assert names_of(part["subject"]) == [("q", "1")]
    assert names_of(part["app"]) == [("y", "1")]


async def test_an_app_or_subject_that_is_not_there_is_left_out(tenant: Tenant) -> None:
    own = name()
    await session(tenant.runtime, external_id=own)
    loaded = await load(tenant.runtime, external_id=own, subject=True, app=name())
    assert "subject" not in loaded
    assert "app" not in loaded


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"session": "x"},
        {"session": str(uuid4()), "external_id": "x"},
        {"external_id": "x", "context": [{"key": "k"}]},
        {"external_id": "x", "context": [{"collection": "c", "key": "k", "tag": "t"}]},
        {"external_id": "x", "context": [{"newest": 0}]},
        {"external_id": "x", "context": [{}] * 33},
        {"external_id": "x", "turns": {"last": 0}},
        {"external_id": "x", "turns": {}},
        {"external_id": "x", "subject": "me"},
        {"external_id": "x", "everything": True},
        {"external_id": "x", "app": ""},
    ],
)
async def test_a_bad_load_is_refused(tenant: Tenant, body: object) -> None:
    refused(await tenant.runtime.post("/v1/load", json=body), 422)


async def test_more_objects_than_a_load_holds_are_told(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    for start in range(0, 1100, 220):
        await commit(tenant.runtime, session=place, put=[put("c", str(n), n) for n in range(start, start + 220)])
    loaded = await load(tenant.runtime, session=place, context=[{}])
    assert (len(loaded["session"]["context"]), loaded["session"]["truncated"]) == (1000, True)
    exact = await load(tenant.runtime, session=place, context=[{"newest": 1000}])
    assert "truncated" not in exact["session"]


# ---------------------------------------------------------------- commit


async def test_a_commit_changes_session_subject_and_app_together(tenant: Tenant) -> None:
    own, app = name(), name()
    made = await commit(
        tenant.runtime,
        external_id=own,
        create={"subject": name(), "labels": ["l"]},
        put=[put("c", "k", 1), put("c", "l", 2)],
        merge=[{"collection": "c", "key": "m", "json": {"a": 1}}],
        turns=[text("a"), text("b")],
        subject={"put": [put("p", "k", 1)]},
        app={"name": app, "merge": [{"collection": "x", "key": "k", "json": {"n": 1}}]},
    )
    part = made["session"]
    assert (part["created"], part["commit"], part["first_turn"], part["last_turn"]) == (True, 1, 1, 2)
    assert (len(part["put"]), len(part["merge"])) == (2, 1)
    loaded = await load(tenant.runtime, external_id=own, context=[{}], subject=True, app=app)
    versions = {each["key"]: each["version"] for each in loaded["session"]["context"]}
    assert versions == {
        "k": part["put"][0]["version"],
        "l": part["put"][1]["version"],
        "m": part["merge"][0]["version"],
    }
    assert loaded["subject"]["context"][0]["version"] == made["subject"]["put"][0]["version"]
    assert loaded["app"]["context"][0]["json"] == {"n": 1}


FAILING = [
    {"put": [put("c", "bad", 1, if_match=str(uuid4()))]},
    {"put": [put("c", "k", 2, if_none_match="*")]},
    {"delete": [{"collection": "c", "key": "k", "if_match": str(uuid4())}]},
    {"merge": [{"collection": "c", "key": "k", "json": {}, "if_match": str(uuid4())}]},
    {"expected_commit": 7},
    {"subject": {"put": [put("p", "k", 2, if_match=str(uuid4()))]}},
    {"subject": {"expected_commit": 9}},
    {"app": {"put": [put("x", "k", 2, if_none_match="*")]}},
    {"app": {"expected_commit": 9}},
]


@pytest.mark.parametrize("failing", FAILING)
async def test_g7_a_commit_with_one_failing_precondition_changes_nothing(
    tenant: Tenant, failing: dict[str, Any]
) -> None:
    own, app = name(), name()
    whole = {"external_id": own, "put": [put("c", "k", {"v": 1})], "turns": [text("one")]}
    first = {**whole, "create": {"subject": name()}, "subject": {"put": [put("p", "k", 1)]}}
    await commit(tenant.runtime, **first, app={"name": app, "put": [put("x", "k", 1)]})
    query = {"external_id": own, "context": [{}], "turns": {"last": 9}, "subject": True, "app": app}
    before = await load(tenant.runtime, **query)
    body: dict[str, Any] = {
        "external_id": own,
        "put": [put("c", "new", 1)],
        "turns": [text("two")],
        "subject": {"put": [put("p", "new", 1)]},
        "app": {"name": app, "put": [put("x", "new", 1)]},
    }
    for field, value in failing.items():
        body[field] = (
            body.get(field, []) + value
            if isinstance(value, list)
            else ({**body.get(field, {}), **value} if isinstance(value, dict) else value)
        )
    refused(await tenant.runtime.post("/v1/commit", json=body), 412, "precondition-failed")
    assert await load(tenant.runtime, **query) == before


async def test_expected_commit_lets_exactly_one_of_many_through(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    now = done(await tenant.runtime.get(f"/v1/sessions/{place}"))["commit"]
    bodies = [{"session": place, "expected_commit": now, "turns": [text(str(n))]} for n in range(12)]
    answers = await asyncio.gather(*(tenant.runtime.post("/v1/commit", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 11
    assert len((await load(tenant.runtime, session=place, turns={"last": 99}))["turns"]) == 1


async def test_a_commit_deletes_and_writes_at_once(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    first = await commit(tenant.runtime, session=place, put=[put("c", str(n), n) for n in range(3)])
    own = first["session"]["put"][1]["version"]
    await commit(
        tenant.runtime,
        session=place,
        put=[put("d", "new", 1)],
        delete=[{"collection": "c", "key": "0"}, {"collection": "c", "key": "1", "if_match": own}],
    )
    loaded = await load(tenant.runtime, session=place, context=[{}])
    assert set(names_of(loaded["session"])) == {("c", "2"), ("d", "new")}


async def test_deleting_in_a_commit_what_is_not_there_changes_nothing(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    await commit(tenant.runtime, session=place, delete=[{"collection": "c", "key": "none"}])


async def test_a_commit_without_create_needs_the_session(tenant: Tenant) -> None:
    refused(await tenant.runtime.post("/v1/commit", json={"external_id": name(), "turns": [text("x")]}), 404)
    refused(await tenant.runtime.post("/v1/commit", json={"session": str(uuid4())}), 404)


async def test_a_subject_part_needs_a_session_with_a_subject(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    body = {"session": place, "subject": {"put": [put("p", "k", 1)]}}
    assert refused(await tenant.runtime.post("/v1/commit", json=body), 422)["pointer"] == "/subject"


async def test_a_commit_by_many_who_would_create_makes_one_session(tenant: Tenant) -> None:
    own, app, person = name(), name(), name()
    body = {"external_id": own, "create": {"subject": person}, "subject": {}, "app": {"name": app}}
    answers = await asyncio.gather(
        *(tenant.runtime.post("/v1/commit", json={**body, "turns": [text(str(n))]}) for n in range(12))
    )
    assert {answer.status_code for answer in answers} == {200}
    for part in ("session", "subject", "app"):
        assert len({answer.json()[part]["id"] for answer in answers}) == 1
    assert sum(answer.json()["session"].get("created", False) for answer in answers) == 1
    loaded = await load(tenant.runtime, external_id=own, turns={"last": 99})
    assert sorted(words_of(loaded["turns"]), key=int) == [str(n) for n in range(12)]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"external_id": "x", "session": str(uuid4())},
        {"session": str(uuid4()), "create": {}},
        {"external_id": "x", "put": [{"collection": "c", "key": "k"}]},
        {"external_id": "x", "put": [put("", "k", 1)]},
        {"external_id": "x", "put": [put("c", "k", 1), put("c", "k", 2)]},
        {"external_id": "x", "put": [put("c", "k", 1, if_match="1")]},
        {"external_id": "x", "put": [put("c", "k", 1, if_match=str(uuid4()), if_none_match="*")]},
        {"external_id": "x", "put": [put("c", "k", 1, if_none_match=str(uuid4()))]},
        {"external_id": "x", "put": [put("c", "k", 1, content_type="none")]},
        {"external_id": "x", "put": [put("c", str(n), 1) for n in range(257)]},
        {"external_id": "x", "delete": [{}]},
        {"external_id": "x", "delete": [{"key": "k"}]},
        {"external_id": "x", "delete": [{"collection": "c", "keep_newest": 1, "tag": "t"}]},
        {"external_id": "x", "put": [put("c", "k", 1)], "delete": [{"collection": "c", "key": "k"}]},
        {"external_id": "x", "expected_commit": -1},
        {"external_id": "x", "turns": [{"text": "x"}]},
        {"external_id": "x", "app": {"put": []}},
        {"external_id": "x", "transaction": True},
    ],
)
async def test_a_bad_commit_is_refused_and_makes_nothing(cell: Cell, tenant: Tenant, body: dict[str, Any]) -> None:
    refused(await tenant.runtime.post("/v1/commit", json={"create": {}, **body}), 422)
    assert not await sql(cell, "SELECT FROM confide.container WHERE tenant_id = $1", tenant.id)


# ---------------------------------------------------------------- repeats


def keyed(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


async def test_a_repeated_request_gets_the_first_answer(tenant: Tenant) -> None:
    own = name()
    body = {"external_id": own, "create": {"subject": name()}, "put": [put("c", "k", 1)], "turns": [text("a")]}
    first = await tenant.runtime.post("/v1/commit", json=body, headers=keyed("k1"))
    await commit(tenant.runtime, external_id=own, turns=[text("b")])
    again = await tenant.runtime.post("/v1/commit", json=body, headers=keyed("k1"))
    assert done(again) == done(first)
    assert words_of((await load(tenant.runtime, external_id=own, turns={"last": 9}))["turns"]) == ["a", "b"]


async def test_another_body_under_the_same_key_is_refused(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}"
    done(await tenant.runtime.post(f"{url}/turns", json={"turns": [text("a")]}, headers=keyed("k")))
    for method, path, body in (
        ("POST", f"{url}/turns", {"turns": [text("b")]}),
        ("POST", "/v1/commit", {"session": place, "turns": [text("a")]}),
        ("PUT", f"{url}/context/c/k", {"turns": [text("a")]}),
    ):
        answer = await tenant.runtime.request(method, path, json=body, headers=keyed("k"))
        refused(answer, 422, "idempotency-mismatch")
    assert done(await tenant.runtime.get(url))["turns"] == 1


async def test_many_at_once_under_one_key_are_done_once(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/turns"
    answers = await asyncio.gather(
        *(tenant.runtime.post(url, json={"turns": [text("once")]}, headers=keyed("same")) for _ in range(12))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(done(await tenant.runtime.get(url))["turns"]) == 1


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_repeat_with_a_precondition_gets_the_first_answer_not_412(tenant: Tenant, method: str) -> None:
    url = f"/v1/sessions/{await session(tenant.runtime)}/context/c/k"
    kind = {"content-type": "application/json"}
    tag = (await tenant.runtime.put(url, content=b"{}", headers=kind)).headers["etag"]
    head = kind | keyed("p") | {"if-match": tag}
    first = done(await tenant.runtime.request(method, url, content=b'{"a":1}', headers=head))
    assert done(await tenant.runtime.request(method, url, content=b'{"a":1}', headers=head)) == first
    other = await tenant.runtime.request(method, url, content=b'{"a":1}', headers=head | keyed("q"))
    refused(other, 412)


async def test_two_tenants_may_use_the_same_key(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    body = {"external_id": "x", "create": {}, "turns": [text("a")]}
    first = done(await tenant.runtime.post("/v1/commit", json=body, headers=keyed("k")))
    second = done(await other.runtime.post("/v1/commit", json=body, headers=keyed("k")))
    assert first["session"]["id"] != second["session"]["id"]


async def test_a_key_is_free_again_after_a_day(cell: Cell, tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/turns"
    done(await tenant.runtime.post(url, json={"turns": [text("a")]}, headers=keyed("k")))
    await sql(
        cell, "UPDATE confide.idempotency SET created_at = now() - interval '25 hours' WHERE tenant_id = $1", tenant.id
    )
    done(await tenant.runtime.post(url, json={"turns": [text("b")]}, headers=keyed("k")))
    assert words_of(done(await tenant.runtime.get(url))["turns"]) == ["a", "b"]
    refused(await tenant.runtime.post(url, json={"turns": [text("a")]}, headers=keyed("k")), 422)


async def test_g1_neither_key_nor_answer_is_stored_in_the_clear(cell: Cell, tenant: Tenant) -> None:
    made = await tenant.runtime.post(
        "/v1/commit", json={"external_id": name(), "create": {}}, headers=keyed("PLANTED-KEY")
    )
    [row] = await sql(cell, "SELECT * FROM confide.idempotency WHERE tenant_id = $1", tenant.id)
    stored = str(dict(row)).encode() + row["answer"] + row["key_tag"] + row["fingerprint"]
    assert b"PLANTED-KEY" not in stored
    assert made.json()["session"]["id"].encode() not in row["answer"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_a_bad_idempotency_key_is_400(tenant: Tenant, key: str) -> None:
    place = await session(tenant.runtime)
    head = {"idempotency-key": key.encode("latin-1")}
    answer = await tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": [text("a")]}, headers=head)
    refused(answer, 400)


async def test_g7_a_repeat_after_a_restart_gets_the_first_answer(
    module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = tmp_path_factory.mktemp("restart")
    body = {"external_id": "call", "create": {}, "turns": [text("a")], "put": [put("c", "k", 1)]}
    async with running_cell(module_database, state) as before:
        tenant = await before.tenant("restarted")
        first = done(await tenant.runtime.post("/v1/commit", json=body, headers=keyed("k")))
    async with running_cell(module_database, state) as after:
        client = after.client(tenant.keys["runtime"])
        assert done(await client.post("/v1/commit", json=body, headers=keyed("k"))) == first
        loaded = await load(client, external_id="call", turns={"last": 9}, context=[{}])
        assert (words_of(loaded["turns"]), loaded["session"]["context"][0]["json"]) == (["a"], 1)


# ---------------------------------------------------------------- batch


async def test_each_item_of_a_batch_has_its_own_outcome(tenant: Tenant) -> None:
    one = await session(tenant.runtime)
    person = done(await tenant.runtime.post("/v1/subjects", json={"external_id": name()}))["id"]
    app = done(await tenant.runtime.post("/v1/apps", json={"name": name()}))["id"]
    made = await commit(tenant.runtime, session=one, put=[put("c", "k", {"a": 1}), put("c", "gone", 1)])
    version = made["session"]["put"][0]["version"]
    where = {"collection": "c", "key": "k"}
    requests = [
        {"op": "get", "session": one, **where},
        {"op": "put", "subject": person, **where, "json": [1]},
        {"op": "merge", "app": app, **where, "json": {"b": None, "c": 1}},
        {"op": "delete", "session": one, "collection": "c", "key": "gone"},
        {"op": "get", "session": one, "collection": "c", "key": "none"},
        {"op": "get", "session": str(uuid4()), **where},
        {"op": "put", "app": app, "collection": "c", "key": "l", "base64": "YQ==", "if_match": version},
        {"op": "put", "session": one, "collection": "c", "key": "n", "json": 1, "if_none_match": "*"},
        {"op": "put", "session": one, "collection": "c", "key": "m"},
        {"op": "merge", "session": one, "collection": "c", "key": "m", "base64": "YQ=="},
        {"op": "get", **where},
        {"op": "get", "session": one, "app": app, **where},
    ]
    results = done(await tenant.runtime.post("/v1/batch", json={"requests": requests}))["results"]
    assert [each["status"] for each in results] == [200, 201, 201, 200, 404, 404, 412, 201, 422, 422, 422, 422]
    assert results[0]["object"]["json"] == {"a": 1}
    assert results[0]["version"] == version
    assert results[4]["problem"]["type"].endswith("not-found")
    assert (await tenant.runtime.get(f"/v1/apps/{app}/context/c/k")).content == b'{"c":1}'
    refused(await tenant.runtime.get(f"/v1/sessions/{one}/context/c/gone"), 404)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"requests": []},
        {"requests": [{"op": "drop", "collection": "c", "key": "k"}]},
        {"requests": [{"op": "get", "collection": "c"}]},
        {"requests": [{"op": "get", "session": "x", "collection": "c", "key": "k"}]},
        {"requests": [{"op": "get", "session": str(uuid4()), "collection": "c", "key": "k"}] * 257},
    ],
)
async def test_a_bad_batch_is_refused_whole(tenant: Tenant, body: object) -> None:
    refused(await tenant.runtime.post("/v1/batch", json=body), 422)


async def test_a_batch_over_one_container_loses_nothing(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    requests = [{"op": "put", "session": place, "collection": "c", "key": str(n), "json": n} for n in range(100)]
    results = done(await tenant.runtime.post("/v1/batch", json={"requests": requests}))["results"]
    assert {each["status"] for each in results} == {201}
    assert sorted(each["commit"] for each in results) == list(range(2, 102))
    assert len(done(await tenant.runtime.get(f"/v1/sessions/{place}/context?limit=200"))["objects"]) == 100


# ---------------------------------------------------------------- bodies that are no bodies

JSON_ROUTES = ["/v1/load", "/v1/commit", "/v1/batch", "/v1/sessions", "/v1/sessions/lookup", "/v1/subjects", "/v1/apps"]


@pytest.mark.parametrize("path", JSON_ROUTES)
async def test_bad_bodies_are_refused_without_an_echo(cell: Cell, tenant: Tenant, path: str) -> None:
    client, json_type = tenant.runtime, {"content-type": "application/json"}
    limit = cell.parts.settings.max_envelope_bytes if path in {"/v1/commit", "/v1/batch"} else 64 * 1024
    cases = [
        (b'{"PLANTED": 1', json_type, {400, 422}),
        (b'{"PLANTED": 1}', json_type, {422}),
        (b'"PLANTED"', json_type, {422}),
        (b"\xff\xfePLANTED", json_type, {400}),
        (b'{"external_id":"PLANTED","external_id":7}', json_type, {422}),
        (b"", json_type, {400}),
        (b"{}", {"content-type": "text/PLANTED"}, {415}),
        (b"{}", {}, {415}),
        (b'{"x":"' + b"PLANTED " * (limit // 8) + b'"}', json_type, {413}),
    ]
    for body, head, statuses in cases:
        answer = await client.post(path, content=body, headers=head)
        assert answer.status_code in statuses, (body[:40], answer.text)
        assert "PLANTED" not in answer.text + str(answer.headers)


async def test_the_same_session_stays_usable_after_all_these_refusals(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    for _ in range(3):
        refused(await tenant.runtime.post("/v1/commit", json={"session": place, "expected_commit": 99}), 412)
    await say(tenant.runtime, place, "fine")


async def test_a_commit_can_replace_a_collection_and_prune_what_it_put(tenant: Tenant) -> None:
    own = name()
    old = [{"collection": "c", "key": f"old{n}", "json": n} for n in range(3)]
    await commit(tenant.runtime, external_id=own, create={}, put=old)
    new = [{"collection": "c", "key": f"new{n}", "json": n} for n in range(3)]
    await commit(tenant.runtime, external_id=own, delete=[{"collection": "c"}], put=new)
    assert sorted(keys_of(await load(tenant.runtime, external_id=own, context=[{}]))) == ["new0", "new1", "new2"]
    more = [{"collection": "c", "key": "newest", "json": 1}]
    await commit(tenant.runtime, external_id=own, put=more, delete=[{"collection": "c", "keep_newest": 1}])
    assert keys_of(await load(tenant.runtime, external_id=own, context=[{}])) == ["newest"]


def keys_of(loaded: Any) -> list[str]:
    return [each["key"] for each in loaded["session"]["context"]]


async def test_one_idempotency_key_stands_for_one_request_with_its_headers_and_query(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url, key = f"/v1/sessions/{place}/context/c/k", {"idempotency-key": "once"}
    done(await tenant.runtime.put(url, content=b"x", headers=key))
    done(await tenant.runtime.put(url, content=b"x", headers=key))
    for more, query in ((key | {"content-type": "text/plain"}, ""), (key | {"if-match": "*"}, ""), (key, "?tag=t")):
        refused(await tenant.runtime.put(url + query, content=b"x", headers=more), 422, "idempotency-mismatch")
