"""What the commands need of the embedded server. ``app.__main__`` alone may start it, and hands it in."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Postgres(Protocol):
    """A running embedded server."""

    def superuser_url(self, database: str = ...) -> str: ...

    def stop(self) -> None: ...


class StartPostgres(Protocol):
    """Starts the server of a folder. Raises CommandError."""

    def __call__(self, folder: Path) -> Postgres: ...
