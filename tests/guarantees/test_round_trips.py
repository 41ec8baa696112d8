"""How many round trips to the database a request takes: the table of docs/decisions/0006, counted by a proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from app.store.pool import RESOLVE
from app.store.statements import READ, WRITE
from tests.cell import Cell, Tenant
from tests.dialogue.calls import commit, done, name
from tests.guarantees.wire import Wire

WORDS = {READ: "read", WRITE: "write", RESOLVE: "look-up"}
PATCH = {"content-type": "application/merge-patch+json"}


class Asking:
    """A tenant with a session, whose subject and app hold something too, and the requests that name it."""

    def __init__(self, watched: Cell, wire: Wire, tenant: Tenant) -> None:
        self.external, self.app, self.session = name(), name(), ""
        self.runtime = tenant.runtime
        self._keyring, self._wire, self._tenant = watched.parts.services.keyring, wire, tenant

    async def fill(self) -> None:
        whole = {"put": [self.value()]}
        body = {"create": {"subject": name()}, "subject": whole, "app": {"name": self.app, **whole}, **whole}
        self.session = (await commit(self.runtime, external_id=self.external, **body))["session"]["id"]
        self._other = (await commit(self.runtime, external_id=name(), create={}))["session"]["id"]

    async def forget(self) -> None:
        """What a worker knows after its start and another session's request: the tenant's keys and nothing else."""
        self._keyring.discard(self._tenant.id, at_once=True)
        done(await self.runtime.get(f"/v1/sessions/{self._other}"))

    async def said(self, asked: Awaitable[httpx2.Response], *statuses: int) -> list[str]:
        """The statements that a request ran. What the worker does beside isn't any of the three."""
        self._wire.drain()
        done(await asked, *statuses)
        return [WORDS[text] for each in self._wire.drain() for text in each.texts if text in WORDS]

    @staticmethod
    def value() -> dict[str, Any]:
        return {"collection": "c", "key": "k", "json": {"v": name()}}

    def object(self) -> str:
        return f"/v1/sessions/{self.session}/context/c/k"


@pytest.fixture
async def asking(watched: Cell, wire: Wire) -> Asking:
    made = Asking(watched, wire, await watched.tenant())
    await made.fill()
    return made


Ask = Callable[[Asking], Awaitable[httpx2.Response]]


def posts(path: str, **body: Any) -> Ask:
    """``body``'s callables are given the session."""

    def ask(at: Asking) -> Awaitable[httpx2.Response]:
        said = {key: value(at) if callable(value) else value for key, value in body.items()}
        return at.runtime.post(path, json=said)

    return ask


EXTERNAL: dict[str, Any] = {"external_id": lambda at: at.external}
ID: dict[str, Any] = {"session": lambda at: at.session}
WHOLE: dict[str, Any] = {"context": [{"collection": "c"}], "turns": {"last": 6}}
CHANGED: dict[str, Any] = {"put": lambda at: [at.value()], "turns": [{"json": 1}]}

REQUESTS: dict[str, tuple[Ask, list[str], list[str]]] = {
    # what a request runs where the worker has met the containers, and where it hasn't
    "load by external id": (posts("/v1/load", **EXTERNAL, **WHOLE), ["read"], ["look-up", "read"]),
    "load by id": (posts("/v1/load", **ID, **WHOLE), ["read"], ["read"]),
    "load with subject": (posts("/v1/load", **ID, subject=True), ["read"], ["look-up", "read"]),
    "load with subject and app": (
        posts("/v1/load", **EXTERNAL, subject=True, app=lambda at: at.app),
        ["read"],
        ["look-up", "look-up", "read"],
    ),
    "read": (lambda at: at.runtime.get(at.object()), ["read"], ["read"]),
    "list": (lambda at: at.runtime.get(f"/v1/sessions/{at.session}/context"), ["read"], ["read"]),
    "commit": (posts("/v1/commit", **ID, **CHANGED), ["write"], ["look-up", "write"]),
    "commit by external id": (posts("/v1/commit", **EXTERNAL, **CHANGED), ["write"], ["look-up", "write"]),
    "commit to all three": (
        posts("/v1/commit", **EXTERNAL, subject={}, app=lambda at: {"name": at.app}),
        ["write"],
        ["look-up"] * 3 + ["write"],
    ),
    "put": (lambda at: at.runtime.put(at.object(), content=b"x"), ["write"], ["look-up", "write"]),
    "append": (
        lambda at: at.runtime.post(f"/v1/sessions/{at.session}/turns", json={"turns": [{"json": 1}]}),
        ["write"],
        ["look-up", "write"],
    ),
    "merge": (
        posts("/v1/commit", **ID, merge=lambda at: [at.value()]),
        ["read", "write"],
        ["look-up", "read", "write"],
    ),
    "patch": (
        lambda at: at.runtime.patch(at.object(), content=b"{}", headers=PATCH),
        ["read", "write"],
        ["look-up", "read", "write"],
    ),
    "commit that makes a session": (
        posts("/v1/commit", external_id=lambda _: name(), create={}, **CHANGED),
        ["look-up", "write"],
        ["look-up", "write"],
    ),
    "commit that makes a session and its subject": (
        posts("/v1/commit", external_id=lambda _: name(), create=lambda _: {"subject": name()}, **CHANGED),
        ["look-up", "look-up", "write"],
        ["look-up", "look-up", "write"],
    ),
}


@pytest.mark.parametrize("request_name", REQUESTS)
async def test_a_request_makes_as_many_round_trips_as_the_record_says(asking: Asking, request_name: str) -> None:
    ask, warm, cold = REQUESTS[request_name]
    await asking.forget()
    assert await asking.said(ask(asking)) == cold
    assert await asking.said(ask(asking)) == warm
    assert await asking.said(ask(asking)) == warm


async def test_a_dialogue_s_first_turn_looks_its_session_up_once(asking: Asking) -> None:
    fresh = name()
    nothing = asking.runtime.post("/v1/load", json={"external_id": fresh, **WHOLE})
    assert await asking.said(nothing, 404) == ["look-up", "read"]
    begun = asking.runtime.post("/v1/commit", json={"external_id": fresh, "create": {}, "turns": [{"json": 1}]})
    assert await asking.said(begun) == ["write"]
    assert await asking.said(asking.runtime.post("/v1/load", json={"external_id": fresh, **WHOLE})) == ["read"]
