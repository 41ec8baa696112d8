"""Whether a worker's memory stays flat under an even load on the same tenants: ``make soak MINUTES=60``."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench import cell, report, suite
from bench.cell import Subject
from bench.measure import run
from bench.processes import ROOT, memory_bytes
from bench.suite import Bench, Plan

RATE = 300
FLAT = 1.10
"""What the last quarter's median may be of the second quarter's; the first is for caches to fill."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second, reads and writes by halves")
    args = parser.parse_args()
    parent = ROOT / ".confide"
    parent.mkdir(mode=0o700, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="soak-", dir=parent))
    try:
        with ExitStack() as stack:
            database = cell.Database(state)
            stack.callback(database.stop)
            bench = Bench(Plan(), state, Console(), database, stack)
            confide = stack.enter_context(suite.service(bench))
            operator = cell.demo_values(state)["CONFIDE_OPERATOR_KEY"]
            keys = asyncio.run(cell.onboard(confide.port, operator, [f"soak-{n}" for n in range(args.tenants)]))
            sessions = args.tenants * 10
            stock = {"sessions": sessions, "objects": 5, "body": suite.body()}
            asyncio.run(cell.seed_confide(confide.port, keys, confide.targets, **stock))
            samples = soak(bench, confide, args.minutes, args.rate)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    verdict(samples)


def soak(bench: Bench, confide: Subject, minutes: float, rate: float) -> list[tuple[float, float]]:
    """(minutes, MB), one sample after each stretch of load."""
    samples = [(0.0, memory_bytes(confide.pid) / 1e6)]
    started = time.monotonic()
    stretch = min(30.0, minutes * 60 / 8)
    while (passed := time.monotonic() - started) < minutes * 60:
        streams = [{"workload": "get", "seed": int(passed)}, {"workload": "put", "seed": int(passed)}]
        job = {"streams": streams, "rates": [rate / 2] * 2, "connections": 64, "seconds": stretch}
        found = run(confide, bench.database.pid, job)
        samples.append(((time.monotonic() - started) / 60, memory_bytes(confide.pid) / 1e6))
        bench.say(
            f"{samples[-1][0]:5.1f} min  {samples[-1][1]:6.1f} MB  p50 {found.p50:.2f} ms  p99 {found.p99:.2f} ms"
        )
    return samples


def verdict(samples: list[tuple[float, float]]) -> None:
    """Raises SystemExit where memory grew."""
    quarter = max(1, len(samples) // 4)
    early = sorted(mb for _, mb in samples[quarter : 2 * quarter])
    late = sorted(mb for _, mb in samples[-quarter:])
    growth = late[len(late) // 2] / early[len(early) // 2]
    report.RESULTS.mkdir(parents=True, exist_ok=True)
    path = report.RESULTS / time.strftime("soak-%Y%m%d-%H%M%S.json", time.gmtime())
    path.write_text(json.dumps({"samples": samples, "growth": growth}))
    print(f"memory of the last quarter against the second: {growth:.3f} (flat: at most {FLAT}); {path}")
    if growth > FLAT:
        raise SystemExit("memory grew")


if __name__ == "__main__":
    main()
