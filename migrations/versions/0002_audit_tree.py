"""The sealed audit log: tables, tree, checkpoints, streams."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"


def run_script(name: str) -> None:
    """Run a file of many statements through the driver itself: what goes through SQLAlchemy is prepared one by one."""
    op.execute("SELECT 1")  # the driver's adapter opens its transaction with the first statement
    connection = op.get_bind().connection.dbapi_connection
    connection.run_async(lambda driver: driver.execute((SQL / name).read_text()))


def upgrade() -> None:
    run_script("0002_audit_tree.sql")


def downgrade() -> None:
    run_script("0002_audit_tree_down.sql")
