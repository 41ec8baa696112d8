"""What is there once everything has come back: every container as it reads, and the audit log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import asyncpg
import httpx2
import orjson

from app.audit.verify import verify
from app.services.audit_events import event_of
from tests.programmes.audit_crash import Failed
from tests.programmes.chaos_load import SMALL
from tests.programmes.chaos_record import APP, BLOBS, Final, Finding, Intent, Key, Ref, Value

PATIENCE_SECONDS = 60.0
PAGE = 500


async def ask(client: httpx2.AsyncClient, method: str, path: str, **request: Any) -> httpx2.Response:
    """Until it is answered with something else than patience. Raises Failed."""
    deadline, last = time.monotonic() + PATIENCE_SECONDS, "nothing"
    while time.monotonic() < deadline:
        with suppress(httpx2.HTTPError):
            answer = await client.request(method, path, **request)
            last = f"{answer.status_code} {answer.text[:300]}"
            if answer.status_code in {200, 404}:
                return answer
            if answer.status_code != 503:
                raise Failed(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        await asyncio.sleep(0.2)
    raise Failed(f"{method} {path} isn't answered: {last}")


# ---------------------------------------------------------------- containers


async def finals(client: httpx2.AsyncClient, intents: Iterable[Intent]) -> dict[Ref, Final]:
    """Every container that anybody named, as a runtime reads it."""
    refs = {ref for intent in intents for ref in intent.refs()}
    blobs = {(c.ref, key) for i in intents for unit in i.units for c in unit for key in c.puts if key[0] == BLOBS}
    found: dict[Ref, Final] = {}
    for ref in sorted(refs):
        if ref[0] != "session":
            continue
        select = [{"collection": each} for each in SMALL]
        body = {"external_id": ref[1], "context": select, "subject": True, "app": APP}
        answer = await ask(client, "POST", "/v1/load", json=body)
        if answer.status_code == 404:
            continue
        for kind, part in answer.json().items():
            name = ref if kind == "session" else _named(kind, ref)
            found[name] = Final(name, part["id"], part["commit"], _objects(part), [])
        found[ref].turns = await _turns(client, found[ref].id)
        for key in sorted(key for each, key in blobs if each == ref):
            await _blob(client, found[ref], key)
    return found


def _named(kind: str, session: Ref) -> Ref:
    return ("app", APP) if kind == "app" else ("subject", f"p-{int(session[1].removeprefix('s-')) % 5}")


def _objects(part: dict[str, Any]) -> dict[Key, tuple[str, Value]]:
    return {(each["collection"], each["key"]): (each["version"], each["json"]) for each in part.get("context", ())}


async def _turns(client: httpx2.AsyncClient, session: str) -> list[tuple[int, str]]:
    turns: list[tuple[int, str]] = []
    while True:
        after = turns[-1][0] if turns else 0
        answer = await ask(client, "GET", f"/v1/sessions/{session}/turns", params={"after": after, "limit": PAGE})
        page = answer.json()
        turns += [(turn["number"], turn["json"]["w"]) for turn in page["turns"]]
        if not page.get("more"):
            return turns


async def _blob(client: httpx2.AsyncClient, final: Final, key: Key) -> None:
    answer = await ask(client, "GET", f"/v1/sessions/{final.id}/context/{key[0]}/{key[1]}")
    if answer.status_code == 200:
        word = answer.content.partition(b"\n")[0].decode()
        final.objects[key] = answer.headers["etag"].strip('"'), {"w": word}


# ---------------------------------------------------------------- the log


async def checkpoint(client: httpx2.AsyncClient) -> bytes:
    """A signed one, for the client to keep."""
    return (await ask(client, "GET", "/v1/audit/checkpoint")).content


async def exported(client: httpx2.AsyncClient, kept: bytes) -> tuple[list[dict[str, Any]], list[Finding], str]:
    """The events as an auditor gets them, what the offline verifier finds against the checkpoint that was kept, and
    a line that says how much it was.
    """
    keys = (await ask(client, "GET", "/v1/audit/checkpoints")).json()["keys"]
    known = int(kept.split(b"\n")[1])
    lines = (await ask(client, "GET", "/v1/audit/export", params={"known": known})).content.splitlines()
    report = verify(lines, keys, kept)
    findings = [Finding("export", str(finding)) for finding in report.findings]
    if report.exit_code and not findings:
        findings = [Finding("export", f"the verifier ends with {report.exit_code}")]
    if report.origin.rpartition("/")[2].isdigit():
        findings.append(Finding("export", f"the log had to open a new epoch: {report.origin}"))
    events = [orjson.loads(line) for line in lines if not line.startswith(b"#")]
    return events, findings, f"{report.events} events, a tree of {report.size}, verified from the one kept at {known}"


async def journal(url: str, region: str) -> list[dict[str, Any]]:
    """The events as the database has them, sealed or not."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT * FROM confide_audit.journal")
        return [event_of(row, region) for row in rows]
    finally:
        await connection.close()


async def gaps(url: str) -> list[Finding]:
    """Writers whose numbers don't run from 1 without a gap, in any tenant's log and in the cell's own."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT writer, count(*) AS many, min(seq) AS low, max(seq) AS high, count(DISTINCT seq) AS apart"
            " FROM confide_audit.journal GROUP BY writer, tenant_id"
        )
    finally:
        await connection.close()
    return [
        Finding("sequence", f"writer {row['writer']}: {row['many']} events from {row['low']} to {row['high']}")
        for row in rows
        if (row["low"], row["high"], row["apart"]) != (1, row["many"], row["many"])
    ]
