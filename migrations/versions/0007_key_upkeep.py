"""The index key is exchanged live; one KMS call at a time for a tenant; the vendor's key under its current version."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0007_key_upkeep.sql")


def downgrade() -> None:
    run_script("0007_key_upkeep_down.sql")
