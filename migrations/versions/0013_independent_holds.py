"""Holds of a runtime and legal holds independent of each other, gaps in the sealed log, vaults' regions asked for."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0013"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0013_independent_holds.sql")


def downgrade() -> None:
    run_script("0013_independent_holds_down.sql")
