"""Tenants, API keys, containers, keys, the journal, and the two statements."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"


def run_script(name: str) -> None:
    """Run a file of many statements. asyncpg prepares what SQLAlchemy sends, one statement each; its own ``execute`` doesn't."""
    op.execute("SELECT 1")  # the driver's adapter opens its transaction with the first statement
    connection = op.get_bind().connection.dbapi_connection
    connection.run_async(lambda driver: driver.execute((SQL / name).read_text()))


def upgrade() -> None:
    for name in ("0001_schema.sql", "0001_read.sql", "0001_write.sql"):
        run_script(name)


def downgrade() -> None:
    op.execute("DROP SCHEMA confide_audit, confide_keys, confide CASCADE")
