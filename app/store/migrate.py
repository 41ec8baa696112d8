"""Bring a database's schema up or down. Runs as ``confide_owner``, who is not the service's role.

The URL's user must be a superuser, or may create roles; it grants itself nothing that the service keeps.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from alembic import command, op
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

MIGRATIONS = Path(__file__).parents[2] / "migrations"
LOCK = 7_203_550
"""Advisory lock: one migration at a time, whoever starts it."""

ROLES = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'confide_owner') THEN
        CREATE ROLE confide_owner NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'confide_service') THEN
        CREATE ROLE confide_service NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'confide_auditor') THEN
        CREATE ROLE confide_auditor NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database's migration on the same server was first
END $$
"""


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to ``revision``. ``url``: postgresql://…, a user that may create roles."""
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to ``revision`` (``base`` removes the schema and all that it holds)."""
    _run(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> str | None:
    """The revision that the database stands at, or None for an empty one."""
    found: list[str | None] = []

    def look(connection: Connection) -> None:
        context = MigrationContext.configure(connection, opts=_VERSION_TABLE)
        found.append(context.get_current_revision())

    asyncio.run(_with_connection(url, look))
    return found[0]


_VERSION_TABLE = {"version_table": "schema_version", "version_table_schema": "confide_migrations"}


def _run(url: str, step: Any) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.execute(text(ROLES))
        connection.execute(text("GRANT confide_owner TO CURRENT_USER"))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS confide_migrations AUTHORIZATION confide_owner"))
        grant = connection.execute(
            text("SELECT format('GRANT CREATE ON DATABASE %I TO confide_owner', current_database())")
        ).scalar_one()
        connection.execute(text(grant))
        connection.execute(text("SET ROLE confide_owner"))
        connection.commit()
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        config.attributes["version_table"] = _VERSION_TABLE
        step(config)
        connection.commit()

    asyncio.run(_with_connection(url, work))


async def _with_connection(url: str, work: Any) -> None:
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool, hide_parameters=True
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(work)
    finally:
        await engine.dispose()


def run_script(name: str) -> None:
    """Run a file of ``migrations/sql`` in the migration's transaction.

    It goes to the driver itself: what goes through SQLAlchemy is prepared, one statement each.
    """
    op.execute("SELECT 1")  # the driver's adapter opens its transaction with the first statement
    connection: Any = op.get_bind().connection.dbapi_connection
    connection.run_async(lambda driver: driver.execute((MIGRATIONS / "sql" / name).read_text()))
