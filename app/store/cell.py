"""The cell's own row, and whether this database and login may be served from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from app.store.connection import BROKEN

OLDEST: Final = 15
"""PostgreSQL's major version."""

REGION: Final = "SELECT region FROM confide.cell"
MAKE_PARTITIONS: Final = (
    "SELECT confide_audit.make_journal_partition((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 1) AS n"
)


class CellError(Exception):
    """The database can't be served from. The text says what to do and holds no secret."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a look at the database found. ``revision`` is None for an empty one, ``region`` where none is named yet."""

    revision: str | None
    region: str | None
    privileged: bool
    """The login is a superuser, passes row-level policies, or may act as the tables' owner."""


_STANDING: Final = """
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'confide_service') AS migrated,
       coalesce((SELECT r.rolsuper OR r.rolbypassrls FROM pg_roles r WHERE r.rolname = session_user), true)
       OR (EXISTS (SELECT FROM pg_roles WHERE rolname = 'confide_owner')
           AND pg_has_role(session_user, 'confide_owner', 'MEMBER')) AS privileged
"""


async def connect(url: str) -> asyncpg.Connection[Any]:
    """A plain connection as the URL's own login. Raises CellError, also where the server is too old."""
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except asyncpg.InvalidCatalogNameError:
        raise CellError("The server has no database of that name: create it first.") from None
    except (*BROKEN, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise CellError(f"The database can't be reached or refuses the login ({type(error).__name__}).") from None
    major = connection.get_server_version().major
    if major < OLDEST:
        await connection.close()
        raise CellError(f"The database is PostgreSQL {major}; Confide needs {OLDEST} or newer.")
    return connection


async def reach(url: str) -> None:
    """Raises CellError where the URL's login can't connect."""
    await (await connect(url)).close()


async def standing(url: str) -> Standing:
    """Look at the database as the URL's login, as ``confide_service`` where it has to be. Raises CellError."""
    connection = await connect(url)
    try:
        seen = await connection.fetchrow(_STANDING)
        assert seen is not None  # noqa: S101  a SELECT without FROM answers one row
        if not seen["migrated"]:
            return Standing(None, None, seen["privileged"])
        await connection.execute("SET ROLE confide_service")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'confide')"):
            return Standing(None, None, seen["privileged"])  # another database of this server has the roles
        revision = await connection.fetchval("SELECT version_num FROM confide_migrations.schema_version")
        region = await connection.fetchval(REGION) if revision is not None else None
        return Standing(revision, region, seen["privileged"])
    except asyncpg.InsufficientPrivilegeError:
        raise CellError(
            "The database's login must be a member of confide_service: GRANT confide_service TO it."
        ) from None
    except (*BROKEN, asyncpg.PostgresError) as error:
        raise CellError(f"The database refused a question about its schema ({type(error).__name__}).") from None
    finally:
        await connection.close()


def name_region(url: str, region: str) -> str:
    """Write the cell's region where there is none yet, as ``confide_owner``; answers the one that stands.

    The service's own role can't do this: a worker started with a wrong region must not move the cell.
    """

    async def write() -> str:
        connection = await connect(url)
        try:
            await connection.execute("SET ROLE confide_owner")
            await connection.execute("INSERT INTO confide.cell (region) VALUES ($1) ON CONFLICT DO NOTHING", region)
            found: str = await connection.fetchval(REGION)
            return found
        finally:
            await connection.close()

    return asyncio.run(write())


async def join_service(url: str) -> None:
    """Let the migrating login act as ``confide_service`` too: in development one login does both. Raises CellError."""
    connection = await connect(url)
    try:
        try:
            await connection.execute("SET ROLE confide_service")
        except asyncpg.InsufficientPrivilegeError:
            await connection.execute("GRANT confide_service TO CURRENT_USER")
    except asyncpg.PostgresError:
        raise CellError(
            "The database's login must be a member of confide_service: GRANT confide_service TO it."
        ) from None
    finally:
        await connection.close()


async def make_service_login(url: str, name: str, password: str) -> None:
    """A login that may act as ``confide_service`` and nothing else. ``name`` and ``password`` are of [0-9A-Za-z_-]."""
    connection = await connect(url)
    try:
        verb = "ALTER" if await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name) else "CREATE"
        options = f"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOBYPASSRLS PASSWORD '{password}'"
        await connection.execute(f'{verb} ROLE "{name}" {options}')
        await connection.execute(f'GRANT confide_service TO "{name}"')
    finally:
        await connection.close()


async def make_database(url: str, name: str) -> None:
    """A database, where there is none of that name. ``name`` is of [a-z_]."""
    connection = await connect(url)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
