"""Routes are found by the raw path; what doesn't name a resource is one and the same 404."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from app.api.http import Answer, decode_id
from app.api.table import ResponseDoc, Route, Table, text_decoder
from app.errors import BadRequest, MethodNotAllowed, NotFound

Path = Callable[[str, str], str]


async def _nothing(services: Any, request: Any, body: Any) -> Answer:
    return Answer(204)


def _route(method: Any, path: str, name: str | None = None) -> Route:
    return Route(method, path, _nothing, name or f"{method}{path}", "", {204: ResponseDoc("")})


@pytest.mark.parametrize("key", ["a/b", "..", "größe", "a b", "100%", "?x=1", "a+b", "%2F", "ſ" * 512])
async def test_any_text_can_be_a_key(world: Any, object_path: Path, key: str) -> None:
    reply = await world.call("GET", object_path("state", key))
    assert reply.json == ["state", key, "serve"]


@pytest.mark.parametrize("key", ["%00", "a%0Ab", "%C2%85", "%FF", "%E2%82", "%zz", "%", "a" * 513, "%7f"])
async def test_a_key_that_is_no_clean_text_is_refused(world: Any, note: UUID, key: str) -> None:
    reply = await world.call("GET", f"/v1/notes/{note}/context/state/{key}")
    assert (reply.status, reply.problem) == (400, "bad-request")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v1/notes/",
        "/v1/unknown",
        "/V1/notes",
        "//v1/notes",
        "/v1/notes/x/y",
        "*",
        "/v1//notes",
    ],
)
async def test_an_unknown_path_is_not_found(world: Any, path: str) -> None:
    assert (await world.call("GET", path)).problem == "not-found"


@pytest.mark.parametrize(
    "text", ["1", "01980A3E-7C1B-7D52-9F0E-2B6A4C8D1E3F", "01980a3e7c1b7d529f0e2b6a4c8d1e3f", "%30", "{id}"]
)
async def test_an_id_that_is_none_is_as_absent_as_anothers(world: Any, others_note: UUID, text: str) -> None:
    absent = await world.call("GET", f"/v1/notes/{others_note}")
    malformed = await world.call("GET", f"/v1/notes/{text}")
    unknown = await world.call("GET", "/v1/nowhere")
    seen = [_comparable(reply) for reply in (absent, malformed, unknown)]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] == 404


def _comparable(reply: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    headers = {k: v for k, v in reply.headers.items() if k not in {"confide-request-id", "confide-trace-id"}}
    return reply.status, headers, {**reply.json, "instance": ""}


async def test_a_malformed_id_does_not_get_past_authentication(world: Any) -> None:
    assert (await world.call("GET", "/v1/notes/1", role=None)).status == 401


async def test_a_wrong_method_is_told_the_right_ones(world: Any, note: UUID) -> None:
    for method in ("POST", "TRACE", "BREW", "get"):
        reply = await world.call(method, f"/v1/notes/{note}", role=None)
        assert (reply.status, reply.headers["allow"]) == (405, "DELETE, GET, HEAD, PATCH, OPTIONS")
    reply = await world.call("OPTIONS", f"/v1/notes/{note}", role=None)
    assert (reply.status, reply.headers["allow"], reply.body) == (204, "DELETE, GET, HEAD, PATCH, OPTIONS", b"")
    assert (await world.call("OPTIONS", "/v1/nowhere")).status == 404


async def test_head_is_get_without_the_body(world: Any, note: UUID) -> None:
    get, head = [await world.call(method, f"/v1/notes/{note}") for method in ("GET", "HEAD")]
    assert head.body == b""
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))
    assert head.headers["etag"] == get.headers["etag"]


def test_a_literal_wins_over_an_id() -> None:
    table = Table((_route("POST", "/v1/notes/lookup"), _route("GET", "/v1/notes/{id}")))
    assert table.match("POST", b"/v1/notes/lookup")[0].path == "/v1/notes/lookup"
    with pytest.raises(MethodNotAllowed):
        table.match("GET", b"/v1/notes/lookup")
    assert table.match("GET", b"/v1/notes/x")[2] == [b"x"]


@pytest.mark.parametrize(
    "paths",
    [
        ("/v1/{id}", "/v1/{id}"),
        ("/v1/{key}", "/v1/fixed"),
        ("/v1/fixed", "/v1/{key}"),
        ("/v1/{id}/a", "/v1/{key}/b"),
    ],
)
def test_an_ambiguous_table_is_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"ambiguous|two routes|stands where"):
        Table(tuple(_route("GET", path, str(number)) for number, path in enumerate(paths)))


def test_two_routes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Table((_route("GET", "/a", "x"), _route("GET", "/b", "x")))


def test_decoders_refuse_by_kind() -> None:
    with pytest.raises(NotFound):
        decode_id(b"x")
    with pytest.raises(BadRequest):
        text_decoder("key")(b"")
    assert text_decoder("collection")(b"%C3%A4" * 256) == "ä" * 256


def test_matching_takes_microseconds() -> None:
    table = Table(tuple(_route("GET", f"/v1/{kind}/{{id}}/context/{{collection}}/{{key}}") for kind in ("a", "b", "c")))
    path = b"/v1/b/01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f/context/state/current"
    best = min(_timed(table, path) for _ in range(5))
    assert best < 20e-6  # 1.3 µs on an idle core


def _timed(table: Table, path: bytes) -> float:
    start = time.thread_time()  # what it costs, however long it has to wait for a core
    for _ in range(1000):
        table.match("GET", path)
    return (time.thread_time() - start) / 1000
