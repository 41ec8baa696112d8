"""Transfers of keys, holds on later sessions, how far detections looked, key states of openings, a faster sweep."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0009_privacy_gaps.sql")


def downgrade() -> None:
    run_script("0009_privacy_gaps_down.sql")
