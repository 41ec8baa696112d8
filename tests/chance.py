"""What tests draw at random is the same at every run, so that a run says nothing that the next one takes back.

``CONFIDE_TEST_SEED`` names another seed for the tests that draw, or ``random``: then they say which they drew.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, settings

_USUAL = "20261124"


def seed() -> int:
    """For a test's own generator."""
    named = os.environ.get("CONFIDE_TEST_SEED", _USUAL)
    return random.SystemRandom().randrange(1 << 31) if named == "random" else int(named)


def settle_hypothesis() -> None:
    """Properties: the same examples at every run, however slow the machine is.

    ``--hypothesis-profile=default`` draws anew and remembers what failed.
    """
    slow = [HealthCheck.too_slow]
    settings.register_profile("settled", derandomize=True, deadline=None, database=None, suppress_health_check=slow)
    settings.load_profile("settled")
