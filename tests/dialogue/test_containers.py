"""Sessions, subjects and apps themselves: get or create, records, changes, look-ups, lifetimes, deletion."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done, load, name, refused, say, session, sql

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREATORS = [("/v1/sessions", "external_id"), ("/v1/subjects", "external_id"), ("/v1/apps", "name")]


@pytest.mark.parametrize(("path", "field"), CREATORS)
async def test_a_container_is_made_once_and_then_got(tenant: Tenant, path: str, field: str) -> None:
    own = name()
    first = await tenant.runtime.post(path, json={field: own})
    again = await tenant.runtime.post(path, json={field: own})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["external_id"] == own
    assert first.headers["location"] == f"{path}/{first.json()['id']}"
    read = done(await tenant.runtime.get(first.headers["location"]))
    assert read == again.json()


@pytest.mark.parametrize(("path", "field"), CREATORS)
async def test_many_creators_of_one_name_make_one_container(tenant: Tenant, path: str, field: str) -> None:
    own = name()
    answers = await asyncio.gather(*(tenant.runtime.post(path, json={field: own}) for _ in range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_one_name_may_stand_for_a_session_a_subject_and_an_app(tenant: Tenant) -> None:
    own = name()
    ids = {done(await tenant.runtime.post(path, json={field: own}))["id"] for path, field in CREATORS}
    assert len(ids) == 3


async def test_a_session_without_a_name_is_always_new(tenant: Tenant) -> None:
    assert await session(tenant.runtime) != await session(tenant.runtime)


async def test_a_known_session_is_answered_unchanged(tenant: Tenant) -> None:
    own = name()
    first = done(await tenant.runtime.post("/v1/sessions", json={"external_id": own, "labels": ["a"]}))
    again = await tenant.runtime.post("/v1/sessions", json={"external_id": own, "labels": ["b"], "ttl": {"idle": 9}})
    assert again.status_code == 200
    assert again.json() == first


async def test_a_session_keeps_subject_labels_and_ttl(tenant: Tenant) -> None:
    person = name()
    made = done(
        await tenant.runtime.post(
            "/v1/sessions", json={"subject": person, "labels": ["x", "y", "x"], "ttl": {"idle": 60, "absolute": 90}}
        )
    )
    subject = done(await tenant.runtime.post("/v1/subjects", json={"external_id": person}))
    assert made["subject_id"] == subject["id"]
    assert made["labels"] == ["x", "y"]
    assert made["ttl"] == {"idle": 60, "absolute": 90}
    assert "expires_at" in made


@pytest.mark.parametrize("kind", ["sessions", "subjects", "apps"])
@pytest.mark.parametrize(
    "place", ["01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f", "x", "00000000-0000-0000-0000-000000000000", "A" * 36]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_what_is_not_there_is_one_and_the_same_404(tenant: Tenant, kind: str, place: str, method: str) -> None:
    problem = refused(await tenant.runtime.request(method, f"/v1/{kind}/{place}"), 404, "not-found")
    assert place not in str(problem)


async def test_an_upper_case_id_is_no_id(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    refused(await tenant.runtime.get(f"/v1/sessions/{place.upper()}"), 404, "not-found")


@pytest.mark.parametrize("other", ["subjects", "apps"])
async def test_a_session_is_not_found_as_another_kind(tenant: Tenant, other: str) -> None:
    place = await session(tenant.runtime, external_id=name())
    await commit(tenant.runtime, session=place, put=[{"collection": "c", "key": "k", "json": 1}])
    refused(await tenant.runtime.get(f"/v1/{other}/{place}"), 404)
    refused(await tenant.runtime.get(f"/v1/{other}/{place}/context/c/k"), 404)
    refused(await tenant.runtime.put(f"/v1/{other}/{place}/context/c/k", content=b"x"), 404)
    refused(await tenant.runtime.delete(f"/v1/{other}/{place}"), 404)
    done(await tenant.runtime.get(f"/v1/sessions/{place}"))


# ---------------------------------------------------------------- changes


async def test_patch_changes_what_it_names_and_nothing_else(tenant: Tenant) -> None:
    own = name()
    made = done(await tenant.runtime.post("/v1/sessions", json={"external_id": own, "labels": ["a"]}))
    path = f"/v1/sessions/{made['id']}"
    labelled = done(await tenant.runtime.patch(path, json={"labels": ["b", "c", "b"]}))
    assert (labelled["labels"], labelled["external_id"]) == (["b", "c"], own)
    assert labelled["expires_at"][:10] >= made["expires_at"][:10]
    lasting = done(await tenant.runtime.patch(path, json={"ttl": {"absolute": 50}}))
    assert (lasting["ttl"], lasting["labels"]) == ({"absolute": 50}, ["b", "c"])
    held = done(await tenant.runtime.patch(path, json={"hold": True}))
    assert (held["hold"], held["ttl"]) == (True, {"absolute": 50})
    cleared = done(await tenant.runtime.patch(path, json={"labels": []}))
    assert "labels" not in cleared


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl": {}},
        {"ttl": {"idle": 0}},
        {"ttl": {"idle": -1}},
        {"ttl": {"idle": 1.5}},
        {"ttl": {"idle": 315360000}},
        {"ttl": {"soon": 1}},
        {"labels": [""]},
        {"labels": ["x" * 257]},
        {"labels": ["a\u0000b"]},
        {"labels": [str(n) for n in range(17)]},
        {"labels": None},
        {"hold": "yes"},
        {"hold": None},
        {"external_id": "x"},
        {"commit": 1},
    ],
)
async def test_a_bad_change_of_a_session_is_refused(tenant: Tenant, body: object) -> None:
    place = await session(tenant.runtime, labels=["kept"])
    refused(await tenant.runtime.patch(f"/v1/sessions/{place}", json=body), 422)
    assert done(await tenant.runtime.get(f"/v1/sessions/{place}"))["labels"] == ["kept"]


@pytest.mark.parametrize(
    "body",
    [
        {"external_id": ""},
        {"external_id": "x" * 513},
        {"external_id": "a\nb"},
        {"external_id": "a\u0085b"},
        {"external_id": 7},
        {"subject": ""},
        {"name": "x"},
        {"labels": "x"},
        {"ttl": {"idle": 10**12}},
        {"ttl": {"absolute": 31536001}},
        [],
        "x",
    ],
)
async def test_a_bad_session_is_refused(tenant: Tenant, body: object) -> None:
    refused(await tenant.runtime.post("/v1/sessions", json=body), 422)


async def test_concurrent_changes_of_labels_leave_one_of_them_whole(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    path = f"/v1/sessions/{place}"
    wanted = [[f"l{n}", f"m{n}"] for n in range(8)]
    answers = await asyncio.gather(*(tenant.runtime.patch(path, json={"labels": labels}) for labels in wanted))
    assert {answer.status_code for answer in answers} == {200}
    stands = done(await tenant.runtime.get(path))["labels"]
    assert stands in wanted
    for labels in wanted:
        found = done(await tenant.runtime.post("/v1/sessions/lookup", json={"label": labels[0]}))["sessions"]
        assert bool(found) == (labels == stands)


# ---------------------------------------------------------------- look-ups


async def test_sessions_are_found_by_external_id_subject_and_label(tenant: Tenant) -> None:
    own, person, label = name(), name(), name()
    place = await session(tenant.runtime, external_id=own, subject=person, labels=[label])
    await session(tenant.runtime, external_id=name(), subject=name(), labels=[name()])
    for asked in ({"external_id": own}, {"subject": person}, {"label": label}):
        found = done(await tenant.runtime.post("/v1/sessions/lookup", json=asked))
        assert [each["id"] for each in found["sessions"]] == [place]
        assert found["sessions"][0]["external_id"] == own


@pytest.mark.parametrize("field", ["external_id", "subject", "label"])
async def test_an_unknown_name_finds_nothing(tenant: Tenant, field: str) -> None:
    assert done(await tenant.runtime.post("/v1/sessions/lookup", json={field: name()})) == {"sessions": []}


@pytest.mark.parametrize(
    "body",
    [{}, {"subject": "a", "label": "b"}, {"label": "a", "limit": 0}, {"label": "a", "limit": 201}, {"sub": "a"}],
)
async def test_a_look_up_takes_exactly_one_name(tenant: Tenant, body: object) -> None:
    refused(await tenant.runtime.post("/v1/sessions/lookup", json=body), 422)


@pytest.mark.parametrize("field", ["subject", "label"])
async def test_look_ups_page_through_all_sessions_once_oldest_first(tenant: Tenant, field: str) -> None:
    shared = name()
    body = {"subject": shared} if field == "subject" else {"labels": [shared]}
    made = [await session(tenant.runtime, **body) for _ in range(7)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(9):
        page = done(await tenant.runtime.post("/v1/sessions/lookup", json={field: shared, "limit": 3, **cursor}))
        seen += [each["id"] for each in page["sessions"]]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert seen == made


async def test_a_look_up_after_a_label_was_taken_away_finds_nothing(tenant: Tenant) -> None:
    label = name()
    place = await session(tenant.runtime, labels=[label])
    done(await tenant.runtime.patch(f"/v1/sessions/{place}", json={"labels": ["other"]}))
    assert done(await tenant.runtime.post("/v1/sessions/lookup", json={"label": label})) == {"sessions": []}


async def test_g6_a_cursor_of_another_tenant_route_or_container_is_refused(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    label = name()
    for client in (tenant.runtime, other.runtime):
        for _ in range(2):
            await session(client, labels=[label])
    place = await session(tenant.runtime)
    put = [{"collection": "c", "key": str(n), "json": n} for n in range(3)]
    await commit(tenant.runtime, session=place, put=put)
    lookup = done(await tenant.runtime.post("/v1/sessions/lookup", json={"label": label, "limit": 1}))["cursor"]
    objects = done(await tenant.runtime.get(f"/v1/sessions/{place}/context?limit=1"))["cursor"]
    second = await session(tenant.runtime)
    for cursor in (objects, lookup[:-1] + ("A" if lookup[-1] != "A" else "B"), "x", "", lookup * 2, "é"):
        refused(await tenant.runtime.post("/v1/sessions/lookup", json={"label": label, "cursor": cursor}), 400)
    refused(await other.runtime.post("/v1/sessions/lookup", json={"label": label, "cursor": lookup}), 400)
    for path in (f"/v1/sessions/{second}", f"/v1/sessions/{place}"):
        refused(await tenant.runtime.get(f"{path}/context", params={"before": lookup}), 400)
    refused(await tenant.runtime.get(f"/v1/sessions/{second}/context", params={"before": objects}), 400)


# ---------------------------------------------------------------- lifetimes


async def _expire(cell: Cell, place: str) -> None:
    """Let a container's time be over, as the clock would."""
    await sql(cell, "UPDATE confide.container SET expires_at = now() - interval '1 second' WHERE id = $1", place)


