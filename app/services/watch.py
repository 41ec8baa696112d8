"""Twice a second: which tenants changed, whose keys must leave memory, and what is due to be asked again.

Nothing's safety rests on this: the statement that audits a request checks the tenant's state and epoch. The watch sees
to it that keys which may not be used don't stay in memory either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from app.errors import ConfideError
from app.services.ending import end
from app.services.keyring import Keyring
from app.services.probes import Prober
from app.store.bindings import CHANGED, STANDINGS
from app.store.pool import Pool

log = logging.getLogger("confide.watch")

PERIOD: Final = 0.5
SLOW_PERIOD: Final = 30.0
OVERLAP: Final = timedelta(seconds=45)
"""A change is dated when its transaction began and shows when it has committed: nothing takes longer than this."""
PAGE: Final = 50_000
BLOCKED: Final = frozenset({"sealed", "revoked"})


class Watch:
    """One worker's loops."""

    def __init__(
        self,
        keyring: Keyring,
        prober: Prober,
        pool: Pool,
        *others: Callable[[], Awaitable[None]],
        period: float = PERIOD,
    ) -> None:
        """``others``: further work, looked at every half minute."""
        self._keyring = keyring
        self._prober = prober
        self._pool = pool
        self._others = others
        self._period = period
        self._seen: datetime | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._loop(self.look, self._period), name="watch"),
            asyncio.create_task(self._loop(self._prober.run_due, self._period), name="probes"),
            *(asyncio.create_task(self._loop(work, SLOW_PERIOD), name="key-work") for work in self._others),
        ]

    async def close(self) -> None:
        await end(*self._tasks)

    async def _loop(self, work: Callable[[], Awaitable[None]], period: float) -> None:
        while True:
            try:
                await work()
            except ConfideError:
                pass  # the database is away: statements fail too, so that nobody is served meanwhile
            except Exception as error:  # noqa: BLE001  the watch must outlive whatever one round brings
                log.error("a round of the watch failed", extra={"fields": {"error": type(error).__name__}})
            await asyncio.sleep(period)

    async def look(self) -> None:
        """Wipe what is past its lease, and what changed tenants no longer allow. Raises ``Unavailable``."""
        self._keyring.sweep()
        if self._seen is None:
            self._seen = (await self._pool.fetch("SELECT now() AS now"))[0]["now"]
        changed = await self._pool.fetch(CHANGED, self._seen - OVERLAP, PAGE)
        held = self._keyring.held()
        concerned = [row["id"] for row in changed if row["id"] in held]
        if concerned:
            names = "{" + ",".join(map(str, concerned)) + "}"
            for row in await self._pool.fetch(STANDINGS, names):
                if row["state"] != "active" or row["key_state"] in BLOCKED:
                    self._keyring.discard(row["id"], at_once=True)
                    if row["state"] == "gone":
                        self._keyring.loader.forget_vendor(row["id"])
                elif row["epoch"] > held[row["id"]]:
                    self._keyring.discard(row["id"], at_once=False)
        if changed:
            self._seen = max(self._seen, changed[-1]["changed_at"])
