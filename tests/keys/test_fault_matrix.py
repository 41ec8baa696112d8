"""A part of the fault matrix: each pair of what it crosses. ``make faults`` runs all of it."""

from __future__ import annotations

import os

import pytest

from app.services import key_states
from tests.cell import Cell
from tests.keys.customers import PROVIDERS, World
from tests.keys.matrix import ACTIONS, HEATS, KINDS, NOT_SHOWN, Matrix, cases, some_cases

FULL = "CONFIDE_TEST_FULL_MATRIX" in os.environ


def test_the_part_leaves_out_no_pair_of_what_there_is() -> None:
    part = some_cases()
    assert {(case.provider, case.kind) for case in part} == {
        (provider, kind) for provider in PROVIDERS for kind in KINDS if kind not in NOT_SHOWN.get(provider, ())
    }
    assert {(case.kind, case.action) for case in part} == {(kind, action) for kind in KINDS for action in ACTIONS}
    assert {(case.provider, case.action) for case in part} == {(p, action) for p in PROVIDERS for action in ACTIONS}
    assert {(case.kind, case.heat) for case in part} == {(kind, heat) for kind in KINDS for heat in HEATS}
    assert set(part) <= set(cases(PROVIDERS))
    assert len(cases(PROVIDERS)) == 240


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.timeout(1200 if FULL else 300)
async def test_g5_no_fault_opens_revokes_or_herds(
    cell: Cell, world: World, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(key_states, "PROBE_EVERY", (0.2, 0.3))
    monkeypatch.setattr(key_states, "HOLD", 0.05)
    matrix = Matrix(cell, world)
    wrong = {}
    plan = cases((provider,)) if FULL else [case for case in some_cases() if case.provider == provider]
    print(f"{provider}: {len(plan)} cells of the matrix")
    for case in plan:
        found = await matrix.run(case)
        if found:
            wrong[case] = found
    assert not wrong, "\n".join(f"{case}: {'; '.join(found)}" for case, found in wrong.items())
