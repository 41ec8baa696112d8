"""Residency, retention, erasure, incidents, evidence."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0004_privacy.sql")


def downgrade() -> None:
    run_script("0004_privacy_down.sql")
