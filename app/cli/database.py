"""Bringing a database up to this program: for ``migrate``, and for ``serve`` in development."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from app.cli.output import CommandError, write_private
from app.cli.postgres import Postgres
from app.main import Settings
from app.store import migrate
from app.store.cell import CellError, make_database, make_service_login, name_region, reach

DATABASE: Final = "confide"
LOGIN: Final = "confide_app"


def head() -> str:
    """The revision that this program's migrations lead to."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415  only two commands need it

    return ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head() or ""


def bring_up(url: str, region: str, revision: str = "head") -> str:
    """Migrate and name the region; answers the revision reached. Raises CommandError."""
    try:
        asyncio.run(reach(url))
        migrate.upgrade(url, revision)
        found = name_region(url, region)
    except CellError as error:
        raise CommandError(str(error)) from None
    except Exception as error:  # noqa: BLE001  alembic, SQLAlchemy and the driver raise many kinds, and quote values
        raise CommandError(
            f"The migration failed ({type(error).__name__}). CONFIDE_OWNER_DATABASE_URL must name a login that may"
            " create roles and schemas."
        ) from None
    if found != region:
        raise CommandError(f"This database is the cell of region {found}, but CONFIDE_REGION is {region}.")
    return migrate.current(url) or ""


def set_up_embedded(server: Postgres, settings: Settings) -> Path:
    """A migrated database in the embedded server, and the service's login. Answers the file (0600) with its address.
    Raises CommandError.
    """
    password_file = settings.state_dir / f"{LOGIN}.password"
    if not password_file.exists():
        write_private(password_file, secrets.token_urlsafe(32) + "\n")
    password = password_file.read_text(encoding="utf-8").strip()
    try:
        asyncio.run(make_database(server.superuser_url(), DATABASE))
        url = server.superuser_url(DATABASE)
        bring_up(url, settings.region)
        asyncio.run(make_service_login(url, LOGIN, password))
    except CellError as error:
        raise CommandError(str(error)) from None
    parts = urlsplit(url)
    own = urlunsplit(parts._replace(netloc=f"{LOGIN}:{password}@{parts.hostname}:{parts.port}"))
    path = settings.state_dir / "database.url"
    write_private(path, own + "\n")
    return path