async def _ended(tenant: Tenant, place: str) -> None:
    """Wait until a session is over by itself."""
    async with asyncio.timeout(60):
        while (await tenant.runtime.get(f"/v1/sessions/{place}")).status_code == 200:  # noqa: ASYNC110  time passes
            await asyncio.sleep(0.05)
    refused(await tenant.runtime.get(f"/v1/sessions/{place}"), 404)


async def _ends_at(tenant: Tenant, place: str) -> datetime:
    return datetime.fromisoformat(done(await tenant.runtime.get(f"/v1/sessions/{place}"))["expires_at"])


async def test_an_idle_session_ends_and_each_write_prolongs_it(tenant: Tenant) -> None:
    place = await session(tenant.runtime, ttl={"idle": 60})
    end = await _ends_at(tenant, place)
    for _ in range(3):
        await say(tenant.runtime, place, "still here")
        later = await _ends_at(tenant, place)
        assert end < later <= datetime.now(UTC) + timedelta(seconds=61)
        assert await _ends_at(tenant, place) == later  # a read doesn't
        end = later
    await _ended(tenant, await session(tenant.runtime, ttl={"idle": 1}))


async def test_an_absolute_time_to_live_is_not_prolonged(tenant: Tenant) -> None:
    place = await session(tenant.runtime, ttl={"absolute": 60, "idle": 60})
    end = await _ends_at(tenant, place)
    await say(tenant.runtime, place, "hello")
    assert await _ends_at(tenant, place) == end
    place = await session(tenant.runtime, ttl={"absolute": 1, "idle": 60})
    await _ended(tenant, place)
    refused(await tenant.runtime.post(f"/v1/sessions/{place}/turns", json={"turns": [{"json": 1}]}), 404)


