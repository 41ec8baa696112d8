"""G8, G4: what was opened, by whom and under which key state, from the log alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.identity import new_id
from app.services.key_history import STATES, Period, Transition, cuts, periods
from tests.cell import Cell, Tenant
from tests.privacy.made import dialogue, sql
from tests.privacy.test_evidence import event
from tests.privacy.test_incidents import opened, sealed_events

START = datetime(2026, 3, 1, tzinfo=UTC)
LOG = st.lists(
    st.tuples(
        st.integers(-50, 150),
        st.sampled_from(["key.seal", "key.unseal", "b1", "b2"]),
        st.sampled_from(["active", "unavailable", "revoked", "retiring", "retired"]),
    ),
    max_size=12,
)


def log_of(drawn: list[tuple[int, str, str]]) -> list[Transition]:
    """In order, each binding's ``from`` what its last ``to`` was."""
    last = {"b1": "active", "b2": "active"}
    sealed = False
    found = []
    for minute, what, to in sorted(drawn, key=lambda each: each[0]):
        moment = START + timedelta(minutes=minute)
        if what.startswith("key."):
            sealed, was = what == "key.seal", sealed
            found.append(Transition(moment, what, after="active" if was and not sealed else None))
        else:
            found.append(Transition(moment, "binding.state", what, last[what], to))
            last[what] = to
    return found


def judged(log: list[Transition], moment: datetime) -> str:
    """The plain reading: everything up to a moment, one after another."""
    sealed, bindings = False, {"b1": "active", "b2": "active"}
    for each in log:
        if each.time <= moment:
            if each.action == "binding.state":
                bindings[each.binding or ""] = each.after or ""
            else:
                sealed = each.action == "key.seal"
    states = set(bindings.values())
    return (
        "sealed"
        if sealed
        else "revoked"
        if "revoked" in states
        else "unavailable"
        if "unavailable" in states
        else ("available")
    )


@settings(deadline=None, max_examples=150)
@given(LOG, st.integers(0, 99))
def test_the_key_state_of_each_moment_is_what_the_log_says_up_to_it(
    drawn: list[tuple[int, str, str]], minute: int
) -> None:
    log = log_of(drawn)
    until = START + timedelta(minutes=100)
    found = periods(log, START, until)
    moment = START + timedelta(minutes=minute, seconds=30)
    assert [each for each in found if each.since <= moment][-1].state == judged(log, moment)
    assert found[0].since == START
    assert all(START < cut < until for cut in cuts(found))
    assert cuts(found) == sorted(cuts(found))
    assert {each.state for each in found} <= set(STATES)
    # The log may have lost its older part: what is left says what was before.
    late = [each for each in log if each.time > START]
    if len(late) < len(log) and any(each.action == "binding.state" for each in late):
        assert periods(late, START, until)[-1].state in STATES


def test_what_a_binding_was_before_the_log_begins_is_what_its_first_event_says() -> None:
    back = Transition(START + timedelta(hours=1), "binding.state", "b1", "revoked", "active")
    assert periods([back], START, START + timedelta(hours=2)) == [
        Period(START, "revoked"),
        Period(back.time, "available"),
    ]
    unsealed = Transition(START + timedelta(hours=1), "key.unseal", after="active")
    assert periods([unsealed], START, START + timedelta(minutes=1)) == [Period(START, "sealed")]
    idle = Transition(START + timedelta(hours=1), "key.unseal")  # nothing was sealed
    assert periods([idle], START, START + timedelta(hours=2)) == [Period(START, "available")]


async def scope(cell: Cell, **asked: Any) -> list[dict[str, Any]]:
    incident = await opened(cell)
    now = datetime.now(UTC)
    window = {"since": (now - timedelta(hours=1)).isoformat(), "until": (now + timedelta(minutes=5)).isoformat()}
    answer = await cell.operator.post(f"/v1/incidents/{incident['id']}/scope", json=window | asked)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["parts"])


async def test_openings_are_told_by_the_key_state_at_their_time_and_not_by_todays(cell: Cell, tenant: Tenant) -> None:
    other = await cell.tenant("other")
    await dialogue(other, "theirs")
    session = await dialogue(tenant, "call-1")
    assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code == 200
    assert (await tenant.admin.post("/v1/keys/seal")).status_code == 200
    await sealed_events(cell)
    # What no sound service would have written: an opening while the tenant was sealed.
    planted = (
        event()
        .replace(" entry) SELECT", " container, entry) SELECT")
        .replace(" principal, convert", f" principal, '{session}', convert")
    )
    await sql(cell, planted.replace("{id}", str(new_id())).replace("{tenant}", str(tenant.id)))
    assert (await tenant.admin.post("/v1/keys/unseal")).status_code == 200
    assert (await tenant.runtime.get(f"/v1/sessions/{session}")).status_code == 200
    await sealed_events(cell)
    mine, theirs = sorted(await scope(cell), key=lambda part: part["tenant"] != str(tenant.id))
    assert mine["key_states"]["sealed"] == 1
    assert mine["key_states"]["available"] >= 3
    assert sum(mine["key_states"].values()) == mine["events"]
    assert [each["state"] for each in mine["key_history"]] == ["available", "sealed", "available"]
    assert mine["key_state_now"] == "available"
    assert mine["listed"][0]["key_states"] == mine["key_states"]
    assert theirs["key_states"] == {"available": theirs["events"]}
    # Sealed again today: what was opened before stays what it was.
    assert (await tenant.admin.post("/v1/keys/seal")).status_code == 200
    await sealed_events(cell)
    again = next(part for part in await scope(cell, tenant=str(tenant.id)))
    assert again["key_states"] == mine["key_states"]
    assert again["key_state_now"] == "sealed"
    own = (await tenant.auditor.get("/v1/privacy/incidents")).json()["parts"]
    assert own[0]["scope"]["key_states"] == mine["key_states"]
