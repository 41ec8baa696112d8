"""G6: a refusal for what is another tenant's costs what one for nothing costs: the same statements, round trips and key
look-ups, so that no clock can tell them apart. ``python -m tests.programmes.not_found`` holds a clock to it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from app.identity import new_id
from tests.cell import REGION, Cell, Tenant
from tests.dialogue.calls import commit, done
from tests.guarantees.wire import Exchange, Wire

ROUNDS = 2
LOOKS = 40
Ask = Callable[[str], Awaitable[httpx2.Response]]
"""A request that names an id."""


@pytest.fixture
def cell(watched: Cell) -> Cell:
    return watched


# ---------------------------------------------------------------- what another tenant has


async def _container(other: Tenant, kind: str) -> str:
    body = {"external_id": str(new_id()), "create": {"subject": str(new_id())}, "turns": [{"json": 1}], "subject": {}}
    if kind == "apps":
        return str(done(await other.runtime.post("/v1/apps", json={"name": str(new_id())}))["id"])
    made = await commit(other.runtime, **body)
    return str(made["session" if kind == "sessions" else "subject"]["id"])


def _wanted(kind: str, session: str) -> tuple[str, dict[str, Any], str]:
    """Where something of the kind is made, from what, and where the answer has its id."""
    consent = {"scope": "kms", "destination": "us-east-1", "safeguard": "scc", "expires_at": "2030-01-01T00:00:00Z"}
    stream = {"url": "https://receiver.confide.invalid/", "region": REGION}
    key = ("/v1/api-keys", {"name": "key", "role": "runtime"}, "key.id")
    erasure = ("/v1/privacy/erasures", {"session": session}, "id")
    return {
        "api-keys": key,
        "operator-keys": key,
        "bindings": ("/v1/keys/bindings", {"provider": "vendor"}, "id"),
        "jobs": erasure,
        "erasures": erasure,
        "holds": ("/v1/privacy/holds", {"session": session, "reason": "r"}, "id"),
        "consents": ("/v1/privacy/consents", consent, "id"),
        "streams": ("/v1/audit/streams", stream, "stream.id"),
    }[kind]


async def _one(other: Tenant, kind: str, number: int) -> str:
    """Something of ``other``'s, of the kind that a path names; another for each ``number``."""
    if kind in {"sessions", "subjects", "apps"}:
        return await _container(other, kind)
    if kind == "events":
        listed = done(await other.auditor.get("/v1/audit/events", params={"limit": 50}))["events"]
        return str(listed[number]["id"])
    if kind == "streams":
        await _drop_streams(other)
    path, body, place = _wanted(kind, await _container(other, "sessions"))
    found = (await other.admin.post(path, json=body)).raise_for_status().json()
    for name in place.split("."):
        found = found[name]
    return str(found)


async def _retire(other: Tenant) -> None:
    """A tenant may have few bindings."""
    for each in done(await other.admin.get("/v1/keys/bindings"))["bindings"]:
        if each["state"] == "pending":
            (await other.admin.post(f"/v1/keys/bindings/{each['id']}/retire")).raise_for_status()


async def _drop_streams(other: Tenant) -> None:
    """A tenant may have few."""
    for each in done(await other.admin.get("/v1/audit/streams"))["streams"]:
        await other.admin.delete(f"/v1/audit/streams/{each['id']}")


# ---------------------------------------------------------------- every way to name what isn't there

# An erasure by id is accepted whatever the id: it needs no look-up, and its receipt says that nothing was there.
NAMED_IN_BODIES: dict[str, tuple[str, str, str, Callable[[str], dict[str, Any]]]] = {
    # name: (role, kind, path, body)
    "load": ("runtime", "sessions", "/v1/load", lambda at: {"session": at, "context": [{}], "turns": {"last": 3}}),
    "commit": ("runtime", "sessions", "/v1/commit", lambda at: {"session": at, "turns": [{"json": 1}]}),
    "hold session": ("admin", "sessions", "/v1/privacy/holds", lambda at: {"session": at, "reason": "r"}),
    "hold subject": ("admin", "subjects", "/v1/privacy/holds", lambda at: {"subject_id": at, "reason": "r"}),
    "export session": ("admin", "sessions", "/v1/privacy/exports", lambda at: {"session": at}),
    "export subject": ("admin", "subjects", "/v1/privacy/exports", lambda at: {"subject_id": at}),
} | {
    f"batch {op} {kind}": (
        "runtime",
        f"{kind}s",
        "/v1/batch",
        lambda at, op=op, kind=kind: {"requests": [{"op": op, kind: at, "collection": "c", "key": "k", **VALUES[op]}]},
    )
    for op in ("get", "put", "merge", "delete")
    for kind in ("session", "subject", "app")
}
VALUES: dict[str, dict[str, Any]] = {"get": {}, "put": {"json": 1}, "merge": {"json": {}}, "delete": {}}
_SHARED = {"tenants", "incidents"}  # an operator's, of no tenant


