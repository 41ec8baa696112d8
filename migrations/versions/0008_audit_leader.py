"""The sealer's lease, and what retention has dropped of the audit log."""

from __future__ import annotations

from pathlib import Path

from app.store.migrate import run_script

revision = "0008"
# The newest one below this: numbers are handed out ahead, and not every one is taken.
down_revision = max(name[:4] for each in Path(__file__).parent.glob("0*.py") if (name := each.stem) < revision)
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0008_audit_leader.sql")


def downgrade() -> None:
    run_script("0008_audit_leader_down.sql")
