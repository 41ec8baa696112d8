"""What opens a draft incident by itself: each with a planted case, and with what looks alike and is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.detections import AT_ONCE, LOOK_BACK, OPENING_WINDOW, window_ends
from tests.cell import Cell, Tenant, running_cell
from tests.privacy.made import dialogue, sql
from tests.privacy.test_incidents import sealed_events


@pytest.fixture
async def cell(database: str, tmp_path: Path) -> AsyncIterator[Cell]:
    """Thresholds that a test reaches; nobody looks but the test."""
    changes = {"detect_denied": 15, "detect_opened": 4, "detect_opened_factor": 3}
    async with running_cell(database, tmp_path / "state", **changes) as made:
        await made.parts.services.privacy.watch.close()
        yield made


async def drafts(cell: Cell, now: datetime | None = None) -> list[dict[str, Any]]:
    """What a look drafts: kind and detail."""
    found = []
    for incident in await cell.parts.services.privacy.detections.look(now):
        shown = (await cell.operator.get(f"/v1/incidents/{incident}")).json()
        assert shown["phase"] == "draft"
        found.append({"kind": shown["kind"], "detected_at": shown["detected_at"]} | shown["history"][0]["detail"])
    return found


async def in_the_past(cell: Cell, **ago: float) -> None:
    """Let everything in the journal have happened so long ago, as only the database's superuser could."""
    connection = await asyncpg.connect(cell.url)
    try:
        await connection.execute("SET session_replication_role = replica")
        seconds = timedelta(**ago).total_seconds()
        await connection.execute(f"UPDATE confide_audit.journal SET time = time - {seconds} * interval '1 second'")
        await connection.execute(f"UPDATE confide_audit.event SET time = time - {seconds} * interval '1 second'")
    finally:
        await connection.close()


