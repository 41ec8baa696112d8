"""The same through uvicorn, over a socket; and start, stop and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from app.api.dispatch import Api

RUNTIME = {"authorization": "Bearer runtime"}


def test_a_served_route_answers_over_one_connection(served: Any, note: Any) -> None:
    with httpx2.Client(base_url=served.url, headers=RUNTIME, trust_env=False) as client:
        for _ in range(3):
            reply = client.get(f"/v1/notes/{note}")
            assert (reply.status_code, reply.json()["size"]) == (200, 1)
        path = f"/v1/notes/{note}/context/a%2Fb/c%20d"
        assert client.get(path).json() == ["a/b", "c d", "serve"]
        assert client.put(path, content=b"\x00" * 900).content == b"\x00" * 900
        assert client.head(path).content == b""
        assert client.options(path).status_code == 204
        assert client.delete(f"/v1/notes/{note}").status_code == 204
        assert client.get("/v1/stream").text == '{"n":0}\n{"n":1}\n{"n":2}\n'


def test_a_body_that_is_too_large_is_told_so_over_the_wire(served: Any, note: Any) -> None:
    with httpx2.Client(base_url=served.url, headers=RUNTIME, trust_env=False) as client:
        path = f"/v1/notes/{note}/context/a/b"
        assert client.put(path, content=b"x" * 300_000).status_code == 413
        assert client.put(path, content=iter([b"x" * 100_000] * 3)).status_code == 413
        assert client.get(path).status_code == 200


def test_a_client_that_goes_away_does_not_stop_the_work(served: Any) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(b"GET /v1/slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.05)
    deadline = time.monotonic() + 60
    while not served.world.services.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(served.world.services.finished) == 1


def test_a_stream_ends_when_its_client_goes_away(served: Any) -> None:
    served.world.services.chunks = 10**9
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(b"GET /v1/stream HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in client.recv(1000)
    deadline = time.monotonic() + 60
    while not served.world.services.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(served.world.services.finished) == 1


def test_a_stream_that_breaks_is_seen_to_be_incomplete(served: Any) -> None:
    served.world.services.stream_error = ValueError("x")
    with (
        httpx2.Client(base_url=served.url, trust_env=False) as client,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        client.get("/v1/stream")


async def _lifespan(api: Api, messages: list[str]) -> list[str]:
    sent: list[str] = []

    async def receive() -> Any:
        return {"type": messages.pop(0)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await api({"type": "lifespan"}, receive, send)
    return sent


async def test_what_starts_with_the_worker_stops_with_it(lifespan_world: Callable[..., Any]) -> None:
    api, told = lifespan_world()
    sent = await _lifespan(api, ["lifespan.startup", "lifespan.shutdown"])
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert told == ["store up", "keys up", "keys down", "store down"]


async def test_a_failed_start_is_told_and_undone(lifespan_world: Callable[..., Any]) -> None:
    api, told = lifespan_world(RuntimeError("secret"))
    assert await _lifespan(api, ["lifespan.startup"]) == ["lifespan.startup.failed"]
    assert told == ["store up", "store down"]


async def test_a_client_that_leaves_while_it_sends_gets_no_answer(world: Any) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(b"authorization", b"Bearer runtime"), (b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/notes", "headers": raw, "query_string": b""}
    await world.api(scope, receive, send)
    assert sent == []
    assert '"status":499' in world.log.getvalue()


@pytest.mark.parametrize(("method", "problem"), [("GET", "unavailable"), ("POST", "outcome-unknown")])
async def test_a_request_that_outlasts_the_drain_is_told_so(world: Any, method: str, problem: str) -> None:
    """The server cancels what is left; a 500 would say that it failed."""

    async def wait(_authorization: bytes | None, _address: str) -> Any:
        waiting.set()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    waiting = asyncio.Event()
    world.gate.authenticate = wait
    scope = {"type": "http", "method": method, "raw_path": b"/v1/notes", "headers": [], "query_string": b""}
    call = asyncio.create_task(world.api(scope, asyncio.Event().wait, send))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    told = json.loads(b"".join(each.get("body", b"") for each in sent))
    assert sent[0]["status"] == told["status"] == 503
    assert (told["type"].rpartition(":")[2], told["retry_after"]) == (problem, 1)


async def test_a_websocket_is_refused(world: Any) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await world.api({"type": "websocket"}, asyncio.Event().wait, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
