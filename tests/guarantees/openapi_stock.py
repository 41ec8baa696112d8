"""What requests made from the OpenAPI document can name: containers, keys, tenants and the like that exist.

A document can say what an id looks like, not which ids there are; that a time lies ahead, only in words. So the test
completes well-formed requests with what this stock has, and anything destroyed by a request was made for it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import requests

from tests.cell import REGION

RECEIVER = "https://receiver.confide.invalid/events"  # RFC 6761: the name resolves nowhere
TERMS = {"document": "dpa", "version": "2026-01"}


class Stock:
    """``keys``: a tenant's by role, and the operator's. Everything is made by the service's own routes."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url = url
        self.keys = keys
        self._http = requests.Session()
        self._made = 0
        self.call("admin", "PATCH", "/v1/tenant", {"ttl_max_seconds": 315360000})

    def call(self, role: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's JSON, None without one. Anything but success is a failure of the test's own."""
        answer = self._http.request(
            method,
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.keys[role]}"} | headers,
            timeout=120,
        )
        assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def name(self, stem: str) -> str:
        """A name that nothing has yet."""
        self._made += 1
        return f"{stem}-{self._made}"

    # ------------------------------------------------------------ containers

    def commit(self, **body: Any) -> Any:
        return self.call("runtime", "POST", "/v1/commit", body)

    @cached_property
    def dialogue(self) -> dict[str, str]:
        """The ids of a session with objects, turns, a label and a subject, of that subject, and of an app."""
        put = [{"collection": "c", "key": key, "json": {"n": 1}, "tags": ["t"]} for key in ("k", "l", "m")]
        made = self.commit(
            external_id="stock",
            create={"subject": "stock-subject", "labels": ["stock"]},
            put=put,
            turns=[{"json": "turn"}] * 3,
            subject={"put": put},
            app={"name": "stock-app", "put": put},
        )
        return {kind: made[kind]["id"] for kind in ("session", "subject", "app")}

    def session(self) -> dict[str, str]:
        """A new session of a new subject: ids and names."""
        own, person = self.name("session"), self.name("person")
        made = self.commit(external_id=own, create={"subject": person}, turns=[{"json": 1}], subject={})
        ids = {"session": made["session"]["id"], "subject_id": made["subject"]["id"]}
        return ids | {"external_id": own, "subject": person}

    def container(self, kind: str) -> str:
        """A new container that may go."""
        if kind == "app":
            return str(self.call("runtime", "POST", "/v1/apps", {"name": self.name("app")})["id"])
        return self.session()["session" if kind == "session" else "subject_id"]

    # ------------------------------------------------------------ the control plane

    def tenant(self) -> tuple[str, str]:
        """A new tenant's id, and the token of its enrolment."""
        made = self.call("operator", "POST", "/v1/tenants", {"name": self.name("tenant")})
        return made["tenant"]["id"], made["enrolment"]["token"]

    def admin(self) -> tuple[str, str]:
        """A new tenant's name, and its first admin's API key."""
        name = self.name("tenant")
        made = self.call("operator", "POST", "/v1/tenants", {"name": name})
        redeem = {"token": made["enrolment"]["token"], "name": "first-admin"}
        return name, self.call("operator", "POST", "/v1/enrolments/redeem", redeem)["secret"]

    @cached_property
    def leaving(self) -> str:
        """The key of an auditor of a tenant that leaves."""
        name, key = self.admin()
        headers = {"Authorization": f"Bearer {key}"}
        auditor = self.call("admin", "POST", "/v1/api-keys", {"name": "auditor", "role": "auditor"}, **headers)
        self.call("admin", "POST", "/v1/privacy/offboarding", {"confirm": name}, **headers)
        return str(auditor["secret"])

    def api_key(self) -> str:
        made = self.call("admin", "POST", "/v1/api-keys", {"name": self.name("key"), "role": "runtime"})
        return str(made["key"]["id"])

    def operator_key(self) -> str:
        made = self.call("operator", "POST", "/v1/operator-keys", {"name": self.name("key")})
        return str(made["key"]["id"])

    def retire_bindings(self) -> None:
        """A tenant has few at a time."""
        for each in self.call("admin", "GET", "/v1/keys/bindings")["bindings"]:
            if each["state"] == "pending":
                self.call("admin", "POST", f"/v1/keys/bindings/{each['id']}/retire")

    @cached_property
    def binding(self) -> str:
        return str(self.call("admin", "POST", "/v1/keys/bindings", {"provider": "vendor"})["id"])

    @cached_property
    def job(self) -> str:
        """A tenant has one move at a time, and other operations' tests may have begun one: it is waited for."""
        key = {"Authorization": f"Bearer {self.keys['admin']}"}
        deadline = time.monotonic() + 120
        while (answer := self._http.post(f"{self.url}/v1/keys/rotate", headers=key, timeout=120)).status_code == 409:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.2)
        assert answer.ok, answer.text
        return str(answer.json()["job"])

    def stream(self) -> str:
        """A stream to nowhere; those before it go, since a tenant may have few."""
        self.drop_streams()
        body = {"url": RECEIVER, "region": REGION}
        return str(self.call("admin", "POST", "/v1/audit/streams", body)["stream"]["id"])

    def drop_streams(self) -> None:
        for stream in self.call("admin", "GET", "/v1/audit/streams")["streams"]:
            self.call("admin", "DELETE", f"/v1/audit/streams/{stream['id']}")

    # ------------------------------------------------------------ privacy and incidents

    @cached_property
    def erasure(self) -> str:
        body = {"session": self.session()["session"]}
        return str(self.call("admin", "POST", "/v1/privacy/erasures", body)["id"])

    def hold(self) -> str:
        body = {"session": self.session()["session"], "reason": "stock"}
        return str(self.call("admin", "POST", "/v1/privacy/holds", body)["id"])

    def consent(self) -> str:
        body = {"scope": "kms", "destination": "us-east-1", "safeguard": "scc", "expires_at": self.ahead()}
        return str(self.call("admin", "POST", "/v1/privacy/consents", body)["id"])

    def incident(self) -> str:
        body = {"kind": "leaked-api-key", "detected_at": self.before()}
        return str(self.call("operator", "POST", "/v1/incidents", body)["id"])

    @cached_property
    def event(self) -> str:
        """An event that is in the tenant's tree."""
        return self._event("auditor", "/v1/audit")

    @cached_property
    def cell_event(self) -> str:
        """One that is in the cell's."""
        return self._event("operator", "/v1/cell/audit")

    def _event(self, role: str, path: str) -> str:
        key = {"Authorization": f"Bearer {self.keys[role]}"}
        deadline = time.monotonic() + 120
        while not self._http.get(f"{self.url}{path}/proof/consistency?from=1", headers=key, timeout=120).ok:
            assert time.monotonic() < deadline, "nothing is sealed"
            time.sleep(0.2)
        return str(self.call(role, "GET", f"{path}/events?order=oldest&limit=1")["events"][0]["id"])

    @staticmethod
    def ahead() -> str:
        return (datetime.now(UTC) + timedelta(days=30)).isoformat()

    @staticmethod
    def before(hours: int = 1) -> str:
        return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()

    # ------------------------------------------------------------ by path

    def id_for(self, operation: str, path: str) -> str:
        """The ``{id}`` of a path: of something that is there, and new where the operation ends or changes it."""
        kind = path.split("/")[2]
        if kind in {"sessions", "subjects", "apps"}:
            ends = operation in {"delete_session", "delete_subject", "delete_app"}
            return self.container(kind[:-1]) if ends else self.dialogue[kind[:-1]]
        makers: dict[str, Any] = {
            "/v1/api-keys": self.api_key,
            "/v1/operator-keys": self.operator_key,
            "/v1/tenants": lambda: self.tenant()[0],
            "/v1/keys/bindings": lambda: self.binding,
            "/v1/jobs": lambda: self.job,
            "/v1/audit/streams": self.stream,
            "/v1/privacy/erasures": lambda: self.erasure,
            "/v1/privacy/holds": self.hold,
            "/v1/privacy/consents": self.consent,
            "/v1/incidents": self.incident,
        }
        return str(UUID(makers[path.partition("/{")[0]]()))