async def test_a_refusal_as_tampered_is_drafted_and_a_missing_session_is_not(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1")
    for _ in range(20):
        assert (await tenant.runtime.post("/v1/load", json={"external_id": "nobody"})).status_code in {200, 404}
        assert (await tenant.runtime.get(f"/v1/sessions/{tenant.id}")).status_code == 404
    assert await drafts(cell) == []
    await sql(cell, "UPDATE confide.context_object SET body = set_byte(body, 60, get_byte(body, 60) # 1)")
    answer = await tenant.runtime.post("/v1/load", json={"session": str(session), "context": [{}]})
    assert answer.status_code == 500
    await sealed_events(cell)  # what the sealer has moved is still seen
    [found] = await drafts(cell)
    assert (found["kind"], found["tenant"], found["count"]) == ("tampered", str(tenant.id), 1)
    assert await drafts(cell) == []  # once


async def test_a_burst_of_denials_counts_those_that_one_event_stands_for(cell: Cell, tenant: Tenant) -> None:
    for _ in range(14):
        assert (await tenant.runtime.get("/v1/audit/events")).status_code == 403
    await cell.parts.denials.flush()  # ten events, and one for four more
    assert await drafts(cell) == []
    assert (await tenant.runtime.get("/v1/audit/events")).status_code == 403
    [found] = await drafts(cell)
    assert (found["kind"], found["count"]) == ("denied", 15)
    assert found["who"] != "unknown"


async def test_guessing_keys_is_a_burst_and_a_sealed_tenants_traffic_is_none(cell: Cell, tenant: Tenant) -> None:
    assert (await tenant.admin.post("/v1/keys/seal")).status_code == 200
    for _ in range(20):
        assert (await tenant.runtime.post("/v1/load", json={"external_id": "call-1"})).status_code == 403
    for _ in range(20):
        assert (await cell.anyone.get("/v1/sessions/x")).status_code == 401  # no key at all
    await cell.parts.denials.flush()
    assert await drafts(cell) == []
    key = tenant.keys["runtime"]
    guesses = [each for each in (f"{key[:-3]}{number:03}" for number in range(16)) if each != key]
    for each in guesses[:15]:
        guess = cell.client(each)
        assert (await guess.get("/v1/trust/acceptances")).status_code == 401
    await cell.parts.denials.flush()
    [found] = await drafts(cell)
    assert (found["kind"], found["who"], found["count"]) == ("denied", "unknown", 15)


async def test_a_revoked_keys_use_is_drafted_by_name_and_an_expired_or_unknown_one_is_not(
    cell: Cell, tenant: Tenant
) -> None:
    session = await dialogue(tenant, "call-1")
    old, leaked = [
        (await tenant.admin.post("/v1/api-keys", json={"name": name, "role": "runtime"})).json()
        for name in ("old", "leaked")
    ]
    await sql(cell, "UPDATE confide.api_key SET expires_at = now() - interval '1 second' WHERE name = 'old'")
    assert (await cell.client(old["secret"]).get(f"/v1/sessions/{session}")).status_code == 401
    wrong = old["secret"][:-4] + ("1111" if old["secret"].endswith("0000") else "0000")
    assert (await cell.client(wrong).get(f"/v1/sessions/{session}")).status_code == 401
    await cell.parts.denials.flush()
    assert await drafts(cell) == []
    assert (await tenant.admin.post(f"/v1/api-keys/{leaked['key']['id']}/revoke")).status_code == 200
    assert await drafts(cell) == []  # revoked, and not used
    # Shown after every worker has forgotten it: the event names the key in its tenant's own log all the same.
    for _ in range(3):
        assert (await cell.client(leaked["secret"]).get(f"/v1/sessions/{session}")).status_code == 401
    await cell.parts.denials.flush()
    [found] = await drafts(cell)
    assert (found["kind"], found["tenant"]) == ("revoked-api-key", str(tenant.id))
    assert found["who"] == leaked["key"]["principal"]
    events = (await tenant.auditor.get("/v1/audit/events", params={"action": "api-key.denied"})).json()["events"]
    assert [(each["api_key"], each["detail"]) for each in events] == [(leaked["key"]["id"], {"revoked": 3})]


async def test_a_key_revoked_in_use_is_drafted(cell: Cell, tenant: Tenant) -> None:
    session = await dialogue(tenant, "call-1")
    await sql(cell, "UPDATE confide.api_key SET revoked_at = now() WHERE name = 'runtime'")  # by another worker
    assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code == 401
    assert [each["kind"] for each in await drafts(cell)] == ["revoked-api-key"]


async def test_a_missing_number_is_a_gap_and_a_number_that_was_never_given_is_none(cell: Cell, tenant: Tenant) -> None:
    for n in range(3):
        await dialogue(tenant, f"call-{n}")
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert await drafts(cell, soon) == []
    # A write that was rolled back gives its numbers back.
    refused = {"external_id": "call-1", "if_commit": 99, "turns": [{"json": 1}]}
    assert (await tenant.runtime.post("/v1/commit", json=refused)).status_code in {404, 412, 422}
    await dialogue(tenant, "call-4")
    assert await drafts(cell, soon + timedelta(minutes=1)) == []
    connection = await asyncpg.connect(cell.url)
    await connection.execute("SET session_replication_role = replica")  # what only a superuser can do
    await connection.execute(
        "DELETE FROM confide_audit.journal j USING (SELECT writer, tenant_id, min(seq) + 1 AS seq FROM"
        f" confide_audit.journal WHERE tenant_id = '{tenant.id}' GROUP BY 1, 2 HAVING count(*) > 2) d"
        " WHERE j.writer = d.writer AND j.tenant_id = d.tenant_id AND j.seq = d.seq"
    )
    await connection.close()
    found = await drafts(cell, soon + timedelta(minutes=2))
    assert {each["kind"] for each in found} == {"audit-gap"}
    assert {each["tenant"] for each in found} == {str(tenant.id)}


async def test_a_leaf_that_is_gone_from_the_sealed_log_is_a_gap(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    for n in range(2):
        await dialogue(tenant, f"call-{n}")
        await dialogue(other, f"call-{n}")
    await sealed_events(cell)
    assert await drafts(cell) == []
    connection = await asyncpg.connect(cell.url)
    await connection.execute("SET session_replication_role = replica")  # what only a superuser can do
    await connection.execute(
        "DELETE FROM confide_audit.event e WHERE e.tenant_id = $1 AND e.leaf ="
        " (SELECT max(b.leaf) FROM confide_audit.event b WHERE b.tenant_id = $1)",
        tenant.id,
    )
    await connection.close()
    [found] = await drafts(cell)
    assert (found["kind"], found["tenant"], found["who"], found["count"]) == ("audit-gap", str(tenant.id), "log", 1)


async def test_unusually_many_openings_are_drafted_and_a_busy_callers_usual_ones_are_not(
    cell: Cell, tenant: Tenant
) -> None:
    for n in range(5):
        await dialogue(tenant, f"call-{n}")
    for n in range(3):
        assert (await tenant.runtime.post("/v1/load", json={"external_id": f"call-{n}"})).status_code == 200
    for _ in range(5):  # the same one again and again is no bulk
        assert (await tenant.runtime.post("/v1/load", json={"external_id": "call-0"})).status_code == 200
    assert await drafts(cell) == []
    # The hour before was as busy: for this caller it is usual.
    await in_the_past(cell, minutes=30)
    await sql(
        cell,
        "INSERT INTO confide_audit.journal (tenant_id, id, time, writer, seq, flush, action, outcome, container, facts)"
        " SELECT tenant_id, gen_random_uuid(), time, '01a20000-0000-7000-8000-000000000000', n, 1, action, outcome,"
        " gen_random_uuid(), facts FROM (SELECT * FROM confide_audit.journal WHERE action = 'context.load'"
        " AND container IS NOT NULL LIMIT 1) j, generate_series(1, 60) n",
    )
    for n in range(5):
        assert (await tenant.runtime.post("/v1/load", json={"external_id": f"call-{n}"})).status_code == 200
    assert await drafts(cell) == []
    # Another hour later nothing was usual any more.
    await in_the_past(cell, hours=2)
    for n in range(5):
        assert (await tenant.runtime.post("/v1/load", json={"external_id": f"call-{n}"})).status_code == 200
    [found] = await drafts(cell)
    assert (found["kind"], found["tenant"], found["count"]) == ("bulk-opening", str(tenant.id), 5)


@pytest.mark.parametrize("days", [1.0, 3.0])
async def test_what_happened_while_nobody_looked_is_looked_at_later(cell: Cell, tenant: Tenant, days: float) -> None:
    session = await dialogue(tenant, "call-1")
    assert await drafts(cell) == []
    await sql(cell, "UPDATE confide.context_object SET body = set_byte(body, 60, get_byte(body, 60) # 1)")
    asked = {"session": str(session), "context": [{}]}
    assert (await tenant.runtime.post("/v1/load", json=asked)).status_code == 500
    await sealed_events(cell)
    await in_the_past(cell, days=days)
    mark = datetime.now(UTC) - timedelta(days=days, hours=1)
    await sql(cell, "UPDATE confide.detection_mark SET looked_to = $1", mark)
    if days > 2:  # the day of the journal was dropped meanwhile: the sealed log has it
        connection = await asyncpg.connect(cell.url)
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("DELETE FROM confide_audit.journal")
        await connection.close()
    found = await drafts(cell)
    assert "tampered" in {each["kind"] for each in found}
    late = next(each for each in found if each["kind"] == "tampered")
    begun = datetime.fromisoformat(late["first_at"])
    assert abs(begun - datetime.now(UTC) + timedelta(days=days)) < timedelta(minutes=5)
    detected = datetime.fromisoformat(late["detected_at"])  # the clock of 24 hours starts now, not then
    assert abs(detected - datetime.now(UTC)) < timedelta(minutes=5)
    looked_to = (await sql(cell, "SELECT looked_to FROM confide.detection_mark"))[0]["looked_to"]
    assert mark < looked_to <= datetime.now(UTC)


NOW = datetime(2026, 3, 29, 1, tzinfo=UTC)


@settings(deadline=None, max_examples=30)
@given(st.timedeltas(timedelta(0), timedelta(days=40)))
def test_windows_of_a_look_leave_nothing_out(behind: timedelta) -> None:
    mark, reached = NOW - behind, []
    for _ in range(1 + int(LOOK_BACK / OPENING_WINDOW / AT_ONCE) + 1):
        ends = window_ends(mark, NOW)
        assert len(ends) <= AT_ONCE
        reached += ends
        mark = ends[-1]
    assert mark == NOW
    begun = max(NOW - behind, NOW - LOOK_BACK)
    steps = zip([begun, *reached], reached, strict=False)
    assert all(after - before <= OPENING_WINDOW for before, after in steps)


def test_a_mark_in_the_future_does_not_stop_the_looks() -> None:
    assert window_ends(NOW + timedelta(days=365), NOW) == [NOW]
    assert window_ends(None, NOW) == [NOW]
