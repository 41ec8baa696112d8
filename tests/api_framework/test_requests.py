"""Queries, headers, bodies and callers are read strictly, and refused without an echo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from app.errors import Unavailable

Path = Callable[[str, str], str]

GOOD_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_declared_query_parameters_are_converted(world: Any) -> None:
    assert (await world.call("GET", "/v1/notes")).json == {"limit": 20, "order": "", "tags": [], "newest": False}
    reply = await world.call("GET", "/v1/notes?limit=7&order=oldest&tag=a&tag=b%2Bc&newest=true")
    assert reply.json == {"limit": 7, "order": "oldest", "tags": ["a", "b+c"], "newest": True}


@pytest.mark.parametrize(
    "query",
    [
        "x=1", "limit=1&limit=2", "limit=0", "limit=101", "limit=", "limit", "limit=+1", "limit=1.0", "limit=01",
        "limit=%C2%B2", "limit=-0", "limit=99999999999999999999999", "newest=1", "newest=True", "order=Newest", "&",
        "tag=a&tag=b&tag=c&tag=d", "tag=toolong", "tag=%00", "tag=%FF", "tag=%g", "LIMIT=1", "limit=1;x=2",
        "tag=" + "a" * 9000, "%6Cimit=1", "limit=1&",
    ],
)  # fmt: skip
async def test_any_other_query_is_refused(world: Any, query: str) -> None:
    reply = await world.call("GET", f"/v1/notes?{query}")
    assert (reply.status, reply.problem) == (400, "bad-request")


async def test_a_route_without_parameters_takes_no_query(world: Any, note: UUID) -> None:
    assert (await world.call("GET", f"/v1/notes/{note}?a=1")).status == 400


async def test_a_body_is_decoded(world: Any) -> None:
    reply = await world.call("POST", "/v1/notes", json={"title": "hello", "parts": [{"key": "a"}]})
    assert (reply.status, reply.json["size"], reply.headers["location"]) == (201, 5, "/v1/notes/x")


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"title":}', b'{"title":"a"} x', b"\xef\xbb\xbf{}", b'{"title":"\xff"}', b'{"title":"\\ud800"}', b"nul",
     b'{"title":"a\x00"}'],
)  # fmt: skip
async def test_malformed_json_is_a_bad_request(world: Any, body: bytes) -> None:
    reply = await world.call("POST", "/v1/notes", body=body, headers={"content-type": "application/json"})
    assert (reply.status, reply.problem) == (400, "bad-request")


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({}, ""),
        ([], ""),
        ({"title": 1}, "/title"),
        ({"title": "a" * 21}, "/title"),
        ({"title": "a", "secret-field": 1}, ""),
        ({"title": "a", "order": "secret-order"}, "/order"),
        ({"title": "a", "parts": [{"key": "a"}, {"key": "A"}]}, "/parts/1/key"),
        ({"title": "a", "parts": [{"key": "a", "size": 10}]}, "/parts/0/size"),
        ({"title": "a", "parts": [{"key": "a", "x": 10}]}, "/parts/0"),
        ({"title": "a", "parts": [{}] * 4}, "/parts"),
        ({"title": "a", "labels": {"secret-label": "x"}}, "/labels"),
    ],
)
async def test_a_violated_schema_is_pointed_at(world: Any, document: Any, pointer: str) -> None:
    reply = await world.call("POST", "/v1/notes", json=document)
    assert (reply.status, reply.problem) == (422, "invalid-request")
    assert reply.json["pointer"] in {pointer, pointer + "/0"}
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/json; charset=latin-1",
        "application/jsonx",
        "application/json; charset=utf-8; a=b",
    ],
)
async def test_another_content_type_is_refused(world: Any, kind: str) -> None:
    reply = await world.call("POST", "/v1/notes", body=b'{"title":"a"}', headers={"content-type": kind})
    assert (reply.status, reply.problem) == (415, "unsupported-media-type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "application/json; charset=UTF-8"])
async def test_json_may_say_utf8(world: Any, kind: str) -> None:
    reply = await world.call("POST", "/v1/notes", body=b'{"title":"a"}', headers={"content-type": kind})
    assert reply.status == 201


async def test_an_optional_body_may_be_absent_and_a_needed_one_not(world: Any, note: UUID) -> None:
    assert (await world.call("PATCH", f"/v1/notes/{note}")).json == {"changed": False}
    assert (await world.call("PATCH", f"/v1/notes/{note}", json={"title": "a"})).json == {"changed": True}
    assert (await world.call("POST", "/v1/notes")).status == 400


async def test_a_body_where_none_belongs_is_refused(world: Any, note: UUID) -> None:
    assert (await world.call("GET", f"/v1/notes/{note}", body=b"x")).status == 400
    assert (await world.call("DELETE", f"/v1/notes/{note}", body=[b"x"])).status == 400


async def test_opaque_bytes_come_as_they_were_sent(world: Any, object_path: Path) -> None:
    path = object_path("a", "b")
    reply = await world.call("PUT", path, body=b"\x00\xff", headers={"content-type": "image/png; q=1"})
    assert (reply.body, reply.headers["content-type"]) == (b"\x00\xff", "image/png; q=1")
    assert (await world.call("PUT", path)).headers["content-type"] == "application/octet-stream"
    for bad in ("png", "a/b\r\nx: y", "a/" + "b" * 300, "a /b", "a/b,c/d"):
        assert (await world.call("PUT", path, body=b"x", headers={"content-type": bad})).status == 400


async def test_a_body_up_to_the_limit_and_no_further(world: Any, object_path: Path) -> None:
    path = object_path("a", "b")
    assert (await world.call("PUT", path, body=b"x" * 1000)).status == 200
    assert (await world.call("PUT", path, body=[b"x" * 400, b"x" * 600])).status == 200
    for body in (b"x" * 1001, [b"x" * 600, b"x" * 401], [b"x" * 1001], [b"x" * 600, b"x" * 600, b"x" * 600]):
        reply = await world.call("PUT", path, body=body)
        assert (reply.status, reply.problem, reply.headers["connection"]) == (413, "too-large", "close")


async def test_too_much_is_refused_unread_where_the_client_waits(world: Any, object_path: Path) -> None:
    raw = [(b"authorization", b"Bearer runtime"), (b"content-length", b"99999999"), (b"expect", b"100-continue")]
    assert (await world.raw_call("PUT", object_path("a", "b"), raw, [])).status == 413


@pytest.mark.parametrize(
    "name", ["authorization", "content-length", "content-type", "host", "if-match", "idempotency-key", "traceparent"]
)
async def test_a_repeated_header_that_must_be_single_is_refused(world: Any, note: UUID, name: str) -> None:
    reply = await world.call("DELETE", f"/v1/notes/{note}", headers=[(name, "0"), (name, "0")])
    assert reply.status == 400
    assert (await world.call("DELETE", f"/v1/notes/{note}", headers=[("accept", "a"), ("accept", "b")])).status == 204


async def test_a_declared_header_must_have_its_form(world: Any, note: UUID) -> None:
    path = f"/v1/notes/{note}"
    for good in (f'"{note}"', "*"):
        assert (await world.call("DELETE", path, headers={"if-match": good})).status == 204
    for bad in (str(note), "", f'"{note}", "{note}"', '"a b"', '"'):
        assert (await world.call("DELETE", path, headers={"if-match": bad})).status == 400
    for never in (f'W/"{note}"', '"x"', '""'):
        assert (await world.call("DELETE", path, headers={"if-match": never})).status == 412
    other = await world.call("DELETE", path, headers={"if-match": f'"{UUID(int=1)}"'})
    assert (other.status, other.headers["etag"], other.json["current"]) == (412, f'"{note}"', f'"{note}"')


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer nobody", "Basic runtime", "bearer  runtime", ""])
async def test_every_failed_authentication_looks_the_same(world: Any, note: UUID, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    reply = await world.call("GET", f"/v1/notes/{note}", role=None, headers=headers)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="confide"')
    assert "unknown" not in reply.json["detail"]


async def test_a_scope_that_is_missing_is_audited_and_forbidden(world: Any, note: UUID) -> None:
    for role, path, name in (("operator", f"/v1/notes/{note}", "get_note"), ("runtime", "/v1/cell", "cell")):
        reply = await world.call("GET", path, role=role)
        assert (reply.status, reply.problem) == (403, "forbidden")
        assert world.gate.denials[-1] == (name, "scope")


async def test_a_denial_that_cannot_be_audited_is_not_answered_as_one(world: Any) -> None:
    async def broken(*_: Any) -> None:
        raise Unavailable

    world.gate.denied = broken
    assert (await world.call("GET", "/v1/cell")).problem == "unavailable"


async def test_a_purpose_is_settled_before_the_handler(world: Any, object_path: Path) -> None:
    path = object_path("a", "b")
    assert (await world.call("GET", path)).json[2] == "serve"
    assert (await world.call("GET", path, headers={"confide-purpose": "serve"})).json[2] == "serve"
    denied = await world.call("GET", path, headers={"confide-purpose": "maintenance"})
    assert (denied.status, world.gate.denials[-1]) == (403, ("get_object", "purpose"))
    assert (await world.call("GET", path, headers={"confide-purpose": "training"})).status == 400


async def test_the_rate_comes_before_the_scope(world: Any) -> None:
    world.gate.limited = True
    reply = await world.call("GET", "/v1/cell")
    assert (reply.status, reply.headers["retry-after"], reply.json["retry_after"]) == (429, "7", 7)
    assert world.gate.denials == []


async def test_a_valid_trace_is_taken_over_and_any_other_is_not(world: Any, note: UUID) -> None:
    path = f"/v1/notes/{note}"
    taken = await world.call("GET", path, headers={"traceparent": GOOD_TRACE})
    assert taken.headers["confide-trace-id"] == GOOD_TRACE[3:35]
    zero = "00-" + "0" * 32 + "-00f067aa0ba902b7-01"
    for bad in (GOOD_TRACE.upper(), "01" + GOOD_TRACE[2:], GOOD_TRACE + "-x", zero, "", "ff" + GOOD_TRACE[2:]):
        reply = await world.call("GET", path, headers={"traceparent": bad})
        assert reply.headers["confide-trace-id"] == reply.headers["confide-request-id"].replace("-", "")


async def test_every_answer_carries_the_fixed_headers(world: Any, note: UUID) -> None:
    for method, path in (("GET", f"/v1/notes/{note}"), ("GET", "/nowhere"), ("DELETE", f"/v1/notes/{note}")):
        reply = await world.call(method, path)
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert UUID(reply.headers["confide-request-id"]).version == 7
        assert ("content-length" in reply.headers) == (reply.status != 204)


async def test_the_client_address_is_the_peers_unless_proxies_are_trusted(
    world: Any, world_with: Callable[..., Any]
) -> None:
    forwarded = [("x-forwarded-for", "203.0.113.9, 198.51.100.1"), ("x-forwarded-for", "198.51.100.2")]
    assert (await world.call("GET", "/v1/cell", role="operator", headers=forwarded)).json["from"] == "192.0.2.7"
    for count, seen in ((1, "198.51.100.2"), (2, "198.51.100.1"), (3, "203.0.113.9"), (4, "192.0.2.7")):
        other = world_with(trusted_proxies=count)
        assert (await other.call("GET", "/v1/cell", role="operator", headers=forwarded)).json["from"] == seen
    trusting = world_with(trusted_proxies=1)
    spoofed = await trusting.call("GET", "/v1/cell", role="operator", headers={"x-forwarded-for": "<script>"})
    assert spoofed.json["from"] == "192.0.2.7"
