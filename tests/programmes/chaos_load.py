"""Many clients at once, each doing at random what a dialogue runtime does, and repeating what it got no answer to."""

from __future__ import annotations

import asyncio
import random
import re
import time
from base64 import b64decode
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count

import orjson

from tests.programmes.chaos_http import Wire
from tests.programmes.chaos_record import (
    APP,
    BLOB_KEYS,
    BLOBS,
    FACTS,
    Attempt,
    Change,
    Intent,
    Key,
    Ref,
    Showing,
    blob,
)

JSON = {"Content-Type": "application/json"}
SESSION_EVERY = 120
"""Intents until the clients turn to another session."""
SESSIONS_AT_ONCE = 6
WEIGHTS = {
    "load": 22, "commit": 20, "get": 8, "put": 8, "swap": 8, "claim": 4, "delete": 5, "patch": 4, "append": 9,
    "page": 5, "pop": 4, "batch": 6, "list": 3, "open": 2, "lookup": 2, "again": 4,
}  # fmt: skip
SLOW_WEIGHTS = {"list_blobs": 10, "get_blob": 4, "put_blob": 3}
BASE64 = re.compile(rb'"base64":"([A-Za-z0-9+/]{16})[A-Za-z0-9+/=]*"')
SMALL = ("state", "notes", "profile")


@dataclass
class World:
    """What all clients share: names, the ids that the service gave to them, and everything that was asked."""

    port: int
    key: str
    random: random.Random
    ids: dict[Ref, str] = field(default_factory=dict)
    intents: list[Intent] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    issuing: bool = True
    """Whether anything new is begun."""
    running: bool = True
    """Whether what has no answer yet is repeated."""
    _words: count[int] = field(default_factory=count)

    def word(self) -> str:
        return f"word-{next(self._words):06d}"

    def session(self) -> str:
        """One of a few that everybody works on now; seldom an older one."""
        newest = len(self.intents) // SESSION_EVERY + SESSIONS_AT_ONCE
        oldest = 0 if self.random.random() < 0.08 else newest - SESSIONS_AT_ONCE
        return f"s-{self.random.randrange(oldest, newest)}"

    def known(self) -> Ref | None:
        """A session that has an id already."""
        for _ in range(5):
            ref = ("session", self.session())
            if ref in self.ids:
                return ref
        return None

    def make(self, op: str, method: str, path: str, document: object = None, **more: object) -> Intent:
        body = b"" if document is None else document if isinstance(document, bytes) else orjson.dumps(document)
        intent = Intent(len(self.intents), op, method, path, body, **more)  # type: ignore[arg-type]
        if document is not None and "Content-Type" not in intent.headers:
            intent.headers |= JSON
        if intent.key is not None:
            intent.headers["Idempotency-Key"] = intent.key
        self.intents.append(intent)
        return intent


def subject_of(session: str) -> str:
    return f"p-{int(session.removeprefix('s-')) % 5}"