EXPIRED = ["get", "list", "turns", "load", "append", "put", "patch", "commit", "pop", "branch", "delete-objects"]


@pytest.mark.parametrize("what", EXPIRED)
async def test_an_expired_session_is_absent_for_every_route(cell: Cell, tenant: Tenant, what: str) -> None:
    own = name()
    place = await session(tenant.runtime, external_id=own)
    await commit(tenant.runtime, session=place, put=[{"collection": "c", "key": "k", "json": 1}], turns=[{"json": 1}])
    await _expire(cell, place)
    client, path = tenant.runtime, f"/v1/sessions/{place}"
    calls = {
        "get": ("GET", path, None),
        "list": ("GET", f"{path}/context", None),
        "turns": ("GET", f"{path}/turns", None),
        "load": ("POST", "/v1/load", {"external_id": own, "context": [{}]}),
        "append": ("POST", f"{path}/turns", {"turns": [{"json": 1}]}),
        "put": ("PUT", f"{path}/context/c/k", {}),
        "patch": ("PATCH", path, {"labels": ["x"]}),
        "commit": ("POST", "/v1/commit", {"session": place}),
        "pop": ("POST", f"{path}/turns/pop", {"count": 1}),
        "branch": ("POST", f"{path}/branch", {}),
        "delete-objects": ("DELETE", f"{path}/context?collection=c", None),
    }
    method, url, body = calls[what]
    refused(
        await client.request(method, url, json=body) if body is not None else await client.request(method, url), 404
    )
    found = done(await client.post("/v1/sessions/lookup", json={"external_id": own}))
    assert found == {"sessions": []}


