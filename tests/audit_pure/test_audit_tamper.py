"""The tamper programme at a size for every test run; at full size: ``python -m tests.audit_pure.tamper_programme``."""

from __future__ import annotations

from tests.audit_pure.tamper_programme import Programme, run
from tests.chance import seed as chosen_seed


def test_every_kind_of_tampering_is_found_and_the_first_bad_leaf_is_named() -> None:
    seed = chosen_seed()
    wrong = run(Programme(seed, 1_200), each=60, contents_every=4)
    assert not any(wrong.values()), f"seed {seed}: {wrong}"
    assert len(wrong) == 8
