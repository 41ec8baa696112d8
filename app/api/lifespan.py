"""The ASGI lifespan protocol: what starts with the worker and stops with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from app.observability.logs import RequestLog, exception_shape
from app.observability.metrics import Metrics

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Lifespan = Callable[[], AbstractAsyncContextManager[None]]

_log: Final = logging.getLogger("confide.http")


async def run_lifespan(receive: Receive, send: Send, lifespans: Sequence[Lifespan]) -> None:
    """Enter all in order, wait for the shutdown, leave in reverse. A failure is told by type and place only."""
    stack = AsyncExitStack()
    await receive()
    try:
        for lifespan in lifespans:
            await stack.enter_async_context(lifespan())
    except Exception as error:  # noqa: BLE001  the server is told, in the protocol's words
        _failed("start-up failed", error)
        with suppress(Exception):
            await stack.aclose()
        await send({"type": "lifespan.startup.failed", "message": "start-up failed: see the log"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    try:
        await stack.aclose()
    except Exception as error:  # noqa: BLE001
        _failed("shutdown failed", error)
        await send({"type": "lifespan.shutdown.failed", "message": "shutdown failed: see the log"})
        return
    await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def observed(metrics: Metrics, request_log: RequestLog, seconds: float) -> AsyncIterator[None]:
    """Share the metrics every ``seconds`` and let the request log batch its lines, while the worker runs."""
    request_log.use_loop(asyncio.get_running_loop().call_later)
    task = asyncio.create_task(_share(metrics, seconds))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        metrics.detach()
        request_log.flush()


async def _share(metrics: Metrics, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            metrics.flush()
        except OSError as error:  # a full disk must not end the sharing for good
            _failed("metrics can't be shared", error)


def _failed(what: str, error: Exception) -> None:
    _log.error(what, extra={"fields": {"error": exception_shape(error)}})