@pytest.mark.parametrize("way", ["create", "commit"])
async def test_an_expired_session_s_name_is_free_again(cell: Cell, tenant: Tenant, way: str) -> None:
    own = name()
    first = await commit(tenant.runtime, external_id=own, create={}, turns=[{"json": "old"}])
    await _expire(cell, first["session"]["id"])
    if way == "create":
        second = done(await tenant.runtime.post("/v1/sessions", json={"external_id": own}), 201)["id"]
    else:
        second = (await commit(tenant.runtime, external_id=own, create={}))["session"]["id"]
    assert second != first["session"]["id"]
    loaded = await load(tenant.runtime, external_id=own, turns={"last": 5})
    assert (loaded["session"]["id"], loaded.get("turns")) == (second, None)


# ---------------------------------------------------------------- deletion and holds


@pytest.mark.parametrize(("path", "field"), CREATORS)
async def test_a_deleted_container_is_gone_with_all_it_held(tenant: Tenant, path: str, field: str) -> None:
    own = name()
    place = done(await tenant.runtime.post(path, json={field: own}))["id"]
    done(await tenant.runtime.put(f"{path}/{place}/context/c/k", content=b"x"))
    assert (await tenant.runtime.delete(f"{path}/{place}")).status_code == 204
    refused(await tenant.runtime.get(f"{path}/{place}"), 404)
    refused(await tenant.runtime.get(f"{path}/{place}/context/c/k"), 404)
    refused(await tenant.runtime.put(f"{path}/{place}/context/c/k", content=b"x"), 404)
    refused(await tenant.runtime.delete(f"{path}/{place}"), 404)
    again = await tenant.runtime.post(path, json={field: own})
    assert again.status_code == 201
    assert again.json()["id"] != place


async def test_g8_a_deleted_session_leaves_no_row_and_no_key(cell: Cell, tenant: Tenant) -> None:
    made = await commit(
        tenant.runtime,
        external_id=name(),
        create={"labels": ["l"]},
        put=[{"collection": "c", "key": "k", "json": 1}],
        turns=[{"json": 1}],
    )
    place = made["session"]["id"]
    tables = {"container": "id"} | dict.fromkeys(
        ("container_key", "container_label", "context_object", "turn"), "container_id"
    )

    async def counts() -> list[int]:
        asked = [f"SELECT count(*) FROM confide.{table} WHERE {column} = $1" for table, column in tables.items()]
        return [(await sql(cell, each, place))[0][0] for each in asked]

    assert await counts() == [1, 1, 1, 1, 1]
    await tenant.runtime.delete(f"/v1/sessions/{place}")
    assert await counts() == [0, 0, 0, 0, 0]


async def test_a_hold_blocks_deletion_until_it_is_lifted(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    path = f"/v1/sessions/{place}"
    done(await tenant.runtime.patch(path, json={"hold": True}))
    refused(await tenant.runtime.delete(path), 409, "conflict")
    done(await tenant.runtime.get(path))
    done(await tenant.runtime.patch(path, json={"hold": False}))
    assert (await tenant.runtime.delete(path)).status_code == 204


async def test_what_is_held_does_not_expire(cell: Cell, tenant: Tenant) -> None:
    own = name()
    place = await session(tenant.runtime, external_id=own)
    await say(tenant.runtime, place, "evidence")
    done(await tenant.runtime.patch(f"/v1/sessions/{place}", json={"hold": True}))
    await _expire(cell, place)
    assert done(await tenant.runtime.get(f"/v1/sessions/{place}"))["turns"] == 1
    again = await tenant.runtime.post("/v1/sessions", json={"external_id": own})
    assert (again.status_code, again.json()["id"]) == (200, place)
    loaded = await load(tenant.runtime, external_id=own, turns={"last": 1})
    assert loaded["turns"][0]["json"] == {"text": "evidence"}


async def test_an_app_or_subject_takes_neither_patch_nor_branch(tenant: Tenant) -> None:
    for path, field in CREATORS[1:]:
        place = done(await tenant.runtime.post(path, json={field: name()}))["id"]
        refused(await tenant.runtime.patch(f"{path}/{place}", json={"labels": []}), 405)
        refused(await tenant.runtime.post(f"{path}/{place}/branch", json={}), 404)
        refused(await tenant.runtime.get(f"{path}/{place}/turns"), 404)
