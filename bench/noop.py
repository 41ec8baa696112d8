"""A server that does nothing, to show how much faster than any of the others the load generator could go."""

from __future__ import annotations

from typing import Any

from bench.plain import answer


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await answer(send, 200, b"{}")
