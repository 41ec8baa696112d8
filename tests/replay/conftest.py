"""A small service in memory that speaks load, commit and turns, and can be told to fail, forget and lie."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import msgspec
import pytest
import uvicorn

from app.api import schemas, schemas_turn
from tests.ports import Port

KEY = "cfd_dev_eu_0123456789_secret"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAGE = 5
SHARED = Path(os.environ.get("CONFIDE_SGD") or Path(__file__).parents[3] / "shared" / "data" / "sgd")


class Problem(Exception):
    def __init__(self, status: int, slug: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(slug)
        self.status, self.slug, self.headers = status, slug, headers


class FakeService:
    """The store and the ASGI application over it. Each entry of ``faults[path]`` befalls one request to it:

    a status (refused, nothing done), ``("late", status)`` (done, then answered with the status), ``"cut"`` (connection
    dropped before anything is done), ``"late-cut"`` (done, then dropped), bytes (answered instead), None (served).
    """

    def __init__(self) -> None:
        self.sessions: dict[UUID, SimpleNamespace] = {}
        self.by_external: dict[str, UUID] = {}
        self.answers: dict[str, tuple[bytes, bytes]] = {}
        self.faults: dict[str, deque[object]] = {"/v1/load": deque(), "/v1/commit": deque(), "turns": deque()}
        self.retry_after = b"0"
        self.seconds = 0.0  # that each answer takes
        self.calls: Counter[str] = Counter()
        self.commit_keys: list[str] = []
        self.lie: Callable[[schemas_turn.LoadOut], schemas_turn.LoadOut] = lambda answer: answer

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        headers = dict(scope["headers"])
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await asyncio.sleep(self.seconds)
        what = path if path in self.faults else "turns"
        self.calls[what] += 1
        if what == "/v1/commit":
            self.commit_keys.append(headers[b"idempotency-key"].decode())
        fault = self.faults[what].popleft() if self.faults[what] else None
        status, content, extra = 200, b"", ()
        try:
            if headers.get(b"authorization") != f"Bearer {KEY}".encode():
                raise Problem(401, "unauthenticated")
            if isinstance(fault, int):
                raise Problem(fault, "unavailable", (b"retry-after", self.retry_after))
            if fault != "cut":
                content = fault if isinstance(fault, bytes) else self.serve(what, scope, headers, body)
            if isinstance(fault, tuple):
                raise Problem(fault[1], "outcome-unknown", (b"retry-after", self.retry_after))
        except Problem as problem:
            status, extra = problem.status, problem.headers
            document = {"type": f"urn:confide:problem:{problem.slug}", "detail": "What to do.", "status": status}
            content = msgspec.json.encode(document)
        cut = fault in {"cut", "late-cut"}
        length = b"%d" % (len(content) + cut)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length), *extra]})
        if not cut:
            # An answer that ends before its announced length makes the server drop the connection.
            await send({"type": "http.response.body", "body": content})

    def serve(self, what: str, scope, headers, body: bytes) -> bytes:
        if what == "/v1/load":
            return msgspec.json.encode(self.lie(self.load(msgspec.json.decode(body, type=schemas_turn.LoadIn))))
        if what == "turns":
            return msgspec.json.encode(self.turns(scope))
        key = headers[b"idempotency-key"].decode()
        if key in self.answers:
            first_body, first = self.answers[key]
            if first_body != body:
                raise Problem(422, "idempotency-mismatch")
            return first
        answer = msgspec.json.encode(self.commit(msgspec.json.decode(body, type=schemas_turn.CommitIn)))
        self.answers[key] = body, answer
        return answer

    def find(self, request) -> SimpleNamespace | None:
        assert (request.session is None) != (request.external_id is None)
        return self.sessions.get(request.session or self.by_external.get(request.external_id))

    def load(self, request: schemas_turn.LoadIn) -> schemas_turn.LoadOut:
        session = self.find(request)
        if session is None:
            raise Problem(404, "not-found")
        wanted = request.context or []
        objects = [
            stored
            for stored in reversed(session.objects.values())
            if any(one.collection in {None, stored.collection} for one in wanted)
        ]
        loaded = schemas_turn.LoadedContainer(session.id, session.commit, NOW, NOW, objects)
        return schemas_turn.LoadOut(loaded, session.turns[-request.turns.last :] if request.turns else [])

    def commit(self, request: schemas_turn.CommitIn) -> schemas_turn.CommitOut:
        session = self.find(request)
        created = session is None
        if session is None:
            if request.create is None:
                raise Problem(404, "not-found")
            session = SimpleNamespace(id=uuid4(), commit=0, objects={}, turns=[])
        if request.expected_commit not in {None, session.commit}:
            raise Problem(412, "precondition-failed")
        self.sessions[session.id] = session
        if request.external_id:
            self.by_external[request.external_id] = session.id
        session.commit += 1
        versions = [uuid4() for _ in request.put]
        for put, version in zip(request.put, versions, strict=True):
            session.objects.pop((put.collection, put.key), None)
            session.objects[put.collection, put.key] = schemas.ObjectOut(
                put.collection, put.key, version, "application/json", session.commit, NOW, NOW, put.json
            )
        for gone in request.delete:
            del session.objects[gone.collection, gone.key]
        first = len(session.turns) + 1
        for number, turn in enumerate(request.turns, first):
            session.turns.append(
                schemas.TurnOut(number, uuid4(), "application/json", session.commit, NOW, msgspec.Raw(bytes(turn.json)))
            )
        put_out = [schemas_turn.PutOut(version) for version in versions]
        last = len(session.turns)
        return schemas_turn.CommitOut(
            schemas_turn.Committed(session.id, session.commit, put_out, [], created, first, last)
        )

    def turns(self, scope) -> schemas.TurnsOut:
        session = self.sessions.get(UUID(scope["path"].split("/")[3]))
        if session is None:
            raise Problem(404, "not-found")
        query = parse_qs(scope["query_string"].decode())
        after, page = int(query["after"][0]), min(int(query["limit"][0]), PAGE)
        rest = [turn for turn in session.turns if turn.number > after]
        return schemas.TurnsOut(rest[:page], len(rest) > page)


class Served:
    """The service on a port of its own, in a thread. It can be stopped and started again."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
        self.port = Port()
        self.url = f"http://127.0.0.1:{self.port.number}"

    def start(self) -> None:
        config = uvicorn.Config(
            self.service,
            port=self.port.number,
            log_level="critical",
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.server.started:
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def served(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    running = Served(service)
    running.start()
    monkeypatch.setenv("CONFIDE_URL", running.url)
    monkeypatch.setenv("CONFIDE_RUNTIME_KEY", KEY)
    yield running
    running.stop()
    running.port.free()


def made_dialogue(number: int, exchanges: int) -> dict[str, object]:
    """With several services, one of which ends, empty and odd texts, and all that JSON escapes."""
    turns = []
    for at in range(exchanges):
        state = {
            f"Service_{name}": {
                "active_intent": f"Intent{at}",
                "requested_slots": ["zeit", "ärger"][: at % 3],
                "slot_values": {f"slot{slot}": [f"{number}-{at}", 'quote " \\ \n \u2028 🚲'] for slot in range(at % 4)},
            }
            for name in range(1 + at % 3)
        }
        turns.append({"speaker": "USER", "utterance": f"Frage {number}/{at} €", "state": state})
        turns.append({"speaker": "SYSTEM", "utterance": "" if at == 1 else f"Antwort {number}/{at}", "state": None})
    return {"dialogue_id": f"made_{number}", "services": ["Service_0"], "turns": turns}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Real ones where they lie beside the checkout, otherwise made up."""
    file = SHARED / "dialogues.jsonl.gz"
    if not file.exists():
        return write_lines(tmp_path / "in.jsonl", [made_dialogue(number, 3 + number) for number in range(12)])
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        (tmp_path / "in.jsonl").write_text("".join(islice(lines, 12)), "utf-8")
    return tmp_path / "in.jsonl"


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Enough to be still at it when the service restarts."""
    return write_lines(tmp_path / "long.jsonl", [made_dialogue(number, 20) for number in range(30)])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Eight made dialogues, 1 to 8 exchanges long."""
    return write_lines(tmp_path / "made.jsonl", [made_dialogue(number, number + 1) for number in range(8)])


def write_lines(file: Path, dialogues: list[dict]) -> Path:
    file.write_text("".join(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues), "utf-8")
    return file


@pytest.fixture
def lines_of() -> Callable[[Path, list[dict]], Path]:
    return write_lines
