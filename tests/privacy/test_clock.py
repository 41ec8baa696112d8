"""The incident clock is right across daylight saving, leap days, restarts, and clocks that are put back or forward."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.incident_clock import SteadyClock, deadlines
from tests.cell import Cell, running_cell
from tests.privacy.made import sql
from tests.privacy.test_incidents import opened

ZONES = [
    ZoneInfo(name)
    for name in ("Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia")
]
HOUR = 3600.0


@settings(deadline=None)
@given(st.datetimes(datetime(2010, 1, 1), datetime(2040, 1, 1)), st.sampled_from(ZONES), st.integers(0, 1))  # noqa: DTZ001
def test_g8_deadlines_are_hours_after_detection_across_every_change_of_clocks(
    naive: datetime, zone: ZoneInfo, fold: int
) -> None:
    detected = naive.replace(tzinfo=zone, fold=fold)
    due = deadlines(detected)
    # POSIX seconds are the independent measure: they know nothing of zones.
    assert abs(due.customer.timestamp() - detected.timestamp() - 24 * HOUR) < 0.001
    assert abs(due.authority.timestamp() - detected.timestamp() - 72 * HOUR) < 0.001
    assert due == deadlines(detected.astimezone(UTC))


@pytest.mark.parametrize(
    ("detected", "customer"),
    [
        # 24 hours over the night in which Zurich's clocks go forward, and back: another hour on the wall.
        (datetime(2026, 3, 28, 12, tzinfo=ZONES[0]), datetime(2026, 3, 29, 13, tzinfo=ZONES[0])),
        (datetime(2026, 10, 24, 12, tzinfo=ZONES[0]), datetime(2026, 10, 25, 11, tzinfo=ZONES[0])),
        # The hour that comes twice.
        (datetime(2026, 10, 25, 2, 30, tzinfo=ZONES[0], fold=1), datetime(2026, 10, 26, 2, 30, tzinfo=ZONES[0])),
        (datetime(2028, 2, 28, 23, tzinfo=UTC), datetime(2028, 2, 29, 23, tzinfo=UTC)),  # a leap day
        (datetime(2027, 2, 28, 23, tzinfo=UTC), datetime(2027, 3, 1, 23, tzinfo=UTC)),  # none
        (datetime(2026, 12, 31, 12, tzinfo=UTC), datetime(2027, 1, 1, 12, tzinfo=UTC)),
        # Samoa left out the 30th of December 2011.
        (datetime(2011, 12, 29, 12, tzinfo=ZONES[4]), datetime(2011, 12, 31, 12, tzinfo=ZONES[4])),
    ],
)
def test_24_hours_are_24_hours_on_the_days_that_are_odd(detected: datetime, customer: datetime) -> None:
    assert deadlines(detected).customer == customer.astimezone(UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        deadlines(datetime(2026, 3, 29, 2, 30))  # noqa: DTZ001


class World:
    """True time, a wall clock that may be off, and a counter of elapsed time that may be not."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self.true = start
        self.off = 0.0

    def wall(self) -> float:
        return self.true + self.off

    def elapsed(self) -> float:
        return self.true - 1_700_000_000.0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 100 * HOUR)),
        st.tuples(st.just("off"), st.floats(-1000 * HOUR, 1000 * HOUR)),
        st.tuples(st.just("right"), st.just(0.0)),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(STEPS)
def test_whatever_is_done_to_the_wall_clock_no_deadline_passes_unseen(steps: list[tuple[str, float]]) -> None:
    world = World()
    clock = SteadyClock(world.wall, world.elapsed)
    last_right = clock().timestamp()
    for kind, amount in steps:
        if kind == "pass":
            world.true += amount
        else:
            world.off = amount
        seen = clock().timestamp()
        assert seen >= world.true - 0.001  # never late: what is due has passed for us too
        assert seen <= max(world.true, world.wall()) + 0.001  # and ahead only as far as the wall clock is
        if world.off <= 0:  # right, or put back: exactly true, and never back
            assert abs(seen - world.true) < 0.001
            assert seen >= last_right - 0.001
            last_right = seen


