"""The clock that leases run on: monotonic, and counting the time that the machine is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Clock = Callable[[], float]

_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", None)


def boottime() -> float:
    """Seconds since boot, suspension included (Linux CLOCK_BOOTTIME; elsewhere the monotonic clock)."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
