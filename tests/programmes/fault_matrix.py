"""All of the fault matrix: ``make faults``. Takes a minute; ``make test`` runs a part.

Every error kind × (create, first read, refresh, write, rotate) × (cold, warm) × (AWS KMS, Azure Key Vault, Transit, a
key file), on a real PostgreSQL and the emulators. A first read is cold and a refresh warm by what they are; a key file
shows three of the nine kinds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    environment = os.environ | {"CONFIDE_TEST_FULL_MATRIX": "1"}
    command = [sys.executable, "-m", "pytest", "tests/keys/test_fault_matrix.py", "-q", "-s", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
