"""A worker in a process of its own, to be killed: its background work, no HTTP. ``python -m tests.privacy.worker``.

CONFIDE_DATABASE_URL and CONFIDE_STATE_DIR are the test's.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from app.main import assemble, serving
from tests.cell import settings_of


async def work() -> None:
    parts = assemble(settings_of(os.environ["CONFIDE_DATABASE_URL"], Path(os.environ["CONFIDE_STATE_DIR"])))
    async with serving(parts):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work())
