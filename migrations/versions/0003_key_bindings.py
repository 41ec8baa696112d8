"""Customers' key bindings and what moves with them."""

from __future__ import annotations

from app.store.migrate import run_script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_script("0003_key_bindings.sql")


def downgrade() -> None:
    run_script("0003_key_bindings_down.sql")
