"""The tamper programme on a small log; at full size: ``make chaos-tamper``."""

from __future__ import annotations

import logging
from pathlib import Path

from tests.chance import seed as chosen_seed
from tests.programmes.audit_tamper import prepared, run


async def test_g4_what_is_changed_in_the_database_is_found_and_the_first_bad_leaf_is_named(
    database: str, tmp_path: Path
) -> None:
    seed = chosen_seed()
    logging.disable(logging.CRITICAL)
    try:
        async with prepared(database, tmp_path, 160, seed) as bench:
            wrong = await run(bench, seed, each=8, contents_every=2, tell=False)
    finally:
        logging.disable(logging.NOTSET)
    assert not any(wrong.values()), f"seed {seed}: {wrong}"
    assert len(wrong) == 8
