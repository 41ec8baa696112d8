"""The composition root: settings in, an ASGI application and its services out.

build(settings)       the application of one worker, not yet connected
serving(parts)        connected, checked, its background tasks running; drained and closed at the end
application()         what each worker process of the server calls
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from app.api.dispatch import Api, ApiSettings
from app.api.table import BodyLimits
from app.assembly import Parts, assemble, private_dir, routes_of
from app.config import CLIENT_VARIABLES, ConfigError, Settings, load
from app.errors import ConfideError
from app.observability.logs import RequestLog, configure
from app.services.ending import end
from app.services.replay_deletions import Replayed, replay
from app.services.services import Services
from app.store.cell import MAKE_PARTITIONS, CellError, standing
from app.store.ledger import Ledger

__all__ = [  # the command line has its settings from here: it may not read them itself
    "CLIENT_VARIABLES",
    "ConfigError",
    "Parts",
    "Settings",
    "application",
    "assemble",
    "build",
    "load",
    "preflight",
    "private_dir",
    "replay_deletions",
    "serving",
]

log = logging.getLogger("confide.main")

PARTITION_SECONDS: Final = 3600.0


def build(settings: Settings) -> tuple[Api, Services]:
    """The application and its services. They connect when the server starts the application's lifespan."""
    parts = assemble(settings)
    return api_of(parts), parts.services


def api_of(parts: Parts) -> Api:
    """The ASGI application around ``parts``."""
    settings = parts.settings
    if settings.workers > 1 or settings.sealer == "process":
        parts.metrics.attach(settings.state_dir / "metrics")
    return Api(
        routes_of(parts),
        parts.services,
        parts.services.access,
        settings=ApiSettings(
            BodyLimits(settings.max_json_bytes, settings.max_envelope_bytes, settings.max_object_bytes),
            settings.trusted_proxies,
        ),
        metrics=parts.metrics,
        request_log=RequestLog(settings.log_share),
        lifespans=(lambda: serving(parts),),
    )


async def preflight(settings: Settings, revision: str | None = None) -> None:
    """Whether this database may be served from. ``revision``: the one it must have. Raises CellError."""
    found = await standing(settings.database_url or "")
    if found.revision is None:
        raise CellError("The database has no schema yet: run `confide migrate`.")
    if revision is not None and found.revision != revision:
        raise CellError(
            f"The database stands at revision {found.revision}, this program needs {revision}: run `confide migrate`."
        )
    if found.region is None:
        raise CellError("The database doesn't say which region it is: run `confide migrate` with CONFIDE_REGION.")
    if found.region != settings.region:
        raise CellError(f"The database is the cell of region {found.region}, but CONFIDE_REGION is {settings.region}.")
    if found.privileged and not settings.dev:
        raise CellError(
            "The login of CONFIDE_DATABASE_URL is a superuser or the tables' owner, so that row-level security and the"
            " audit's write protection don't hold it: use a login that is only a member of confide_service."
        )


@asynccontextmanager
async def serving(parts: Parts) -> AsyncIterator[None]:
    """Connect, check and start; at the end finish what waits and close. Raises CellError, Unavailable."""
    await preflight(parts.settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(parts.registry.close)
        stack.push_async_callback(parts.services.privacy.deletions.close)
        stack.push_async_callback(parts.services.ledger.close)
        stack.push_async_callback(parts.pool.close)
        stack.push_async_callback(parts.rows.close)
        for lane in parts.services.lanes.values():
            await lane.start()
            stack.push_async_callback(lane.close)
        stack.push_async_callback(parts.services.keys.close)
        await make_partitions(parts.services.ledger)
        if parts.settings.sealer == "worker":
            parts.services.audit.start()
        stack.push_async_callback(parts.services.audit.close)
        parts.denials.start()
        stack.push_async_callback(parts.denials.close)
        parts.services.access.start()
        stack.push_async_callback(parts.services.access.close)
        task = asyncio.create_task(_keep_partitions(parts.services.ledger), name="partitions")
        stack.push_async_callback(end, task)
        stack.push_async_callback(parts.services.jobs.ledger.close)
        stack.push_async_callback(parts.services.privacy.ledger.close)
        parts.services.keys.start()
        parts.services.jobs.start_runner()
        stack.push_async_callback(parts.services.jobs.close)
        await parts.services.privacy.start()
        stack.push_async_callback(parts.services.privacy.close)
        yield
        log.info("draining", extra={"fields": {"waiting": sum(n.waiting for n in parts.services.lanes.values())}})


async def replay_deletions(
    settings: Settings, folder: Path | None = None, state_of: datetime | None = None
) -> Replayed:
    """After a restore, before anybody is served: erase again what was erased since. ``state_of``: the backup's moment.

    Raises CellError, HorizonError, Unavailable.
    """
    found = await standing(settings.database_url or "")
    if found.revision is None or found.region != settings.region:
        raise CellError("The database has no schema, or is another region's cell.")
    own = assemble(settings).services.privacy
    try:
        return await replay(own.ledger, own.retention, own.deletions, folder or own.deletions.folder, state_of)
    finally:
        await own.ledger.close()
        await own.deletions.close()


async def make_partitions(ledger: Ledger) -> None:
    """The journal's partitions of today and tomorrow, where they are not there yet."""
    async with ledger.transaction() as tx:
        await tx.connection.execute(MAKE_PARTITIONS)


async def _keep_partitions(ledger: Ledger) -> None:
    """Every hour; the default partition would catch what no partition was made for."""
    while True:
        await asyncio.sleep(PARTITION_SECONDS)
        try:
            await make_partitions(ledger)
        except ConfideError as error:
            log.error("no partition could be made", extra={"fields": {"error": type(error).__name__}})


def application() -> Api:
    """One worker process: settings from the environment that it inherited."""
    settings = load(os.environ)
    configure(settings.log_level)
    _die_with_parent()
    api, _ = build(settings)
    # What is loaded by now stays: the collector needn't look at it again, and has little to find in a request's
    # garbage.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    return api


def seal_forever() -> None:
    """The sealing process: moves events into the log, signs, pushes streams; serves nothing. Ends with its parent.

    It stands back behind the workers: who waits for an answer comes before a log that has seconds.
    """
    settings = load(os.environ)
    configure(settings.log_level)
    _die_with_parent()
    os.nice(5)
    with suppress(KeyboardInterrupt):
        asyncio.run(_sealing(assemble(settings)))


async def _sealing(parts: Parts) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    parts.metrics.attach(parts.settings.state_dir / "metrics")
    async with AsyncExitStack() as stack:
        stack.callback(parts.metrics.detach)
        for close in (parts.registry.close, parts.services.ledger.close, parts.pool.close, parts.rows.close):
            stack.push_async_callback(close)
        await parts.services.lanes["record"].start()
        stack.push_async_callback(parts.services.lanes["record"].close)
        parts.services.audit.start()
        stack.push_async_callback(parts.services.audit.close)
        while not stop.is_set():
            parts.metrics.flush()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)


def _die_with_parent() -> None:
    """A worker whose manager was killed would go on serving a port that nobody manages: it drains and ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
