"""Tenants, API keys, containers, keys, the journal, and the two statements."""

from __future__ import annotations

from alembic import op

from app.store.migrate import run_script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("0001_schema.sql", "0001_read.sql", "0001_write.sql"):
        run_script(name)


def downgrade() -> None:
    op.execute("DROP SCHEMA confide_audit, confide_keys, confide CASCADE")
