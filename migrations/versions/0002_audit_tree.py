"""The sealed audit log: tables, tree, checkpoints, streams."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0002_audit_tree.sql")


def downgrade() -> None:
    run_script("0002_audit_tree_down.sql")
