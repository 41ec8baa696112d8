"""What an auditor reads through the REST API, and what he verifies of it."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import orjson

from app.audit import verify as verifier
from app.services.audit_export import Wanted
from app.services.auditing import NO_TRACE
from tests.audit.conftest import a_turn, events, sealed, verifier_keys
from tests.audit.journal_rows import superuser
from tests.cell import Cell, Tenant


async def test_g4_an_export_through_the_api_verifies_offline(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    for number in range(5):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    first = await tenant.auditor.get("/v1/audit/checkpoint")
    assert first.status_code == 200, first.text
    (tmp_path / "last").write_bytes(first.content)
    kept = int(first.text.split("\n")[1])
    await a_turn(tenant, 1, "again")
    export = await tenant.auditor.get("/v1/audit/export", params={"known": kept})
    assert export.status_code == 200, export.text
    (tmp_path / "export").write_bytes(export.content)
    keys = await verifier_keys(tenant)
    command = [sys.executable, verifier.__file__, str(tmp_path / "export"), "--key", keys[0]]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--checkpoint", str(tmp_path / "last")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("VERIFIED")


async def test_g4_the_pages_commands_verify_without_our_tool(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    await a_turn(tenant)
    await sealed(cell, tenant)
    export = await tenant.auditor.get("/v1/audit/export")
    (tmp_path / "EXPORT").write_bytes(export.content)
    page = (Path(__file__).parents[2] / "docs" / "auditors.md").read_text()
    commands = page.split("## Verify without our tool")[1].split("```sh\n")[1].split("```")[0]
    environment = os.environ | {"VKEY": (await verifier_keys(tenant))[0]}
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-ec", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said, leaf, stored = done.stdout.split("\n")[:3]
    assert said == "Signature Verified Successfully", done.stdout + done.stderr
    assert leaf == stored


async def test_an_export_resumes_where_it_broke_off(cell: Cell, tenant: Tenant) -> None:
    for number in range(4):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    whole = (await tenant.auditor.get("/v1/audit/export")).content.splitlines()
    middle = len([line for line in whole if line.startswith(b"{")]) // 2
    rest = await tenant.auditor.get("/v1/audit/export", params={"first": middle})
    report = verifier.verify(rest.content.splitlines(), await verifier_keys(tenant))
    assert (report.exit_code, report.first) == (0, middle)
    events_of_whole = [line for line in whole if line.startswith(b"{")]
    events_of_rest = [line for line in rest.content.splitlines() if line.startswith(b"{")]
    assert events_of_rest[: len(events_of_whole) - middle] == events_of_whole[middle:]


async def test_a_stream_that_breaks_off_anywhere_is_resumed_and_is_not_taken_for_an_export(
    cell: Cell, tenant: Tenant
) -> None:
    for number in range(4):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    keys = await verifier_keys(tenant)
    services = cell.parts.services
    caller = await services.access.authenticate(f"Bearer {tenant.keys['auditor']}".encode(), "127.0.0.1")
    chunks = await services.audit.exports.open(caller, Wanted("ndjson"), NO_TRACE)
    begun = await anext(chunks)
    await chunks.aclose()  # the reader went away
    async with superuser(cell.url) as admin:
        assert await admin.fetchval("SELECT count(*) FROM confide_audit.exported") == 0
    for cut in random.Random(4).sample(range(len(begun)), 5):
        lines = begun[:cut].split(b"\n")[:-1]
        if lines:
            assert verifier.verify(lines, keys).exit_code == 3
        have = [line for line in lines if line.startswith(b"{")]
        rest = await tenant.auditor.get("/v1/audit/export", params={"first": len(have)})
        report = verifier.verify(rest.content.splitlines(), keys)
        assert (report.exit_code, report.first, report.end) == (0, len(have), report.size)
        joined = have + [line for line in rest.content.splitlines() if line.startswith(b"{")]
        assert len(joined) == report.size
        assert joined[: begun.count(b"\n{")] == [line for line in begun.splitlines() if line.startswith(b"{")]
    async with superuser(cell.url) as admin:
        assert await admin.fetchval("SELECT count(*) FROM confide_audit.exported") == 5


async def test_an_export_of_a_period_holds_every_event_of_it(cell: Cell, tenant: Tenant) -> None:
    for number in range(4):
        await a_turn(tenant, number)
    everything = await events(tenant, order="oldest")
    since, until = everything[2]["time"], everything[-2]["time"]
    export = await tenant.auditor.get("/v1/audit/export", params={"from": since, "to": until})
    exported = {orjson.loads(line)["id"] for line in export.content.splitlines() if line.startswith(b"{")}
    assert {event["id"] for event in everything if since <= event["time"] < until} <= exported
    assert verifier.verify(export.content.splitlines(), await verifier_keys(tenant)).exit_code == 0


async def test_an_ocsf_export_carries_the_leaf_entries(cell: Cell, tenant: Tenant) -> None:
    await a_turn(tenant)
    plain = [line for line in (await tenant.auditor.get("/v1/audit/export")).content.splitlines() if line[:1] == b"{"]
    ocsf = (await tenant.auditor.get("/v1/audit/export", params={"format": "ocsf"})).content.splitlines()
    raw = [orjson.loads(line)["raw_data"].encode() for line in ocsf]
    assert raw[: len(plain)] == plain
    assert {orjson.loads(line)["class_uid"] for line in ocsf} == {6005}


async def test_g3_reading_and_exporting_the_log_are_events_of_it(cell: Cell, tenant: Tenant) -> None:
    await sealed(cell, tenant)
    await tenant.auditor.get("/v1/audit/export")
    await tenant.auditor.get("/v1/audit/checkpoint")
    assert len(await events(tenant, action="audit.export")) == 1
    assert any(event["detail"].get("what") == "checkpoint" for event in await events(tenant, action="audit.query"))


async def test_g11_an_auditor_reads_the_log_and_no_context(tenant: Tenant) -> None:
    assert (await tenant.auditor.get("/v1/audit/summary")).status_code == 200
    refused = await tenant.auditor.post("/v1/load", json={"external_id": "call-1"})
    assert refused.status_code == 403
    assert (
        await tenant.auditor.post("/v1/audit/streams", json={"url": "https://a.example/", "region": "x"})
    ).status_code == 403
    assert (await tenant.runtime.get("/v1/audit/events")).status_code == 403
