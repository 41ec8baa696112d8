"""The clock of an incident: absolute instants, counted from detection.

Deadlines are fixed when the incident is opened, as UTC instants in the database: no time zone, daylight saving or
restart moves them. Whether one has passed is judged by the latest of three clocks: the database's, the worker's, and
the worker's start plus what has truly elapsed since (``SteadyClock``). So a clock that is put back delays no alarm. One
that is put forward by mistake alarms early, and says so: the alarm's entry names the clocks. An alarm that was raised
stays in the incident's history, neither silenced nor repeated; the history's own times never go back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from app.services.clock import Clock, boottime

CUSTOMER: Final = timedelta(hours=24)
AUTHORITY: Final = timedelta(hours=72)

WallClock = Callable[[], datetime]


class SteadyClock:
    """The wall clock, but never less than its first reading plus the time that has elapsed since, suspension included.

    Put back, it goes on as if nothing had happened; put forward, it follows; put right again, it is right again.
    """

    def __init__(self, wall: Callable[[], float] = time.time, elapsed: Clock = boottime) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._begun = wall() - elapsed()

    def __call__(self) -> datetime:
        """In UTC."""
        return datetime.fromtimestamp(max(self._wall(), self._begun + self._elapsed()), UTC)


class Deadlines(NamedTuple):
    """When customers and the authority must have been told."""

    customer: datetime
    authority: datetime


def deadlines(detected_at: datetime, customer: timedelta = CUSTOMER, authority: timedelta = AUTHORITY) -> Deadlines:
    """In UTC. ``detected_at`` must be aware: a time without a zone says nothing."""
    if detected_at.tzinfo is None:
        raise ValueError("the time of detection needs a time zone")
    instant = detected_at.astimezone(UTC)  # arithmetic on local times would follow the wall clock across a DST change
    return Deadlines(instant + customer, instant + authority)
