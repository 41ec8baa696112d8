"""The sealer's lease, and what retention has dropped of the audit log."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0008_audit_leader.sql")


def downgrade() -> None:
    run_script("0008_audit_leader_down.sql")
