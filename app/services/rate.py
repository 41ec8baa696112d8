"""Token buckets per tenant. They count for one worker: a cell with n workers admits up to n times the rate."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from uuid import UUID

from app.errors import RateLimited

KEPT: Final = 20_000


class _Bucket:
    __slots__ = ("at", "level", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.level = float(rate)
        self.at = now


class Rates:
    """A full bucket holds one second's worth of requests; ``default`` is the rate of tenants without their own."""

    def __init__(self, default: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._default = default
        self._clock = clock
        self._buckets: OrderedDict[UUID, _Bucket] = OrderedDict()

    def admit(self, tenant: UUID, own_rate: int | None) -> None:
        """Take one token. Raises RateLimited, whose ``retry_after`` is when there is one again."""
        rate = own_rate or self._default
        now = self._clock()
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(rate, now)
            if len(self._buckets) > KEPT:
                self._buckets.popitem(last=False)  # the tenant that first came longest ago starts with a full one again
        elif bucket.rate != rate:
            bucket.rate, bucket.level = rate, min(bucket.level, float(rate))
        level = min(float(rate), bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        if level < 1:
            bucket.level = level
            raise RateLimited(retry_after=max(1, math.ceil((1 - level) / rate)))
        bucket.level = level - 1
