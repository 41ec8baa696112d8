"""A migrated database of a measurement's own, on a PostgreSQL of its own that doesn't wait for the disk."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.embedded import EmbeddedPostgres
from app.store import migrate
from app.store.cell import make_database


@contextmanager
def migrated() -> Iterator[tuple[str, Path]]:
    """A superuser's address on it, and a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as name:
        folder = Path(name)
        with EmbeddedPostgres.start(folder / "postgres", durable=False) as server:
            asyncio.run(make_database(server.superuser_url(), "bench"))
            url = server.superuser_url("bench")
            migrate.upgrade(url)
            yield url, folder