def _ways(cell: Cell, tenant: Tenant, document: dict[str, Any]) -> dict[str, tuple[str, Ask]]:
    """By name: the kind of thing, and how a caller of ``tenant`` who may asks for it by its id."""
    clients = {"runtime": tenant.runtime, "admin": tenant.admin, "auditor": tenant.auditor, "operator": cell.operator}
    ways: dict[str, tuple[str, Ask]] = {}
    for path, methods in document["paths"].items():
        kind = path.partition("/{id}")[0].rpartition("/")[2]
        if "{id}" not in path or kind in _SHARED:
            continue
        for method, operation in methods.items():
            client = clients[operation["x-confide-roles"][0]]
            ways[f"{method} {path}"] = kind, _by_path(client, method, path, _body(operation))
    for name, (role, kind, path, body) in NAMED_IN_BODIES.items():
        ways[name] = kind, _by_body(clients[role], path, body)
    query = "/v1/audit/proof/inclusion"
    ways[f"get {query}"] = "events", _by_query(tenant.auditor, query)
    return ways


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content and "example" in content["application/json"]:
        return {"json": content["application/json"]["example"]}
    if "application/merge-patch+json" in content:
        return {"content": b"{}", "headers": {"content-type": "application/merge-patch+json"}}
    return {"content": b"x"} if content else {}


def _by_path(client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any]) -> Ask:
    query = "?collection=c" if method == "delete" and path.endswith("/context") else ""

    async def ask(at: str) -> httpx2.Response:
        url = re.sub(r"\{[a-z_]+\}", "k", path.replace("{id}", at)) + query
        return await client.request(method.upper(), url, **body)

    return ask


def _by_body(client: httpx2.AsyncClient, path: str, body: Callable[[str], dict[str, Any]]) -> Ask:
    async def ask(at: str) -> httpx2.Response:
        purpose = {"confide-purpose": "subject-access"} if path.endswith("exports") else {}
        return await client.post(path, json=body(at), headers=purpose)

    return ask


def _by_query(client: httpx2.AsyncClient, path: str) -> Ask:
    async def ask(at: str) -> httpx2.Response:
        return await client.get(path, params={"event": at})

    return ask


# ---------------------------------------------------------------- what a refusal costs


async def _cost(cell: Cell, wire: Wire, idle: set[str], asked: Awaitable[httpx2.Response]) -> tuple[Any, ...]:
    """Statements, lengths of what was sent, kinds of what came back, and key look-ups, without the idle worker's."""
    wire.drain()
    before = dict(cell.parts.metrics.key_cache.values)
    answer = await asked
    after = cell.parts.metrics.key_cache.values
    looked = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    told = [each.shape() for each in wire.drain() if not idle >= set(each.texts) and not _drivers(each)]
    status = answer.status_code if answer.status_code != 200 else [each["status"] for each in answer.json()["results"]]
    assert status in (404, [404]), answer.text
    return tuple(told), looked, len(answer.content)


def _drivers(exchange: Exchange) -> bool:
    """What the driver asks on a new connection about the types that it meets there."""
    return any("typeinfo_tree" in text or "'jit'" in text for text in exchange.texts)


async def _costs(
    cell: Cell, wire: Wire, idle: set[str], ask: Ask, foreign: list[str], pause: float
) -> list[tuple[Any, ...]]:
    """Of each foreign id and, after each, of one that nothing has. ``pause``: seconds before each."""
    costs = []
    for at in foreign:
        for asked in (at, str(new_id())):
            await asyncio.sleep(pause)
            costs.append(await _cost(cell, wire, idle, ask(asked)))
    return costs


async def test_g6_what_is_another_tenant_s_costs_what_nothing_costs(cell: Cell, wire: Wire) -> None:
    """Jobs and the sealer work beside, so an unequal round is looked at again: they add to one side or the other by
    chance, what the route itself does is the same each time.
    """
    one, other = await cell.tenant("one"), await cell.tenant("other")
    for tenant in (one, other):
        await _container(tenant, "sessions")
    ways = _ways(cell, one, done(await cell.anyone.get("/openapi.json")))
    idle = await _idle(wire)
    seen: set[str] = set()
    for name, (kind, ask) in ways.items():
        await ask(str(new_id()))  # what is looked up once only, for the first caller
        for look in range(LOOKS):
            if kind == "bindings":
                await _retire(other)
            foreign = [await _one(other, kind, number) for number in range(ROUNDS)]
            costs = await _costs(cell, wire, idle, ask, foreign, min(look * 0.25, 1.5))
            if len({repr(cost) for cost in costs}) == 1:
                break
        else:
            pytest.fail(name + "".join(f"\n  {cost}" for cost in costs))
        seen |= {text for texts, *_ in costs[0][0] for text in texts}
    assert len(ways) > 60
    assert len(seen) > 10, "the proxy sees nothing"


async def test_g6_the_wire_tells_an_own_id_from_none(cell: Cell, wire: Wire) -> None:
    """The control: where something is found, more is said, and the test above sees it."""
    one = await cell.tenant("one")
    own = await _container(one, "sessions")
    done(await one.runtime.put(f"/v1/sessions/{own}/context/c/k", content=b"x"))
    idle = await _idle(wire)
    wire.drain()
    shapes = []
    for at in (own, str(new_id())):
        await one.runtime.get(f"/v1/sessions/{at}/context")
        shapes.append([each.shape() for each in wire.drain() if not idle >= set(each.texts)])
    assert shapes[0] != shapes[1]


async def _idle(wire: Wire) -> set[str]:
    """The statements of a worker that nobody asks anything."""
    wire.drain()
    await asyncio.sleep(2.5)
    return {text for exchange in wire.drain() for text in exchange.texts}
