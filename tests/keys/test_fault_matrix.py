"""A part of the fault matrix; ``tests/programmes/fault_matrix.py`` runs all of it."""

from __future__ import annotations

import os

import pytest

from app.services import key_states
from tests.cell import Cell
from tests.keys.customers import World
from tests.keys.matrix import KINDS, Matrix, cases

PROVIDERS = ("aws-kms", "azure-key-vault", "vault-transit", "local")
FULL = "CONFIDE_TEST_FULL_MATRIX" in os.environ
FEW = ("denied", "unavailable", "integrity")


@pytest.mark.parametrize("provider", PROVIDERS if FULL else PROVIDERS[::3])
@pytest.mark.timeout(600 if FULL else 120)
async def test_g5_no_fault_opens_revokes_or_herds(
    cell: Cell, world: World, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(key_states, "PROBE_EVERY", (0.2, 0.3))
    monkeypatch.setattr(key_states, "HOLD", 0.05)
    matrix = Matrix(cell, world)
    wrong = {}
    plan = cases((provider,), KINDS if FULL else FEW)
    print(f"{provider}: {len(plan)} cells of the matrix")
    for case in plan:
        found = await matrix.run(case)
        if found:
            wrong[case] = found
    assert not wrong, "\n".join(f"{case}: {'; '.join(found)}" for case, found in wrong.items())
