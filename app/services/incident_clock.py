"""The clock of an incident: absolute instants, counted from detection.

Deadlines are fixed when the incident is opened, as UTC instants in the database: no time zone, daylight saving or
restart moves them. Whether one has passed is judged by the database's clock, and an alarm that was raised stays in the
incident's history, so that a clock that jumps back neither silences nor repeats it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

CUSTOMER: Final = timedelta(hours=24)
AUTHORITY: Final = timedelta(hours=72)


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
