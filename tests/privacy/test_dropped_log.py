"""What retention has dropped of the log is in no account, and no answer passes over that."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from app.services.evidence_controls import CONTROLS
from app.store.evidence import CHECKS
from tests.cell import Cell, Tenant
from tests.privacy.made import dialogue
from tests.privacy.test_blast_radius import scope
from tests.privacy.test_incidents import sealed_events


async def drop_log(cell: Cell, tenant: Tenant) -> datetime:
    """As if retention had dropped all that is sealed of a tenant; answers when the newest of it was."""
    connection = await asyncpg.connect(cell.url)
    try:
        await connection.execute("SET session_replication_role = replica")
        newest: datetime = await connection.fetchval(
            "INSERT INTO confide_audit.dropped (tenant_id, epoch, first, beyond, oldest, newest, events)"
            " SELECT tenant_id, epoch, min(leaf), max(leaf) + 1, min(time), max(time), count(*)"
            " FROM confide_audit.event WHERE tenant_id = $1 GROUP BY 1, 2 RETURNING newest",
            tenant.id,
        )
        for table in ("event", "event_object", "journal"):
            await connection.execute(f"DELETE FROM confide_audit.{table} WHERE tenant_id = $1", tenant.id)
        return newest
    finally:
        await connection.close()


async def evidence(tenant: Tenant, control: str, since: datetime) -> dict[str, Any]:
    period = {"from": since.isoformat(), "to": datetime.now(UTC).isoformat(), "control": control}
    answer = await tenant.auditor.get("/v1/evidence", params=period)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["evidence"])


async def test_statement_evidence_and_blast_radius_say_what_the_log_has_no_more(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    begun = datetime.now(UTC) - timedelta(minutes=1)
    await dialogue(tenant, "call-1", "customer-1")
    await dialogue(other, "call-1")
    await sealed_events(cell)
    whole = await evidence(tenant, "q-training", begun)
    assert (whole["result"], whole["dropped"]) == ("kept", [])
    newest = await drop_log(cell, tenant)
    await dialogue(tenant, "call-2")
    await sealed_events(cell)

    period = {"from": begun.isoformat(), "to": datetime.now(UTC).isoformat()}
    refused = await tenant.auditor.get("/v1/privacy/statement", params=period)
    assert refused.status_code == 422
    assert f"{newest:%Y-%m-%dT%H:%M}" in refused.json()["detail"]
    after = period | {"from": (newest + timedelta(microseconds=1)).isoformat()}
    assert (await tenant.auditor.get("/v1/privacy/statement", params=after)).status_code == 200
    assert (await other.auditor.get("/v1/privacy/statement", params=period)).status_code == 200

    part = await evidence(tenant, "q-training", begun)
    assert part["result"] == "incomplete"
    assert part["dropped"][0]["first"] == 0
    assert part["checks"][0]["looked_from"] > newest.isoformat()
    assert part["checks"][0]["failures"] == []
    later = newest + timedelta(seconds=1)
    await asyncio.sleep(max(0.0, (later - datetime.now(UTC)).total_seconds()) + 0.01)
    assert (await evidence(tenant, "q-training", later))["dropped"] == []
    stored = await evidence(tenant, "q-encryption", begun)  # of what is stored now, which no retention of the log dims
    assert stored["result"] == "kept"

    mine = next(each for each in await scope(cell) if each["tenant"] == str(tenant.id))
    assert datetime.fromisoformat(mine["dropped_to"]) == newest
    theirs = next(each for each in await scope(cell) if each["tenant"] == str(other.id))
    assert theirs["dropped_to"] is None
    await drop_log(cell, other)
    silent = next(each for each in await scope(cell, tenant=str(other.id)) if each["tenant"] == str(other.id))
    assert (silent["events"], silent["dropped_to"] is None) == (0, False)  # not "nothing was opened"


def test_a_check_knows_whether_it_reads_the_log() -> None:
    assert CHECKS["purposes"].reads_log
    assert CHECKS["log-without-gaps"].reads_log
    assert not CHECKS["retention"].reads_log
    assert not CHECKS["sealed"].reads_log
    assert "purposes" in CONTROLS["q-training"].checks
