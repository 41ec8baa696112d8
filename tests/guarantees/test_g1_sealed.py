"""G1: what clients say and name, well and ill, is in no file of a whole served cell, in no log, metric or error."""

from __future__ import annotations

import base64
import gzip
import re
import secrets
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.setup.test_serve import Service

JSON = {"content-type": "application/json"}
LARGER_THAN_A_BODY_MAY_BE = 40 * 1024 * 1024


class Marker:
    """Words that nothing else holds. All begin alike, so that one search finds any, also one that was cut short."""

    def __init__(self, lead: str = "Zq") -> None:
        self.start = f"{lead}{secrets.token_hex(8)}"
        self.places: list[str] = []
        self._forms = forms(self.start)

    def __call__(self, place: str) -> str:
        """A word for this place only, and not seen in any other."""
        word = f"{self.start}{place.title().replace(' ', '')}{len(self.places)}"
        assert word.isalnum()
        self.places.append(word)
        return word

    def found_in(self, content: bytes) -> list[str]:
        """The forms it has there, with what follows the first, which tells the place that it was planted in."""
        hits = ((form, content.find(form_of)) for form, form_of in self._forms)
        return [f"{form}: {content[at : at + 160]!r}" for form, at in hits if at >= 0]


def forms(word: str) -> list[tuple[str, bytes]]:
    """How a text may look in a file. Base64 without the characters that its neighbours have a part in."""
    raw = word.encode()
    percent = "".join(f"%{byte:02x}" for byte in raw)
    escaped = "".join(f"\\u{byte:04x}" for byte in raw)
    shifts = [base64.b64encode(b"." * offset + raw)[4 if offset else 0 : -4] for offset in range(3)]
    return [
        ("raw", raw),
        ("lower case", raw.lower()),
        ("upper case", raw.upper()),
        ("UTF-16LE", word.encode("utf-16-le")),
        ("UTF-16BE", word.encode("utf-16-be")),
        ("UTF-32LE", word.encode("utf-32-le")),
        *((f"base64 at {offset}", text) for offset, text in enumerate(shifts)),
        ("hex", raw.hex().encode()),
        ("HEX", raw.hex().upper().encode()),
        ("escaped", escaped.encode()),
        ("ESCAPED", "".join(f"\\u{byte:04X}" for byte in raw).encode()),
        ("percent", percent.encode()),
        ("PERCENT", percent.upper().encode()),
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def done(answer: httpx2.Response) -> Any:
    assert answer.status_code in {200, 201, 202}, (answer.status_code, answer.text)
    return answer.json()


def use(runtime: httpx2.Client, admin: httpx2.Client, word: Marker) -> None:
    """Every place where a client puts something of its own, through every way in."""
    call, person, app = word("external id"), word("subject"), word("app")
    collection, key, tag = word("collection"), word("key"), word("tag")
    whole: dict[str, Any] = {
        "external_id": call,
        "create": {"subject": person, "labels": [word("label")]},
        "put": [
            {"collection": collection, "key": key, "json": {word("member"): word("inline")}, "tags": [tag]},
            {"collection": word("second collection"), "key": key, "base64": base64_of(word("base64 body"))},
            {"collection": "escaped", "key": "k", "json": [word("repeated") + " "] * 300},
        ],
        "merge": [{"collection": word("merged collection"), "key": word("merged key"), "json": {"a": word("merge")}}],
        "turns": [
            {"json": {"role": "user", "text": word("turn")}},
            {"base64": base64_of(word("bytes of a turn")), "content_type": "text/plain"},
        ],
        "subject": {"put": [{"collection": word("of a subject"), "key": word("key"), "json": word("about a subject")}]},
        "app": {"name": app, "put": [{"collection": word("of an app"), "key": word("key"), "json": word("shared")}]},
    }
    idempotent = {"idempotency-key": word("idempotency key")}
    made = done(runtime.post("/v1/commit", json=whole, headers=idempotent))
    assert done(runtime.post("/v1/commit", json=whole, headers=idempotent)) == made
    session = f"/v1/sessions/{made['session']['id']}"
    raw = f"{session}/context/{word('raw collection')}/{word('raw key')}"
    put = {"content-type": "text/plain", "idempotency-key": word("second idempotency key")}
    done(runtime.put(raw, params={"tag": word("raw tag")}, content=word("raw body").encode(), headers=put))
    assert runtime.get(raw).status_code == 200
    done(runtime.put(f"{session}/context/large/k", content=word("large body").encode() * 2000))
    done(runtime.patch(f"{session}/context/p/k", json={"x": word("patch")}))
    done(runtime.post(f"{session}/turns", json={"turns": [{"json": word("appended turn")}]}))
    branch = {"turn": 2, "external_id": word("branch"), "labels": [word("branch label")]}
    done(runtime.post(f"{session}/branch", json=branch))
    done(runtime.patch(session, json={"labels": [word("later label")]}))
    batch = {"op": "put", "session": made["session"]["id"], "collection": word("batch"), "key": word("batch key")}
    done(runtime.post("/v1/batch", json={"requests": [batch | {"json": word("batch body")}]}))
    for name, value in (("external_id", call), ("subject", person), ("label", whole["create"]["labels"][0])):
        done(runtime.post("/v1/sessions/lookup", json={name: value}))
    selected = {"external_id": call, "context": [{"collection": collection, "key": key}, {"tag": tag}]}
    loaded = done(runtime.post("/v1/load", json=selected | {"turns": {"last": 9}, "subject": True, "app": app}))
    assert word.start in str(loaded)
    done(runtime.get(f"{session}/context", params={"collection": collection, "tag": tag}))
    erased = word("erased session")
    done(runtime.post("/v1/sessions", json={"external_id": erased, "subject": word("other subject")}))
    done(runtime.post("/v1/commit", json={"external_id": erased, "turns": [{"json": word("erased turn")}]}))
    hold = done(admin.post("/v1/privacy/holds", json={"external_id": call, "reason": word("reason of a hold")}))
    assert word.start in hold["reason"]
    assert word.start in admin.get("/v1/privacy/holds").text
    erasure = done(admin.post("/v1/privacy/erasures", json={"external_id": erased}))
    blocked = done(admin.post("/v1/privacy/erasures", json={"subject": person}))
    wait(lambda: done(admin.get(f"/v1/privacy/erasures/{erasure['id']}"))["state"] == "done")
    wait(lambda: done(admin.get(f"/v1/privacy/erasures/{blocked['id']}"))["state"] == "blocked")


def fail(runtime: httpx2.Client, admin: httpx2.Client, word: Marker) -> list[httpx2.Response]:
    """Requests that are refused, each for a reason of its own, and the same with no key at all."""
    session = done(runtime.post("/v1/sessions", json={"external_id": word("where it fails")}))["id"]
    kept = f"/v1/sessions/{session}/context/{word('kept')}/{word('kept')}"
    done(runtime.put(kept, content=word("kept").encode(), headers={"content-type": "text/plain"}))
    repeated = {"idempotency-key": word("repeated idempotency key")}
    done(runtime.post("/v1/commit", json={"session": session, "turns": [{"json": 1}]}, headers=repeated))
    long = {"collection": word("too long") * 200, "key": "k", "json": 1}
    odd = {"collection": "c", "key": "k", "json": 1, "content_type": word("no media type")}
    refusals: list[tuple[int, str, str, dict[str, Any]]] = [
        (422, "POST", "/v1/commit", {"json": {word("unknown field"): word("its value")}}),
        (422, "POST", "/v1/commit", {"json": {"session": session, "put": [long]}}),
        (422, "POST", "/v1/commit", {"json": {"session": session, "put": [odd]}}),
        (422, "POST", "/v1/commit", {"json": {"session": word("no id")}}),
        (422, "POST", "/v1/sessions", {"json": {"external_id": word("control character") + "\x00"}}),
        (400, "POST", "/v1/commit", {"content": f'{{"turns": [{word("bad json")}'.encode(), "headers": JSON}),
        (400, "POST", "/v1/commit", {"content": word("no utf 8").encode() + b'"\xff', "headers": JSON}),
        (404, "GET", f"/v1/{word('no route')}/{word('no route')}", {}),
        (404, "GET", f"/v1/sessions/{session}/context/{word('no collection')}/{word('no key')}", {}),
        (404, "GET", f"/v1/sessions/{word('no id in a path')}", {}),
        (404, "POST", "/v1/load", {"json": {"external_id": word("no session")}}),
        (412, "PUT", kept, {"content": word("precondition").encode(), "headers": {"if-match": f'"{session}"'}}),
        (412, "PUT", kept, {"content": b"x", "headers": {"if-match": f'"{word("no version")}"'}}),
        (415, "POST", "/v1/commit", {"content": word("odd type").encode(), "headers": {"content-type": "text/x"}}),
        (413, "PUT", kept, {"content": word("too large").encode() + b" " * LARGER_THAN_A_BODY_MAY_BE}),
        (
            422,
            "POST",
            "/v1/commit",
            {"json": {"session": session, "put": [{"json": word("other")}]}, "headers": repeated},
        ),
        (400, "GET", f"/v1/sessions/{session}/context", {"params": {"limit": word("limit")}}),
        (400, "GET", f"/v1/sessions/{session}/context", {"params": {word("query"): word("query")}}),
        (400, "GET", kept, {"headers": {"confide-purpose": word("purpose"), "user-agent": word("user agent")}}),
        (501, word("method").upper(), "/v1/commit", {}),
        (404, "POST", "/v1/privacy/holds", {"json": {"subject": word("held nobody"), "reason": word("reason")}}),
        (422, "POST", "/v1/privacy/holds", {"json": {"external_id": "x", "reason": word("long reason") * 200}}),
        (404, "POST", "/v1/privacy/erasures", {"json": {"external_id": word("erased nobody")}}),
    ]
    answers: list[httpx2.Response] = []
    seen: set[int] = set()
    with httpx2.Client(base_url=runtime.base_url, timeout=120) as nobody:
        for status, method, path, rest in refusals:
            client = admin if path.startswith("/v1/privacy") else runtime
            answer = client.request(method, path, **rest)
            assert answer.status_code == status, (status, method, path, answer.text)
            seen.add(answer.status_code)
            answers += [answer]
            if answer.status_code != 413:
                answers.append(nobody.request(method, path, **rest))
        answers.append(nobody.get("/readyz", headers={"authorization": f"Bearer {word('no key')}"}))
        answers.append(nobody.get("/v1/api-keys", headers={"authorization": f"Bearer {word('no key')}"}))
    assert {400, 404, 412, 413, 415, 422} <= seen, seen
    return answers


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


async def rows(state: Path) -> list[tuple[str, bytes]]:
    """Every row of every table as PostgreSQL unpacks it; and afterwards everything is in the files too."""
    port = int((state / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[3])
    account: dict[str, Any] = {
        "user": "postgres",
        "password": (state / "postgres" / "superuser.password").read_text().strip(),
    }
    found: list[tuple[str, bytes]] = []
    connection = await asyncpg.connect(host="127.0.0.1", port=port, database="postgres", **account)
    databases = await connection.fetch("SELECT datname FROM pg_database WHERE datallowconn")
    await connection.close()
    for (database,) in databases:
        connection = await asyncpg.connect(host="127.0.0.1", port=port, database=database, **account)
        tables = await connection.fetch(
            "SELECT format('%I.%I', nspname, relname) AS name FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE relkind IN ('r', 'm') AND nspname <> 'information_schema'"
            " AND (nspname !~ '^pg_' OR relname LIKE 'pg_statistic%')"
        )
        await connection.execute("ANALYZE")
        for (table,) in tables:
            text = await connection.fetch(f"SELECT t::text FROM {table} t")
            found.append((f"{database} {table}", "\n".join(row[0] for row in text).encode()))
        await connection.execute("CHECKPOINT")
        await connection.close()
    return found


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's bytes, and what is in it where it is an archive."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        content, name = path.read_bytes(), str(path.relative_to(folder))
        yield name, content
        with suppress(OSError, EOFError, zlib.error):
            if content[:2] == b"\x1f\x8b":
                yield f"{name} unpacked", gzip.decompress(content)
        if content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{name} {each}", archive.read(each)) for each in archive.namelist())


async def test_g1_nothing_that_a_client_says_or_names_is_in_a_file_a_log_a_metric_or_an_error(
    service: Service, tmp_path: Path
) -> None:
    """Also not what it said wrongly. A key's name, which is in clear by design, is found by the same search."""
    word, control = Marker(), Marker("key")
    service.start()
    env = service.env()
    clients = [
        httpx2.Client(
            base_url=env["CONFIDE_URL"], headers={"authorization": f"Bearer {env[f'CONFIDE_{role}_KEY']}"}, timeout=120
        )
        for role in ("RUNTIME", "ADMIN", "AUDITOR")
    ]
    runtime, admin, auditor = clients
    with runtime, admin, auditor:
        for number in range(5):  # in the write-ahead log one may be cut in two where a page ends
            done(admin.post("/v1/api-keys", json={"name": f"{control.start}-{number}", "role": "runtime"}))
        use(runtime, admin, word)
        answers = fail(runtime, admin, word)
        events = auditor.get("/v1/audit/events", params={"limit": 200})
        metrics = runtime.get("/metrics")
    assert "context.commit" in events.text
    assert "confide_" in metrics.text
    unpacked = await rows(service.state)
    assert service.stop() == 0
    assert len(word.places) > 70
    assert len(set(word.places)) == len(word.places)

    leaks: list[str] = []
    for number, answer in enumerate(answers):
        told = answer.content + repr(answer.headers).encode()
        leaks += [f"refusal {number} {answer.status_code}: {hit}" for hit in word.found_in(told)]
    leaks += [f"metrics: {hit}" for hit in word.found_in(metrics.content)]
    leaks += [f"audit log: {hit}" for hit in word.found_in(events.content)]
    searched: set[str] = set()
    in_clear: set[tuple[str, str]] = set()
    for name, content in [*unpacked, *files_below(tmp_path)]:
        searched.add(name)
        leaks += [f"{name}: {hit}" for hit in [*word.found_in(name.encode()), *word.found_in(content)]]
        in_clear |= {(re.sub(r"\d+$", "", name), hit.split(":")[0]) for hit in control.found_in(content)}
    assert leaks == []
    assert {"out", "log", "state/demo.env", "state/postgres/postgres.log"} <= searched
    assert any(name.startswith("state/postgres/data/base/") and form == "raw" for name, form in in_clear), in_clear
    assert any(name.startswith("state/postgres/data/pg_wal/") and form == "raw" for name, form in in_clear), in_clear


@pytest.mark.parametrize("lead", range(4))
def test_g1_the_search_finds_a_word_in_every_form_and_at_every_offset(lead: int) -> None:
    word = Marker()
    planted = "x" * lead + word("anywhere") + "y" * 40
    raw = planted.encode()
    for content in (
        raw,
        planted.encode("utf-16-le"),
        planted.encode("utf-16-be"),
        base64.b64encode(raw),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        "".join(f"\\u{byte:04x}" for byte in raw).encode(),
        "".join(f"%{byte:02X}" for byte in raw).encode(),
        urllib.parse.quote(planted).encode(),
    ):
        assert word.found_in(b"\x00" * 7 + content)
    assert not word.found_in(Marker().start.encode())