@settings(deadline=None)
@given(STEPS, st.floats(-100 * HOUR, 100 * HOUR))
def test_a_restart_forgets_nothing_that_was_right(steps: list[tuple[str, float]], off: float) -> None:
    world = World()
    for kind, amount in steps:
        if kind == "pass":
            world.true += amount
    world.off = off
    restarted = SteadyClock(world.wall, world.elapsed)  # started while the clock is off: it can't know
    assert abs(restarted().timestamp() - world.wall()) < 0.001
    world.off = 0.0
    world.true += HOUR
    assert restarted().timestamp() >= world.true - 0.001  # put right, it is not late


# ---------------------------------------------------------------- a cell whose clock is moved


async def overdue(cell: Cell, incident: str) -> list[tuple[str, str]]:
    history = (await cell.operator.get(f"/v1/incidents/{incident}")).json()["history"]
    moments = [datetime.fromisoformat(entry["at"]) for entry in history]
    assert moments == sorted(moments)  # whatever the clocks did
    return [(entry["kind"], entry.get("audience", "")) for entry in history]


async def test_an_overdue_notice_is_alarmed_once_though_clocks_jump_and_workers_restart(
    database: str, tmp_path: Path
) -> None:
    world = World(datetime.now(UTC).timestamp())
    async with running_cell(database, tmp_path / "state") as cell:
        await cell.parts.services.privacy.watch.close()
        incidents = cell.parts.services.privacy.incidents
        incidents.clock = SteadyClock(world.wall, world.elapsed)
        incident = str((await opened(cell, hours_ago=0))["id"])
        assert await incidents.raise_overdue() == 0
        world.off = -1000 * HOUR  # put back by weeks; a day passes all the same
        world.true += 23 * HOUR
        assert await incidents.raise_overdue() == 0
        world.true += 2 * HOUR
        assert await incidents.raise_overdue() == 1
        assert await incidents.raise_overdue() == 0
        assert await overdue(cell, incident) == [("opened", ""), ("overdue", "customer")]
        shown = (await cell.operator.get(f"/v1/incidents/{incident}")).json()
        assert shown["customer"]["overdue"] is True
        clocks = shown["history"][1]["detail"]
        assert clocks["due"] == shown["customer"]["due"].replace("Z", "+00:00")
        assert datetime.fromisoformat(clocks["worker"]) > datetime.fromisoformat(clocks["due"])
        # Told now, which is too late, whatever the wall says.
        told = await cell.operator.post(f"/v1/incidents/{incident}/notices", json={"audience": "authority"})
        assert told.json()["authority"]["kept"] is True
        assert datetime.fromisoformat(told.json()["authority"]["told_at"]) >= datetime.fromtimestamp(
            world.true - 1, UTC
        )
        assert cell.parts.services.auditing.alarms["incident-overdue"] == 1
    async with running_cell(database, tmp_path / "state") as cell:  # a restart, with the clock that others have
        assert await cell.parts.services.privacy.incidents.raise_overdue() == 0
        assert await overdue(cell, incident) == [("opened", ""), ("overdue", "customer"), ("notified", "authority")]


async def test_the_clock_starts_at_detection_and_runs_in_the_database_over_a_restart(
    database: str, tmp_path: Path
) -> None:
    async with running_cell(database, tmp_path / "state") as cell:
        await cell.parts.services.privacy.watch.close()
        incident = await opened(cell, hours_ago=30)
        due: Any = incident["customer"]
        assert (due["overdue"], incident["authority"]["overdue"]) == (True, False)
    async with running_cell(database, tmp_path / "state") as cell:
        await cell.parts.services.privacy.watch.close()
        world = World(datetime.now(UTC).timestamp() - 500 * HOUR)  # this worker's clock is weeks behind
        incidents = cell.parts.services.privacy.incidents
        incidents.clock = SteadyClock(world.wall, world.elapsed)
        assert await incidents.raise_overdue() == 1  # the database's is right
        found = (await cell.operator.get(f"/v1/incidents/{incident['id']}")).json()
        assert found["customer"] == due
        rows = await sql(cell, "SELECT customer_due - detected_at AS hours FROM confide.incident")
        assert rows[0]["hours"] == timedelta(hours=24)
