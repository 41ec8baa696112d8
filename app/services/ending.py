"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN_SECONDS: Final = 3.0


async def end(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks until they have ended. What they end with is not raised.

    Once isn't always enough: where a database goes away at the same moment, the rollback's own error takes the place of
    the cancellation, and a loop that is made to outlive errors goes on.
    """
    going = {task for task in tasks if task is not None}
    while going:
        for task in going:
            task.cancel()
        done, going = await asyncio.wait(going, timeout=AGAIN_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()
