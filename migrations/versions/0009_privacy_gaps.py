"""Transfers of keys, holds on later sessions, how far detections looked, key states of openings, a faster sweep."""

from __future__ import annotations

from pathlib import Path

from app.store.migrate import run_script

revision = "0009"
# The one before, whichever of 0005 to 0008 there are.
down_revision = max(name[:4] for each in Path(__file__).parent.glob("0*.py") if (name := each.stem) < revision)
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0009_privacy_gaps.sql")


def downgrade() -> None:
    run_script("0009_privacy_gaps_down.sql")
