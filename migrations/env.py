"""Alembic's environment: migrations run as ``confide_owner``, with time-outs, in one transaction each."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text
from sqlalchemy.engine import Connection


def run(connection: Connection) -> None:
    context.configure(
        connection=connection, transaction_per_migration=True, **context.config.attributes["version_table"]
    )
    connection.execute(text("SET lock_timeout = '10s'"))
    connection.execute(text("SET statement_timeout = '15min'"))
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
