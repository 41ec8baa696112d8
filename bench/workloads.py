"""What the load generator's users ask for. The same requests go to Confide and to the plain service.

A job names its workload, and a file of targets: API keys, and sessions with the key that each belongs to.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

COLLECTION = "facts"
POOL_BYTES = 16 << 20
"""Requests are drawn from a pool built beforehand; it is at most so large."""

User = Generator[bytes, Any, None]


class Targets:
    """Sessions to ask for. ``objects``: how many each holds, under the keys 0, 1, 2, …"""

    def __init__(self, job: dict[str, Any]) -> None:
        stored = json.loads(Path(job["targets"]).read_text())
        self.keys: Sequence[str] = stored["keys"]
        self.sessions: Sequence[tuple[int, str]] = [tuple(each) for each in stored["sessions"]]
        self.objects: int = stored["objects"]
        self.size: int = job.get("size", 4096)
        self.random = random.Random(job.get("seed", 1))
        if job.get("tenant") is not None:
            self.sessions = [each for each in self.sessions if each[0] == job["tenant"]]

    def head(self, verb: str, path: str, key: int, *more: str) -> str:
        lines = (f"{verb} {path} HTTP/1.1", "Host: bench", f"Authorization: Bearer {self.keys[key]}", *more)
        return "\r\n".join(lines) + "\r\n"

    def object_path(self, session: str, number: int) -> str:
        return f"/v1/sessions/{session}/context/{COLLECTION}/{number}"

    def draw(self) -> tuple[int, str, int]:
        key, session = self.random.choice(self.sessions)
        return key, session, self.random.randrange(self.objects)


def json_bytes(size: int, source: random.Random) -> bytes:
    """A JSON object of exactly ``size`` bytes, words and numbers, as context is."""
    words = ["city", "departure", "restaurant", "party", "evening", "balcony", "vegetarian", "two", "window", "Zürich"]
    members: dict[str, Any] = {}
    length = len('{"pad": ""}')
    while length < size - 400:
        name, value = f"slot_{len(members)}", [source.choice(words) for _ in range(6)] + [source.randrange(10**9)]
        members[name] = value
        length += len(json.dumps({name: value}, ensure_ascii=False).encode())  # braces for the comma and the space
    members["pad"] = ""
    members["pad"] = "x" * (size - len(json.dumps(members, ensure_ascii=False).encode()))
    return json.dumps(members, ensure_ascii=False).encode()


def _bodies(targets: Targets, most: int = 64) -> list[bytes]:
    count = max(1, min(most, POOL_BYTES // targets.size // 4))
    return [json_bytes(targets.size, targets.random) for _ in range(count)]


def _from_pool(pool: Sequence[bytes], source: random.Random) -> User:
    pick, size = source.random, len(pool)
    while True:
        yield pool[int(pick() * size)]


def put(targets: Targets) -> Callable[[int], User]:
    bodies = _bodies(targets)

    def request() -> bytes:
        key, session, number = targets.draw()
        body = targets.random.choice(bodies)
        path = targets.object_path(session, number)
        head = targets.head("PUT", path, key, "Content-Type: application/json", f"Content-Length: {len(body)}")
        return head.encode() + b"\r\n" + body

    pool = [request() for _ in range(max(8, min(4000, POOL_BYTES // targets.size)))]
    return lambda _: _from_pool(pool, targets.random)


def get(targets: Targets) -> Callable[[int], User]:
    def request() -> bytes:
        key, session, number = targets.draw()
        return targets.head("GET", targets.object_path(session, number), key).encode() + b"\r\n"

    pool = [request() for _ in range(20_000)]
    return lambda _: _from_pool(pool, targets.random)


def conditional(targets: Targets) -> Callable[[int], User]:
    """Each user has objects of its own and replaces the version that it wrote last."""
    bodies = _bodies(targets)
    sessions = list(targets.sessions)
    targets.random.shuffle(sessions)

    def user(number: int) -> User:
        key, session = sessions[number % len(sessions)]
        own = [(targets.object_path(session, each), [b""]) for each in range(targets.objects)]
        while True:
            for path, version in own:
                body = targets.random.choice(bodies)
                more = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
                if version[0]:
                    more.append(f"If-Match: {version[0].decode()}")
                answer = yield targets.head("PUT", path, key, *more).encode() + b"\r\n" + body
                version[0] = _header(answer.head, b"etag: ")

    return user


def _header(head: bytes, name: bytes) -> bytes:
    start = head.lower().find(name) + len(name)
    end = head.find(b"\r", start)
    return head[start : end if end > 0 else len(head)]


def turn(targets: Targets) -> Callable[[int], User]:
    """One load and one commit for each exchange of recorded dialogues: two requests a turn."""
    played = list(_exchanges())
    per_user = 8

    def user(number: int) -> User:
        own = targets.sessions[number * per_user : (number + 1) * per_user] or targets.sessions[:per_user]
        commits: dict[str, int] = {}
        at = number * 97
        while True:
            for key, session in own:
                for changes in played[at % len(played)]:
                    ask = {"session": session, "context": [{"collection": "state"}], "turns": {"last": 6}}
                    answer = yield _post(targets, "/v1/load", key, ask)
                    known = commits.get(session)
                    if known is None:
                        known = json.loads(answer.body)["session"]["commit"]
                    change = {"session": session, "expected_commit": known, **changes}
                    yield _post(targets, "/v1/commit", key, change)
                    commits[session] = known + 1
                at += 1

    return user


def load(targets: Targets) -> Callable[[int], User]:
    """Only the load of a turn."""
    pool = [
        _post(
            targets, "/v1/load", key, {"session": session, "context": [{"collection": "state"}], "turns": {"last": 6}}
        )
        for key, session in targets.sessions[:4000]
    ]
    return lambda _: _from_pool(pool, targets.random)


def _post(targets: Targets, path: str, key: int, body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    head = targets.head("POST", path, key, "Content-Type: application/json", f"Content-Length: {len(text)}")
    return head.encode() + b"\r\n" + text


def _exchanges() -> Iterator[list[dict[str, Any]]]:
    """The changes of each exchange, for each dialogue."""
    from app.cli.replay_dialogues import read_dialogues  # noqa: PLC0415  only this workload reads dialogues

    for dialogue in read_dialogues(sgd_path(), 400):
        yield [
            {
                "put": [
                    {"collection": "state", "key": service, "json": json.loads(state)}
                    for service, state in exchange.state.items()
                ],
                "turns": [{"json": json.loads(said)} for said in exchange.turns],
            }
            for exchange in dialogue.exchanges
        ]


def sgd_path() -> str:
    """CONFIDE_SGD, else beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "sgd" / "dialogues.jsonl.gz"
    return os.environ.get("CONFIDE_SGD", str(beside))


MAKERS: dict[str, Callable[[Targets], Callable[[int], User]]] = {
    "put": put,
    "get": get,
    "conditional": conditional,
    "turn": turn,
    "load": load,
}


def users(job: dict[str, Any]) -> list[User]:
    """Closed loop: one for each connection. Open loop: one for each stream."""
    if job.get("streams"):
        return [_stream(job | each) for each in job["streams"]]
    make = MAKERS[job["workload"]](Targets(job))
    return [make(number) for number in range(job["connections"])]


def _stream(job: dict[str, Any]) -> User:
    return MAKERS[job["workload"]](Targets(job))(0)