class Client:
    """One of many. ``ops``: what it does, by weight."""

    def __init__(self, world: World, seed: int, *, slow: bool = False) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.wire = Wire(world.port, world.key, slow=slow)
        self.weights = SLOW_WEIGHTS if slow else WEIGHTS
        self.seen: dict[tuple[Ref, Key], str] = {}
        self.done: deque[Intent] = deque(maxlen=30)
        self.reached = True
        """Whether there was a service at the last attempt."""
        self._key = f"{seed}-"

    async def run(self) -> None:
        names, weights = list(self.weights), list(self.weights.values())
        while self.world.issuing:
            await asyncio.sleep(self.random.uniform(0, 0.02))
            name = self.random.choices(names, weights)[0]
            if not self.reached:
                await asyncio.sleep(self.random.uniform(0, 0.3))
            if name == "again":
                if self.done:
                    await self.attempt(self.random.choice(self.done))
                continue
            intent = getattr(self, name)()
            if intent is not None:
                await self.carry_out(intent)
        self.wire.close()

    async def carry_out(self, intent: Intent) -> None:
        """Until its outcome is known, where it has an idempotency key; else once."""
        while not await self.attempt(intent) and intent.key is not None and self.world.running:  # noqa: ASYNC110
            await asyncio.sleep(self.random.uniform(0.05, 0.4))

    async def attempt(self, intent: Intent) -> bool:
        """Once. Whether its outcome is known now."""
        attempt = Attempt(f"{self.random.getrandbits(128) | 1:032x}", time.monotonic())
        intent.attempts.append(attempt)
        headers = intent.headers | {"traceparent": f"00-{attempt.trace}-{'1' * 16}-01"}
        got = attempt.got = await self.wire.ask(intent.method, intent.path, headers, intent.body)
        attempt.ended = time.monotonic()
        self.reached = got.sent
        if intent.op == "get_blob" and got.status == 200:
            if got.body != blob(got.body[:11].decode())[: len(got.body)]:
                got.fault = "not what was put"
            got.body = got.body[:100]
        elif intent.op == "list_blobs" and got.status == 200:
            got.body = BASE64.sub(_shortened, got.body)
        self.world.outcomes[_outcome(attempt)] += 1
        if got.status in {200, 201} and got.whole:
            self.world.acknowledged += 1
            self._learn(intent, attempt)
        return got.decided

    def _learn(self, intent: Intent, attempt: Attempt) -> None:
        if intent.key is not None:
            self.done.append(intent)
        if intent.op in {"commit", "load"}:
            for kind, part in attempt.got.document.items():
                if kind in {"session", "subject", "app"}:
                    self.world.ids[next(ref for ref in intent.refs() if ref[0] == kind)] = part["id"]
        etag = attempt.got.headers.get("etag")
        if etag is not None and intent.op in {"get", "put", "swap", "claim"}:
            ref = intent.shows[0].ref if intent.shows else intent.units[0][0].ref
            collection, key = intent.path.split("/")[-2:]
            self.seen[ref, (collection, key)] = etag.strip('"')

    def new_key(self) -> str | None:
        """Most changes carry one."""
        if self.random.random() < 0.25:
            return None
        self._key = f"{self._key.split('-')[0]}-{len(self.world.intents)}"
        return self._key

    # ------------------------------------------------------------ whole turns

    def load(self) -> Intent:
        name, collection = self.world.session(), self.random.choice(SMALL)
        shows = [Showing(("session", name), "context.load", (collection, "profile"), last=5)]
        document: dict[str, object] = {
            "external_id": name,
            "context": [{"collection": each} for each in dict.fromkeys((collection, "profile"))],
            "turns": {"last": 5},
        }
        if self.random.random() < 0.3:
            document |= {"subject": True, "app": APP}
            shows.append(Showing(("subject", subject_of(name)), "context.load", ("profile",)))
            shows.append(Showing(("app", APP), "context.load", ("state",)))
        return self.world.make("load", "POST", "/v1/load", document, shows=shows)

    def commit(self) -> Intent:
        name, roll = self.world.session(), self.random.random()
        document: dict[str, object] = {"external_id": name, "create": {"subject": subject_of(name), "labels": ["l"]}}
        session = Change(("session", name), "context.commit")
        self._puts(session, document)
        session.turns = [self.world.word() for _ in range(self.random.choice((0, 1, 1, 2)))]
        document["turns"] = [{"json": {"w": word}} for word in session.turns]
        if ("notes", "n8") not in session.puts and self.random.random() < 0.2:
            session.deletes = (("notes", "n8"),)
            document["delete"] = [{"collection": "notes", "key": "n8"}]
        unit = [session]
        if roll < 0.25:
            fields = self._fields()
            unit.append(Change(("subject", subject_of(name)), "context.commit", merges={FACTS: fields}))
            document["subject"] = {"merge": [{"collection": FACTS[0], "key": FACTS[1], "json": fields}]}
        if roll < 0.08:
            word = self.world.word()
            unit.append(Change(("app", APP), "context.commit", puts={("state", "k0"): word}))
            document["app"] = {"name": APP, "put": [{"collection": "state", "key": "k0", "json": {"w": word}}]}
        return self.world.make("commit", "POST", "/v1/commit", document, units=[unit], key=self.new_key())

    def _puts(self, session: Change, document: dict[str, object]) -> None:
        keys = self.random.sample(range(4), self.random.choice((0, 1, 2, 3)))
        session.puts = {("state", f"k{n}"): self.world.word() for n in keys}
        if self.random.random() < 0.2:
            session.puts["notes", "n8"] = self.world.word()
        document["put"] = [{"collection": c, "key": k, "json": {"w": w}} for (c, k), w in session.puts.items()]
        if self.random.random() < 0.2:
            session.merges = {FACTS: self._fields()}
            document["merge"] = [{"collection": FACTS[0], "key": FACTS[1], "json": session.merges[FACTS]}]

    def _fields(self) -> dict[str, str]:
        return {f"f{self.random.randrange(5)}": self.world.word()}

    # ------------------------------------------------------------ single objects

    def _place(self, collection: str, key: str) -> tuple[Ref, str] | None:
        ref = self.world.known()
        return (ref, f"/v1/sessions/{self.world.ids[ref]}/context/{collection}/{key}") if ref is not None else None

    def _write(
        self, op: str, at: Key, headers: dict[str, str], change: dict[str, object], *, keyed: bool = False
    ) -> Intent | None:
        place = self._place(*at)
        if place is None:
            return None
        ref, path = place
        word = self.world.word()
        unit = [Change(ref, "context.write", puts={at: word}, **change)]  # type: ignore[arg-type]
        key = self.new_key() or (f"{self._key.split('-')[0]}-{word}" if keyed else None)
        return self.world.make(op, "PUT", path, {"w": word}, headers=JSON | headers, units=[unit], key=key)

    def put(self) -> Intent | None:
        return self._write("put", ("state", f"k{self.random.randrange(4)}"), {}, {})

    def swap(self) -> Intent | None:
        """If the version that was seen is still there."""
        if not self.seen:
            return self.get()
        (ref, at), version = self.random.choice([*self.seen.items()][-4:])
        del self.seen[ref, at]
        word = self.world.word()
        path = f"/v1/sessions/{self.world.ids[ref]}/context/{at[0]}/{at[1]}"
        unit = [Change(ref, "context.write", puts={at: word}, if_version=version)]
        headers = JSON | {"If-Match": f'"{version}"'}
        return self.world.make("swap", "PUT", path, {"w": word}, headers=headers, units=[unit], key=self.new_key())

    def claim(self) -> Intent | None:
        """If nothing is there. Always with a key: to find equal content again isn't the same as to have written it."""
        at = ("notes", f"n{self.random.randrange(3)}")
        return self._write("claim", at, {"If-None-Match": "*"}, {"if_absent": True}, keyed=True)

    def patch(self) -> Intent | None:
        place, fields = self._place(*FACTS), self._fields()
        if place is None:
            return None
        unit = [Change(place[0], "context.commit", merges={FACTS: fields})]
        headers = {"Content-Type": "application/merge-patch+json"}
        return self.world.make("patch", "PATCH", place[1], fields, headers=headers, units=[unit], key=self.new_key())

    def get(self) -> Intent | None:
        place = self._place("state", f"k{self.random.randrange(4)}")
        if place is None:
            return None
        return self.world.make("get", "GET", place[1], shows=[Showing(place[0], "context.read")])

    def delete(self) -> Intent | None:
        at = ("notes", f"n{self.random.randrange(3)}")
        place = self._place(*at)
        if place is None:
            return None
        unit = [Change(place[0], "context.delete", deletes=(at,))]
        return self.world.make("delete", "DELETE", place[1], units=[unit])

    def list(self) -> Intent | None:
        ref = self.world.known()
        if ref is None:
            return None
        path = f"/v1/sessions/{self.world.ids[ref]}/context?collection=state"
        return self.world.make("list", "GET", path, shows=[Showing(ref, "context.read")])

    def batch(self) -> Intent | None:
        """One item a session, so that each event tells which item it is of."""
        refs = list(dict.fromkeys(ref for ref in (self.world.known() for _ in range(5)) if ref is not None))
        items: list[dict[str, object]] = []
        units: list[list[Change]] = []
        shows: list[Showing] = []
        for ref in refs:
            op, at = self.random.choice(("get", "put", "merge", "delete")), ("notes", f"n{self.random.randrange(3)}")
            if op == "merge":
                at = FACTS
            item: dict[str, object] = {"op": op, "session": self.world.ids[ref], "collection": at[0], "key": at[1]}
            if op == "get":
                shows.append(Showing(ref, "context.read"))
            elif op == "put":
                word = self.world.word()
                item["json"] = {"w": word}
                units.append([Change(ref, "context.write", puts={at: word})])
            elif op == "merge":
                item["json"] = self._fields()
                units.append([Change(ref, "context.commit", merges={at: dict(item["json"])})])  # type: ignore[call-overload]
            else:
                units.append([Change(ref, "context.delete", deletes=(at,))])
            items.append(item)
        if not items:
            return None
        return self.world.make("batch", "POST", "/v1/batch", {"requests": items}, units=units, shows=shows)

    # ------------------------------------------------------------ large objects, slowly

    def _blobs(self) -> tuple[Ref, str] | None:
        ref = ("session", f"s-{self.random.randrange(2)}")
        return (ref, f"/v1/sessions/{self.world.ids[ref]}/context") if ref in self.world.ids else None

    def put_blob(self) -> Intent | None:
        place, at, word = self._blobs(), (BLOBS, self.random.choice(BLOB_KEYS)), self.world.word()
        if place is None:
            return None
        unit = [Change(place[0], "context.write", puts={at: word})]
        more: dict[str, object] = {"headers": {"Content-Type": "text/plain"}, "units": [unit], "key": self.new_key()}
        return self.world.make("put_blob", "PUT", f"{place[1]}/{at[0]}/{at[1]}", blob(word), **more)

    def get_blob(self) -> Intent | None:
        place = self._blobs()
        if place is None:
            return None
        path = f"{place[1]}/{BLOBS}/{self.random.choice(BLOB_KEYS)}"
        return self.world.make("get_blob", "GET", path, shows=[Showing(place[0], "context.read")])

    def list_blobs(self) -> Intent | None:
        place = self._blobs()
        if place is None:
            return None
        path = f"{place[1]}?collection={BLOBS}"
        return self.world.make("list_blobs", "GET", path, shows=[Showing(place[0], "context.read")])

    # ------------------------------------------------------------ turns

    def append(self) -> Intent | None:
        ref = self.world.known()
        if ref is None:
            return None
        words = [self.world.word() for _ in range(self.random.choice((1, 1, 2)))]
        unit = [Change(ref, "turns.append", turns=words)]
        document = {"turns": [{"json": {"w": word}} for word in words]}
        path = f"/v1/sessions/{self.world.ids[ref]}/turns"
        return self.world.make("append", "POST", path, document, units=[unit], key=self.new_key())

    def page(self) -> Intent | None:
        ref = self.world.known()
        if ref is None:
            return None
        query = self.random.choice(("after=0&limit=20", "last=10", f"before={self.random.randrange(2, 40)}&limit=5"))
        path = f"/v1/sessions/{self.world.ids[ref]}/turns?{query}"
        return self.world.make("page", "GET", path, shows=[Showing(ref, "turns.read")])

    def pop(self) -> Intent | None:
        ref, many = self.world.known(), self.random.choice((1, 1, 2))
        if ref is None:
            return None
        path = f"/v1/sessions/{self.world.ids[ref]}/turns/pop"
        unit = [Change(ref, "turns.pop", pop=many)]
        return self.world.make("pop", "POST", path, {"count": many}, units=[unit], shows=[Showing(ref, "turns.pop")])

    # ------------------------------------------------------------ records

    def open(self) -> Intent:
        name = self.world.session()
        unit = [Change(("session", name), "session.create")]
        document = {"external_id": name, "subject": subject_of(name)}
        return self.world.make("open", "POST", "/v1/sessions", document, units=[unit])

    def lookup(self) -> Intent:
        name = self.world.session()
        shows = [Showing(("session", name), "session.lookup")]
        return self.world.make("lookup", "POST", "/v1/sessions/lookup", {"external_id": name}, shows=shows)


def _shortened(found: re.Match[bytes]) -> bytes:
    """The word of a large object instead of its bytes, for keeping."""
    return b'"json":' + orjson.dumps({"w": b64decode(found[1]).decode().rstrip()})


def _outcome(attempt: Attempt) -> str:
    got = attempt.got
    if got.status is None:
        return "no answer" if got.sent else "no connection"
    if not got.whole:
        return "cut in the body"
    return got.problem.rpartition(":")[2] or str(got.status)
