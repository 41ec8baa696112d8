"""The document is valid OpenAPI 3.1, covers the table, and tells the truth about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.api.docs_page import docs_routes


@pytest.fixture
async def document(world: Any) -> dict[str, Any]:
    reply = await world.call("GET", "/openapi.json", role=None)
    assert reply.headers["content-type"] == "application/json"
    return dict(reply.json)


async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_every_documented_route_is_in_it(document: dict[str, Any], world: Any) -> None:
    shown = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    table = {(route.method, route.path) for route in world.api._table.routes if route.documented}
    assert shown == table
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


async def test_who_may_call_is_told(document: dict[str, Any]) -> None:
    get = document["paths"]["/v1/notes/{id}/context/{collection}/{key}"]["get"]
    assert get["x-confide-scope"] == "context:read"
    assert get["x-confide-roles"] == ["runtime"]
    assert get["x-confide-purposes"] == ["serve"]
    assert get["security"] == [{"apiKey": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert [p["name"] for p in get["parameters"]] == ["id", "collection", "key", "If-None-Match", "Confide-Purpose"]


async def test_constraints_are_told(document: dict[str, Any]) -> None:
    limit, order, tag, newest = document["paths"]["/v1/notes"]["get"]["parameters"]
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    assert order["schema"]["enum"] == ["newest", "oldest"]
    assert tag["schema"]["items"]["maxLength"] == 5
    assert tag["schema"]["maxItems"] == 3
    assert newest["schema"]["type"] == "boolean"
    assert document["components"]["schemas"]["NewNote"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "request_of",
    [
        ("GET", "/v1/notes/{note}", {}),
        ("GET", "/v1/notes/{other}", {}),
        ("GET", "/v1/notes/{note}", {"role": None}),
        ("GET", "/v1/notes/{note}", {"role": "admin"}),
        ("GET", "/v1/notes?limit=0", {}),
        ("GET", "/v1/notes?tag=a", {}),
        ("POST", "/v1/notes", {"json": {"title": "a"}}),
        ("POST", "/v1/notes", {"json": {"title": 1}}),
        ("POST", "/v1/notes", {"body": b"x" * 3000}),
        ("POST", "/v1/notes", {"body": b"x"}),
        ("DELETE", "/v1/notes/{note}", {}),
        ("DELETE", "/v1/notes/{note}", {"headers": {"if-match": '"00000000-0000-0000-0000-000000000001"'}}),
        ("GET", "/healthz", {}),
        ("GET", "/readyz", {}),
        ("GET", "/metrics", {}),
    ],
)
async def test_answers_are_as_documented(
    document: dict[str, Any], world: Any, notes: tuple[str, str], request_of: tuple[str, str, Any]
) -> None:
    method, target, options = request_of
    path = target.partition("?")[0].replace("{note}", "{id}").replace("{other}", "{id}")
    reply = await world.call(method, target.format(note=notes[0], other=notes[1]), **options)
    told = document["paths"][path][method.lower()]["responses"][str(reply.status)]
    for name, header in told["headers"].items():
        found = reply.headers.get(name.lower())
        schema = header.get("schema", {})
        assert found is None or re.search(schema.get("pattern", ""), found)
    if reply.status == 204:
        assert "content" not in told
        return
    kind = reply.headers["content-type"].partition(";")[0]
    schema = {**told["content"][kind]["schema"], "components": document["components"]}
    if "json" in kind:
        Draft202012Validator(schema).validate(reply.json)


async def test_the_page_loads_nothing_from_elsewhere(world: Any) -> None:
    page = await world.call("GET", "/docs", role=None)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"http://" not in page.body
    assert b"https://" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.body.decode()):
        assert (await world.call("GET", path, role=None)).status == 200


def test_the_wheel_with_the_page_is_a_declared_dependency() -> None:
    assert "fastapi-offline" in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert docs_routes((), version="0")


async def test_readiness_follows_the_service(world: Any, world_with: Callable[..., Any]) -> None:
    assert (await world.call("GET", "/readyz", role=None)).json == {"status": "ok"}
    world.services.ready = False
    assert (await world.call("GET", "/readyz", role=None)).problem == "unavailable"
    assert (await world.call("GET", "/healthz", role=None)).status == 200
