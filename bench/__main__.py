"""The whole benchmark: ``make bench``; ``make bench-full`` with the large stores; ``--only main,peers`` for parts."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench import beside, cell, cold, held, report, suite, variants
from bench.http import RefusedError
from bench.measure import LoadError
from bench.processes import ROOT, ServerError
from bench.suite import Bench, Plan
from bench.targets import checks

PARTS = (
    "generator",
    "main",
    "latency",
    "slow-disk",
    "peers",
    "sizes",
    "tenants",
    "fairness",
    "objects",
    "workers",
    "cold",
    "beside",
    "held",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="10,000 tenants and a million objects too (half an hour)")
    parser.add_argument("--only", default="", help=f"parts, with commas: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run")
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan:
    only = frozenset(filter(None, args.only.split(",")))
    if only - set(PARTS):
        raise SystemExit(f"unknown part: {', '.join(sorted(only - set(PARTS)))}; there are {', '.join(PARTS)}")
    many = {"tenants": 10_000, "many_objects": 1_000_000} if args.full else {}
    return Plan(rounds=args.rounds, seconds=args.seconds, only=only, **many)


def main() -> None:
    plan = plan_of(arguments())
    console = Console() if sys.stdout.isatty() else Console(width=150)
    machine = report.machine()
    parent = ROOT / ".confide"
    parent.mkdir(mode=0o700, exist_ok=True)
    # Beside the checkout and not in /tmp, which may be memory: what is measured must wait for a disk.
    state = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            database = cell.Database(state)
            stack.callback(database.stop)
            bench = Bench(plan, state, console, database, stack)
            measure(bench)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    results = {
        "machine": machine | {"load_after": [round(each, 2) for each in os.getloadavg()]},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "plan": {name: value for name, value in vars_of(plan).items() if name != "only"},
        "groups": bench.groups,
        "checks": checks(bench),
        "notes": bench.notes,
        "extra": bench.extra,
    }
    path = report.save(results)
    report.show(results, console)
    console.print(f"{results['minutes']} minutes; results in {path}, plot in {path.with_suffix('.svg')}")


def vars_of(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in Plan.__dataclass_fields__}


def measure(bench: Bench) -> None:
    confide = bench.stack.enter_context(suite.service(bench))
    values = cell.demo_values(bench.state)
    key, operator = values["CONFIDE_RUNTIME_KEY"], values["CONFIDE_OPERATOR_KEY"]
    stock = {"sessions": bench.plan.sessions, "objects": bench.plan.objects, "body": suite.body()}
    asyncio.run(cell.seed_confide(confide.port, [key], confide.targets, **stock))
    if bench.wants("generator"):
        suite.generator(bench, confide)
    if any(map(bench.wants, ("main", "latency", "slow-disk"))):
        with ExitStack() as stack:
            plain = stack.enter_context(suite.plain_service(bench, "plain"))
            grouped = stack.enter_context(suite.plain_service(bench, "grouped", target="grouped"))
            if bench.wants("main"):
                suite.main_table(bench, [plain, confide, grouped])
            if bench.wants("latency"):
                suite.latency(bench, [plain, confide, grouped])
            if bench.wants("slow-disk"):
                suite.slow_disk(bench, [plain, confide, grouped])
    later: dict[str, Callable[[], None]] = {
        "peers": lambda: variants.peers(bench, confide),
        "sizes": lambda: variants.sizes(bench, confide, key),
        "fairness": lambda: variants.fairness(bench, confide, operator),
        "tenants": lambda: variants.tenants(bench, confide, operator, key),
        "objects": lambda: variants.many_objects(bench, confide, key),
        "workers": lambda: variants.workers(bench),
        "cold": lambda: cold.cold_start(bench, confide, operator),
        "beside": lambda: beside.jobs(bench, confide, values),
        "held": lambda: held.held_keys(bench),
    }
    for part, work in later.items():
        if bench.wants(part):
            try:
                work()
            except (LoadError, ServerError, RefusedError, OSError) as error:
                bench.notes.append(f"{part}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
