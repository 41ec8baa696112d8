"""Context objects: bytes, entity tags, preconditions, merges, lists, deletion, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done, load, name, names_of, refused, session

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = [("/v1/sessions", "external_id"), ("/v1/subjects", "external_id"), ("/v1/apps", "name")]
OTHER = '"01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f"'
ALL_BYTES = bytes(range(256)) * 5


async def place_of(tenant: Tenant) -> str:
    return f"/v1/sessions/{await session(tenant.runtime)}/context"


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(("path", "field"), KINDS)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/octet-stream", ALL_BYTES),
        ("application/json", b'{ "b": 1.0,\n "a": [1e2, "\\u00e9"] }\n'),
        ("application/json", b"not json at all"),
        ("text/plain; charset=latin-1", "é".encode("latin-1")),
        ("image/png", b""),
        ("application/vnd.x+json", b"\xef\xbb\xbf{}"),
    ],
)
async def test_bytes_come_back_as_they_went_in(tenant: Tenant, path: str, field: str, kind: str, body: bytes) -> None:
    place = done(await tenant.runtime.post(path, json={field: name()}))["id"]
    url = f"{path}/{place}/context/c/k"
    put = await tenant.runtime.put(url, content=body, headers={"content-type": kind})
    assert put.status_code == 201
    got = await tenant.runtime.get(url)
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, body, kind)
    assert got.headers["etag"] == put.headers["etag"] == f'"{put.json()["version"]}"'
    [listed] = done(await tenant.runtime.get(f"{path}/{place}/context"))["objects"]
    if "base64" in listed:
        assert base64.b64decode(listed["base64"]) == body
    else:
        assert kind.startswith("application/json")
        assert listed["json"] == json.loads(body)


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 65536, 1024 * 1024])
async def test_objects_of_every_size_come_back(tenant: Tenant, size: int) -> None:
    url = f"{await place_of(tenant)}/c/k"
    body = os.urandom(size)
    done(await tenant.runtime.put(url, content=body), 201)
    assert (await tenant.runtime.get(url)).content == body


@pytest.mark.parametrize("own", ["a/b", "...", "%2F", "ü☃", "a b+c", "'\";--", "\u202e", "x" * 256, "?#&="])
async def test_any_name_works_percent_encoded(tenant: Tenant, own: str) -> None:
    url = f"{await place_of(tenant)}/{quote(own, safe='')}/{quote(own, safe='')}"
    done(await tenant.runtime.put(url, content=b"x"), 201)
    assert (await tenant.runtime.get(url)).content == b"x"
    [listed] = done(await tenant.runtime.get(url.rsplit("/", 2)[0]))["objects"]
    assert (listed["collection"], listed["key"]) == (own, own)


@pytest.mark.parametrize("bad", ["%00", "a%0Ab", "%ff", "%zz", "x" * 513, "%C2%85"])
async def test_a_bad_name_is_refused(tenant: Tenant, bad: str) -> None:
    place = await place_of(tenant)
    refused(await tenant.runtime.put(f"{place}/c/{bad}", content=b"x"), 400)
    refused(await tenant.runtime.put(f"{place}/{'y' * 257}/k", content=b"x"), 400)


async def test_an_inline_value_is_kept_canonically(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    raw = '{"external":{"b":1,"a":1.0,"\\u00e9":"\\/", "A":[true,null,-0.5,1E3,18446744073709551615]}}'
    body = f'{{"session":"{place}","put":[{{"collection":"c","key":"k","json":{raw}}}]}}'
    done(await tenant.runtime.post("/v1/commit", content=body, headers={"content-type": "application/json"}))
    got = await tenant.runtime.get(f"/v1/sessions/{place}/context/c/k")
    assert (
        got.content.decode() == '{"external":{"A":[true,null,-0.5,1000.0,18446744073709551615],"a":1.0,"b":1,"é":"/"}}'
    )
    assert got.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "1e-400", "18446744073709551616", "-9223372036854775809", "0.1234567890123456789", "9" * 400],
)
async def test_a_number_that_cannot_be_kept_is_refused(tenant: Tenant, number: str) -> None:
    place = await session(tenant.runtime)
    head = {"content-type": "application/json"}
    body = f'{{"session":"{place}","put":[{{"collection":"c","key":"k","json":{{"n":[{number}]}}}}]}}'
    problem = refused(await tenant.runtime.post("/v1/commit", content=body, headers=head), 422)
    assert problem["type"].endswith("number-not-representable")
    patch = await tenant.runtime.patch(f"/v1/sessions/{place}/context/c/k", content=f'{{"n":{number}}}', headers=head)
    refused(patch, 422, "number-not-representable")
    assert done(await tenant.runtime.get(f"/v1/sessions/{place}"))["commit"] == 1


@pytest.mark.parametrize("text", ["YQ", "YQ=", "YR==", "Y Q==", "YQ==\n", "-_==", "é", "YQ===", "=", "YQ==YQ=="])
async def test_base64_has_one_spelling(tenant: Tenant, text: str) -> None:
    place = await session(tenant.runtime)
    put = [{"collection": "c", "key": "k", "base64": text}]
    problem = refused(await tenant.runtime.post("/v1/commit", json={"session": place, "put": put}), 422)
    assert problem["pointer"] == "/put/0/base64"


# ---------------------------------------------------------------- entity tags


async def test_each_write_gives_a_new_tag(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    tags = [(await tenant.runtime.put(url, content=b"x")).headers["etag"] for _ in range(3)]
    assert len(set(tags)) == 3
    assert (await tenant.runtime.get(url)).headers["etag"] == tags[-1]


@pytest.mark.parametrize(
    ("header", "stored"), [("If-None-Match", "*"), ("If-None-Match", "own"), ("If-None-Match", "W/own")]
)
async def test_an_unchanged_object_is_304_without_a_body(tenant: Tenant, header: str, stored: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    tag = (await tenant.runtime.put(url, content=b"x")).headers["etag"]
    got = await tenant.runtime.get(url, headers={header: stored.replace("own", tag)})
    assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", tag)
    fresh = await tenant.runtime.get(url, headers={header: OTHER})
    assert (fresh.status_code, fresh.content) == (200, b"x")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("tag", [OTHER, '"foreign"', '""', "W/own", "old"])
async def test_g7_a_tag_that_is_not_current_is_412_with_the_current_one(tenant: Tenant, method: str, tag: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    head = {"content-type": "application/json"}
    old = (await tenant.runtime.put(url, content=b"{}", headers=head)).headers["etag"]
    now = (await tenant.runtime.put(url, content=b'{"a":1}', headers=head)).headers["etag"]
    sent = tag.replace("own", now) if tag != "old" else old
    body = (
        {"content": b'{"b":2}', "headers": {"if-match": sent, **head}}
        if method in {"PUT", "PATCH"}
        else {"headers": {"if-match": sent}}
    )
    answer = await tenant.runtime.request(method, url, **body)
    problem = refused(answer, 412, "precondition-failed")
    assert problem["current"] == now == answer.headers["etag"]
    assert (await tenant.runtime.get(url)).content == b'{"a":1}'


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("tag", ["*", OTHER])
async def test_if_match_fails_where_nothing_is_stored(tenant: Tenant, method: str, tag: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    head = {"if-match": tag}
    if method == "DELETE":
        answer = await tenant.runtime.delete(url, headers=head)
        assert answer.status_code in {404, 412}
    else:
        head["content-type"] = "application/json"
        refused(await tenant.runtime.request(method, url, content=b"{}", headers=head), 412)
    refused(await tenant.runtime.get(url), 404)


@pytest.mark.parametrize("tag", ["*", "own"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_precondition_that_holds_lets_the_write_through(tenant: Tenant, method: str, tag: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    kind = {"content-type": "application/json"}
    own = (await tenant.runtime.put(url, content=b"{}", headers=kind)).headers["etag"]
    head = {"if-match": tag.replace("own", own)}
    body = {} if method == "DELETE" else {"content": b'{"a":1}'}
    answer = await tenant.runtime.request(method, url, headers=head | (kind if body else {}), **body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", ["own", "x", 'W/"x', '"a", "b"', "01980a3e", '"é"', ""])
@pytest.mark.parametrize("header", ["if-match", "if-none-match"])
async def test_a_header_that_is_no_single_tag_is_400(tenant: Tenant, header: str, value: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    refused(await tenant.runtime.get(url, headers={header: value.encode("latin-1")}), 400)


async def test_a_write_takes_one_kind_of_precondition(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    refused(await tenant.runtime.put(url, content=b"", headers={"if-none-match": OTHER}), 400)
    refused(await tenant.runtime.put(url, content=b"", headers={"if-none-match": "*", "if-match": OTHER}), 400)
    refused(await tenant.runtime.get(url), 404)


async def test_an_equal_immutable_put_again_is_200_with_the_same_version(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    head = {"if-none-match": "*", "content-type": "text/plain"}
    first = await tenant.runtime.put(url, content=b"fixed", headers=head)
    again = await tenant.runtime.put(url, content=b"fixed", headers=head)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["etag"] == again.headers["etag"]
    other = await tenant.runtime.put(url, content=b"other", headers=head)
    refused(other, 412)
    assert other.headers["etag"] == first.headers["etag"]
    refused(await tenant.runtime.put(url, content=b"fixed", headers=head | {"content-type": "text/html"}), 412)
    assert (await tenant.runtime.get(url)).content == b"fixed"


async def test_g7_of_many_first_puts_exactly_one_wins(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    bodies = [str(n).encode() for n in range(16)]
    answers = await asyncio.gather(
        *(tenant.runtime.put(url, content=body, headers={"if-none-match": "*"}) for body in bodies)
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [412] * 15
    winner = next(body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 201)
    assert (await tenant.runtime.get(url)).content == winner


# ---------------------------------------------------------------- a tenant that requires preconditions


async def test_428_where_the_tenant_requires_preconditions(tenant: Tenant) -> None:
    client, place = tenant.runtime, await place_of(tenant)
    url = f"{place}/c/k"
    head = {"content-type": "application/json"}
    tag = (await client.put(url, content=b"{}", headers=head)).headers["etag"]
    done(await tenant.admin.patch("/v1/tenant", json={"require_preconditions": True}))
    own = place.split("/")[3]
    put = {"collection": "c", "key": "k", "json": 1}
    for answer in (
        await client.put(url, content=b"x"),
        await client.patch(url, content=b"{}", headers=head),
        await client.delete(place, params={"collection": "c"}),
        await client.post("/v1/commit", json={"session": own, "put": [put]}),
        await client.post("/v1/commit", json={"session": own, "delete": [{"collection": "c"}]}),
        await client.post(
            "/v1/commit", json={"session": own, "put": [put | {"if_match": tag[1:-1]}, put | {"key": "l"}]}
        ),
    ):
        refused(answer, 428, "precondition-required")
    assert (await client.get(url)).headers["etag"] == tag
    done(await client.post("/v1/commit", json={"session": own, "put": [put], "expected_commit": 2}))
    done(await client.put(url, content=b"x", headers={"if-match": "*"}))
    done(await client.post("/v1/commit", json={"session": own, "turns": [{"json": 1}]}))


async def test_a_plain_delete_is_428_too_where_preconditions_are_required(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    tag = (await tenant.runtime.put(url, content=b"x")).headers["etag"]
    done(await tenant.admin.patch("/v1/tenant", json={"require_preconditions": True}))
    refused(await tenant.runtime.delete(url), 428)
    done(await tenant.runtime.delete(url, headers={"if-match": tag}))


# ---------------------------------------------------------------- RFC 7396

RFC_7396_APPENDIX_A = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"a":1,"e":null}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


@pytest.mark.parametrize(("before", "patch", "after"), RFC_7396_APPENDIX_A)
async def test_every_example_of_rfc_7396(tenant: Tenant, before: str, patch: str, after: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    own = url.split("/")[3]
    head = {"content-type": "application/json"}
    done(await tenant.runtime.put(url, content=before, headers=head))
    done(await tenant.runtime.patch(url, content=patch, headers={"content-type": "application/merge-patch+json"}), 200)
    assert (await tenant.runtime.get(url)).text == after
    await commit(tenant.runtime, session=own, put=[{"collection": "c", "key": "m", "json": json.loads(before)}])
    await commit(tenant.runtime, session=own, merge=[{"collection": "c", "key": "m", "json": json.loads(patch)}])
    loaded = await load(tenant.runtime, session=own, context=[{"collection": "c", "key": "m"}])
    assert loaded["session"]["context"][0]["json"] == json.loads(after)


async def test_a_merge_into_nothing_makes_the_object(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    made = await tenant.runtime.patch(url, content=b'{"a":{"b":null}}', headers={"content-type": "application/json"})
    assert made.status_code == 201
    assert (await tenant.runtime.get(url)).content == b'{"a":{}}'


async def test_a_merge_keeps_tags_and_content_type(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    kind = {"content-type": "application/vnd.state+json"}
    done(await tenant.runtime.put(url, params={"tag": ["x", "y"]}, content=b"{}", headers=kind))
    done(await tenant.runtime.patch(url, content=b'{"a":1}', headers={"content-type": "application/json"}))
    assert (await tenant.runtime.get(url)).headers["content-type"] == kind["content-type"]
    [listed] = done(await tenant.runtime.get(url.rsplit("/", 2)[0], params={"tag": "y"}))["objects"]
    assert listed["tags"] == ["x", "y"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"NaN", "application/json", 400),
        (b'"\\ud800"', "application/json", 400),
        (b"[" * 2000 + b"]" * 2000, "application/json", 400),
        (b'{"a":' * 120 + b"1" + b"}" * 120, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json; charset=latin-1", 415),
    ],
)
async def test_a_bad_patch_is_refused_and_not_echoed(tenant: Tenant, body: bytes, kind: str, status: int) -> None:
    url = f"{await place_of(tenant)}/c/k"
    done(await tenant.runtime.put(url, content=b'{"kept":1}', headers={"content-type": "application/json"}))
    refused(await tenant.runtime.patch(url, content=body, headers={"content-type": kind}), status)
    assert (await tenant.runtime.get(url)).content == b'{"kept":1}'


async def test_bytes_that_are_no_json_cannot_be_merged_into(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    done(await tenant.runtime.put(url, content=b"\x00\x01"))
    problem = refused(await tenant.runtime.patch(url, content=b"{}", headers={"content-type": "application/json"}), 422)
    assert "merged" in problem["detail"]


async def test_merges_cannot_grow_an_object_beyond_the_limit(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    head = {"content-type": "application/json"}
    half = json.dumps({"a": "x" * 600_000})
    done(await tenant.runtime.patch(url, content=half, headers=head))
    refused(await tenant.runtime.patch(url, content=half.replace('"a"', '"b"'), headers=head), 422)
    assert len((await tenant.runtime.get(url)).content) < 700_000


# ---------------------------------------------------------------- lists and deletion


async def test_a_list_pages_newest_first_and_meets_each_object_once(tenant: Tenant) -> None:
    place = await place_of(tenant)
    for n in range(7):
        done(await tenant.runtime.put(f"{place}/c/{n}", content=b"x", params={"tag": "even" if n % 2 == 0 else "odd"}))
    done(await tenant.runtime.put(f"{place}/d/other", content=b"x"))
    seen: list[str] = []
    query: dict[str, object] = {"collection": "c", "limit": 3}
    while True:
        page = done(await tenant.runtime.get(place, params=query))
        seen += [each["key"] for each in page["objects"]]
        if "cursor" not in page:
            break
        query["before"] = page["cursor"]
    assert seen == list("6543210")
    tagged = done(await tenant.runtime.get(place, params={"tag": "odd"}))["objects"]
    assert [each["key"] for each in tagged] == list("531")
    assert done(await tenant.runtime.get(place, params={"collection": "d", "tag": "odd"})) == {"objects": []}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "page=1", "before=x", "tag=", "collection=%00"]
)
async def test_a_bad_query_of_a_list_is_400(tenant: Tenant, query: str) -> None:
    refused(await tenant.runtime.get(f"{await place_of(tenant)}?{query}"), 400)


async def _five(tenant: Tenant) -> tuple[str, str]:
    place = await session(tenant.runtime)
    put = [{"collection": "c", "key": str(n), "json": n, "tags": ["t"] if n % 2 else []} for n in range(4)]
    await commit(tenant.runtime, session=place, put=[*put, {"collection": "d", "key": "0", "json": 0, "tags": ["t"]}])
    return place, f"/v1/sessions/{place}/context"


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ({"collection": "c"}, ["d0"]),
        ({"tag": "t"}, ["c0", "c2"]),
        ({"collection": "c", "tag": "t"}, ["c0", "c2", "d0"]),
        ({"collection": "c", "keep_newest": 1}, ["c3", "d0"]),
        ({"collection": "c", "keep_newest": 0}, ["d0"]),
        ({"collection": "c", "keep_newest": 9}, ["c0", "c1", "c2", "c3", "d0"]),
        ({"collection": "none"}, ["c0", "c1", "c2", "c3", "d0"]),
        ({"tag": "none"}, ["c0", "c1", "c2", "c3", "d0"]),
    ],
)
@pytest.mark.parametrize("way", ["route", "commit"])
async def test_a_bulk_deletion_takes_what_it_names_and_nothing_else(
    tenant: Tenant, query: dict[str, object], left: list[str], way: str
) -> None:
    place, url = await _five(tenant)
    if way == "route":
        assert done(await tenant.runtime.delete(url, params=query))["removed"] == 5 - len(left)
    else:
        await commit(tenant.runtime, session=place, delete=[query])
    listed = done(await tenant.runtime.get(url))["objects"]
    assert sorted(each["collection"] + each["key"] for each in listed) == left


@pytest.mark.parametrize("query", ["", "keep_newest=1", "tag=t&keep_newest=1", "collection=c&keep_newest=-1"])
async def test_a_deletion_that_names_too_little_or_too_much_is_refused(tenant: Tenant, query: str) -> None:
    _, url = await _five(tenant)
    answer = await tenant.runtime.delete(f"{url}?{query}")
    assert answer.status_code in {400, 422}
    assert len(done(await tenant.runtime.get(url))["objects"]) == 5


async def test_a_deleted_object_is_absent_and_its_old_tag_means_nothing(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    tag = (await tenant.runtime.put(url, content=b"x")).headers["etag"]
    done(await tenant.runtime.delete(url))
    refused(await tenant.runtime.get(url), 404)
    refused(await tenant.runtime.delete(url), 404)
    refused(await tenant.runtime.put(url, content=b"y", headers={"if-match": tag}), 412)
    assert (await tenant.runtime.put(url, content=b"y", headers={"if-none-match": "*"})).status_code == 201


async def test_an_object_too_large_is_413(cell: Cell, tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    largest = cell.parts.settings.max_object_bytes
    problem = refused(await tenant.runtime.put(url, content=b"SECRET" + bytes(largest)), 413, "too-large")
    assert "SECRET" not in str(problem)
    body = {"session": url.split("/")[3], "put": [{"collection": "c", "key": "k", "json": "x" * largest}]}
    refused(await tenant.runtime.post("/v1/commit", json=body), 422)
    refused(await tenant.runtime.get(url), 404)


@pytest.mark.parametrize("kind", ["x", "a/b\x01", "a/", "a/b;" + "c" * 300])
async def test_a_bad_content_type_is_refused(tenant: Tenant, kind: str) -> None:
    url = f"{await place_of(tenant)}/c/k"
    refused(await tenant.runtime.put(url, content=b"x", headers={"content-type": kind}), 400)


async def test_too_many_or_bad_tags_are_refused(tenant: Tenant) -> None:
    url = f"{await place_of(tenant)}/c/k"
    for tags in ([str(n) for n in range(17)], [""], ["x" * 257], ["a\x00"]):
        refused(await tenant.runtime.put(url, content=b"x", params={"tag": tags}), 400)
    refused(await tenant.runtime.get(url), 404)


async def test_a_load_answers_overlapping_selectors_once(tenant: Tenant) -> None:
    place, _ = await _five(tenant)
    loaded = await load(
        tenant.runtime, session=place, context=[{"collection": "c"}, {"tag": "t"}, {"collection": "c", "key": "1"}]
    )
    assert sorted(names_of(loaded["session"])) == [("c", "0"), ("c", "1"), ("c", "2"), ("c", "3"), ("d", "0")]


async def test_an_absent_container_takes_no_object(tenant: Tenant) -> None:
    for kind in ("sessions", "subjects", "apps"):
        url = f"/v1/{kind}/{uuid4()}/context/c/k"
        refused(await tenant.runtime.put(url, content=b"x"), 404)
        refused(await tenant.runtime.patch(url, content=b"{}", headers={"content-type": "application/json"}), 404)
        refused(await tenant.runtime.delete(url), 404)
        refused(await tenant.runtime.get(url), 404)
