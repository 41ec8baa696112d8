"""A small table of routes, a gate that knows four keys, and two ways to call: in the process and through uvicorn."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import msgspec
import orjson
import pytest
import uvicorn

from app import errors
from app.api.dispatch import Api, ApiSettings
from app.api.docs_page import docs_routes
from app.api.health import health_routes
from app.api.http import Answer, Request, StreamAnswer, etag, json_answer
from app.api.table import (
    ETAG,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    IF_NONE_MATCH,
    BodyLimits,
    QueryParam,
    RawBody,
    ResponseDoc,
    Route,
)
from app.identity import ROLE_PURPOSES, ROLE_SCOPES, ApiKeyId, Caller, Purpose, Role, Scope, TenantId, new_id
from app.observability.logs import RequestLog
from app.observability.metrics import Metrics

NOTE = UUID("01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f")
OTHERS_NOTE = UUID("01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e40")


class Order(Enum):
    NEWEST = "newest"
    OLDEST = "oldest"


class Part(msgspec.Struct, forbid_unknown_fields=True):
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=8, pattern="^[a-z]+$")]
    size: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0


class NewNote(msgspec.Struct, forbid_unknown_fields=True):
    """A note to be made."""

    title: Annotated[str, msgspec.Meta(max_length=20)]
    order: Order = Order.NEWEST
    parts: Annotated[list[Part], msgspec.Meta(max_length=3)] = []
    labels: dict[str, int] = {}


class Note(msgspec.Struct):
    id: UUID
    size: int


class Page(msgspec.Struct):
    limit: int
    order: str
    tags: list[str]
    newest: bool


async def get_note(services: Any, request: Request, _body: None) -> Answer:
    if request.path_id() != NOTE:
        raise errors.NotFound("it belongs to somebody else")
    return json_answer(Note(NOTE, 1), headers=(etag(NOTE),))


async def list_notes(services: Any, request: Request, _body: None) -> Answer:
    query = request.query
    order = query["order"].value if query["order"] else ""
    return json_answer(Page(query["limit"], order, list(query["tag"]), bool(query["newest"])))


async def make_note(services: Any, request: Request, body: NewNote) -> Answer:
    return json_answer({"id": NOTE, "size": len(body.title)}, 201, ((b"location", b"/v1/notes/x"),))


async def change_note(services: Any, request: Request, body: NewNote | None) -> Answer:
    return json_answer({"changed": body is not None})


async def delete_note(services: Any, request: Request, _body: None) -> Answer:
    if request.if_match() not in {None, "*", NOTE}:
        raise errors.PreconditionFailed(current=str(NOTE))
    return Answer(204)


async def get_object(services: Any, request: Request, _body: None) -> Answer:
    texts = [request.path_text("collection"), request.path_text("key"), request.purpose.value]
    return json_answer(texts)


async def put_object(services: Any, request: Request, body: bytes) -> Answer:
    return Answer(200, body, request.content_type())


async def cell(services: Any, request: Request, _body: None) -> Answer:
    return json_answer({"from": request.client_address, "trace": request.trace_id})


async def fail(services: Any, request: Request, _body: None) -> Answer:
    return services.fail(request.path_text("kind"))


async def slow(services: Any, request: Request, _body: None) -> Answer:
    await asyncio.sleep(0.2)
    services.finished.append(request.request_id)
    return Answer(204)


async def stream(services: Any, request: Request, _body: None) -> StreamAnswer:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            for number in range(services.chunks):
                yield b'{"n":%d}\n' % number
                await asyncio.sleep(0)
            if services.stream_error is not None:
                raise services.stream_error
        finally:
            services.finished.append(request.request_id)

    return StreamAnswer(200, b"application/x-ndjson", (), chunks())


OK = {200: ResponseDoc("Done.", dict[str, Any])}
OBJECT = "/v1/notes/{id}/context/{collection}/{key}"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/notes/{id}", get_note, "get_note", "Get.", {200: ResponseDoc("It.", Note, headers=(ETAG,))},
          scope=Scope.CONTEXT_READ),
    Route("GET", "/v1/notes", list_notes, "list_notes", "List.", {200: ResponseDoc("Some.", Page)},
          scope=Scope.CONTEXT_READ, query=(
              QueryParam("limit", Annotated[int, msgspec.Meta(ge=1, le=100)], "How many.", default=20),
              QueryParam("order", Order, "Which first."),
              QueryParam("tag", Annotated[str, msgspec.Meta(max_length=5)], "Tags.", many=True, max_items=3),
              QueryParam("newest", bool, "Only the newest."),
          )),
    Route("POST", "/v1/notes", make_note, "make_note", "Make.", {201: ResponseDoc("Made.", Note)},
          scope=Scope.CONTEXT_WRITE, body=NewNote, headers=(IDEMPOTENCY_KEY,), request_example={"title": "a"}),
    Route("PATCH", "/v1/notes/{id}", change_note, "change_note", "Change.", OK, scope=Scope.CONTEXT_WRITE,
          body=NewNote, body_required=False),
    Route("DELETE", "/v1/notes/{id}", delete_note, "delete_note", "Delete.", {204: ResponseDoc("Gone.")},
          scope=Scope.CONTEXT_WRITE, headers=(IF_MATCH,), errors=(errors.PreconditionFailed,)),
    Route("GET", OBJECT, get_object, "get_object", "Get.", {200: ResponseDoc("It.", list[str])},
          scope=Scope.CONTEXT_READ, purpose=True, purposes=(Purpose.SERVE,), headers=(IF_NONE_MATCH,)),
    Route("PUT", OBJECT, put_object, "put_object", "Put.", {200: ResponseDoc("It.", content_type="*/*")},
          scope=Scope.CONTEXT_WRITE, body=RawBody(), limit="object"),
    Route("GET", "/v1/cell", cell, "cell", "Operators only.", OK, scope=Scope.CELL_READ),
    Route("GET", "/v1/fail/{kind}", fail, "fail", "Fail.", OK, public=True, documented=False),
    Route("GET", "/v1/slow", slow, "slow", "Slow.", {204: ResponseDoc("Done.")}, public=True, documented=False),
    Route("GET", "/v1/stream", stream, "stream", "Lines.",
          {200: ResponseDoc("Lines.", content_type="application/x-ndjson")}, public=True),
)  # fmt: skip


def caller_of(role: Role) -> Caller:
    return Caller(TenantId(new_id()), ApiKeyId(new_id()), new_id(), role, ROLE_SCOPES[role], ROLE_PURPOSES[role])


CALLERS = {f"Bearer {role.value}".encode(): caller_of(role) for role in Role}


@dataclass
class Gate:
    """Knows one key per role, named like it, and remembers denials."""

    denials: list[tuple[str, str]] = field(default_factory=list)
    limited: bool = False
    seen: list[str] = field(default_factory=list)

    async def authenticate(self, authorization: bytes | None, client_address: str) -> Caller:
        self.seen.append(client_address)
        caller = CALLERS.get(authorization or b"")
        if caller is None:
            raise errors.Unauthenticated("this key is unknown")
        return caller

    def forget(self, key: UUID) -> None:
        self.seen.append(f"forgot {key}")

    def admit(self, caller: Caller) -> None:
        if self.limited:
            raise errors.RateLimited(retry_after=7)

    async def denied(self, caller: Caller, route_name: str, reason: str, request: Request) -> None:
        self.denials.append((route_name, reason))


@dataclass
class Services:
    fail: Callable[[str], Answer] = field(default=lambda _: Answer(204))
    finished: list[UUID] = field(default_factory=list)
    chunks: int = 3
    stream_error: Exception | None = None
    ready: bool = True


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def problem(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:confide:problem:")


@dataclass
class World:
    """The demo API with everything that a test may look at or turn."""

    gate: Gate
    services: Services
    metrics: Metrics
    log: io.StringIO
    api: Api

    async def call(
        self,
        method: str,
        target: str,
        *,
        role: str | None = "runtime",
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        json: Any = None,
    ) -> Reply:
        """In the process. ``body`` as a list: sent in these parts, without Content-Length."""
        given = list(headers.items() if isinstance(headers, dict) else headers or ())
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in given]
        if role is not None:
            raw.append((b"authorization", f"Bearer {role}".encode()))
        if json is not None:
            body = orjson.dumps(json)
            raw.append((b"content-type", b"application/json"))
        names = {name for name, _ in raw}
        if isinstance(body, list):
            raw.append((b"transfer-encoding", b"chunked"))
        elif body and b"content-length" not in names:
            raw.append((b"content-length", str(len(body)).encode()))
        return await self.raw_call(method, target, raw, body if isinstance(body, list) else [body])

    async def raw_call(self, method: str, target: str, raw: list[tuple[bytes, bytes]], parts: list[bytes]) -> Reply:
        path, _, query = target.partition("?")
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": raw,
                 "query_string": query.encode(), "client": ("192.0.2.7", 5)}  # fmt: skip
        incoming = [
            {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
            for number, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            if incoming:
                return incoming.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        await self.api(scope, receive, send)
        names = [name for name, _ in sent[0]["headers"]]
        assert len(names) == len(set(names)), "a header stands twice"
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(message["body"] for message in sent[1:]))


def make_world(**settings: Any) -> World:
    gate, services, metrics, log = Gate(), Services(), Metrics(), io.StringIO()

    async def ready() -> None:
        if not services.ready:
            raise errors.Unavailable("The database doesn't answer.")

    routes = (*ROUTES, *health_routes(ready, metrics))
    routes = (*routes, *docs_routes(routes, version="0.0.0"))
    limits = BodyLimits(json=2000, envelope=4000, object=1000)
    api = Api(
        routes,
        services,
        gate,
        settings=ApiSettings(limits=limits, **settings),
        metrics=metrics,
        request_log=RequestLog(1.0, log),
    )
    return World(gate, services, metrics, log, api)


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def world_with() -> Callable[..., World]:
    return make_world


@pytest.fixture
def object_path() -> Callable[[str, str], str]:
    return lambda collection, key: f"/v1/notes/{NOTE}/context/{quote(collection, safe='')}/{quote(key, safe='')}"


@pytest.fixture
def note() -> UUID:
    return NOTE


@pytest.fixture
def others_note() -> UUID:
    return OTHERS_NOTE


@pytest.fixture
def notes() -> tuple[str, str]:
    """The caller's and another's."""
    return str(NOTE), str(OTHERS_NOTE)


@dataclass
class Served:
    world: World
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    """The demo API behind a real uvicorn on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            world.api,
            http="app.api.protocol:Protocol",
            lifespan="on",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            access_log=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield Served(world, listener.getsockname()[1])
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def lifespan_world() -> Callable[..., tuple[Api, list[str]]]:
    """An API with two lifespans that write down what happens to them; the second may fail to start."""

    def make(fails: Exception | None = None) -> tuple[Api, list[str]]:
        told: list[str] = []

        @asynccontextmanager
        async def part(name: str, error: Exception | None) -> AsyncIterator[None]:
            if error is not None:
                raise error
            told.append(f"{name} up")
            yield
            told.append(f"{name} down")

        api = Api((), None, Gate(), lifespans=(lambda: part("store", None), lambda: part("keys", fails)))
        return api, told

    return make
