"""What is measured, part by part. Rounds are interleaved: every variant once, then every variant again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import cell, workloads
from bench.cell import Database, Subject
from bench.measure import LoadError, Measured, run
from bench.stats import row

MAIN = ("put", "conditional", "get", "turn")


@dataclass(frozen=True)
class Plan:
    """How long a run of the benchmark takes, and how much is stored."""

    rounds: int = 3
    seconds: float = 3.0
    sessions: int = 1000
    objects: int = 10
    tenants: int = 1000
    many_objects: int = 0
    """Objects of the large store; 0: it is left out."""
    only: frozenset[str] = frozenset()


@dataclass
class Bench:
    """The servers that run for the whole benchmark, and what was found so far."""

    plan: Plan
    state: Path
    console: Console
    database: Database
    stack: ExitStack
    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def wants(self, part: str) -> bool:
        return not self.plan.only or part in self.plan.only

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")

    def interleave(
        self,
        title: str,
        subjects: Sequence[Subject],
        job: dict[str, Any],
        *,
        base: str | None = "plain",
        rounds: int = 0,
    ) -> None:
        """Add a group: every subject under ``job``, round by round."""
        runs: dict[str, list[Measured]] = {subject.name: [] for subject in subjects}
        for number in range(rounds or self.plan.rounds):
            done = {}
            self.database.checkpoint()
            order = subjects if number % 2 == 0 else list(reversed(subjects))
            for subject in order:
                self.say(f"{title}: {subject.name}, round {number + 1}")
                try:
                    full = {"seconds": self.plan.seconds, "seed": number + 1, **job}
                    done[subject.name] = run(subject, self.database.pid, full)
                except LoadError as error:
                    self.notes.append(f"{title}: {error}")
            if len(done) == len(subjects):  # a round counts whole or not at all, so that ratios are of the same moment
                for name, measured in done.items():
                    runs[name].append(measured)
        self.add(title, runs, base)

    def add(self, title: str, runs: dict[str, list[Measured]], base: str | None) -> None:
        rows = [
            row(name, own, runs[base] if base in runs and base != name else None) for name, own in runs.items() if own
        ]
        self.groups.append({"title": title, "rows": rows})
        for name, own in runs.items():
            self.runs[title, name] = own

    def find(self, title: str, name: str) -> dict[str, Any] | None:
        for group in self.groups:
            if group["title"] == title:
                return next((each for each in group["rows"] if each["name"] == name), None)
        return None


@contextmanager
def service(bench: Bench, name: str = "confide", *, workers: int = 1, **env: str) -> Iterator[Subject]:
    with cell.confide(bench.state, bench.database, bench.state / f"{name}.log", workers=workers, env=env) as server:
        wait_for_demo(bench.state)
        yield Subject(name, server.port, server.pid, bench.state / "confide.json")


def wait_for_demo(state: Path) -> None:
    deadline = time.monotonic() + 60
    while not (state / "demo.env").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def body(size: int = 4096) -> bytes:
    return workloads.json_bytes(size, random.Random(5))


@contextmanager
def plain_service(bench: Bench, name: str, *, target: str = "plain", content: bytes = b"") -> Iterator[Subject]:
    """A plain service with a database of its own, filled like Confide's."""
    url, key = bench.database.for_plain(name.replace(" ", "_")), cell.new_key()
    targets = bench.state / f"{name}.json"
    log = bench.state / f"{name}.log"
    with cell.plain_server(name, url, key, log, target=f"bench.{target}:application") as server:
        size = {"sessions": bench.plan.sessions, "objects": bench.plan.objects, "body": content or body()}
        asyncio.run(cell.seed_plain(url, key, targets, **size))
        yield Subject(name, server.port, server.pid, targets)


def generator(bench: Bench, subject: Subject) -> None:
    """The generator against a server that does nothing: what it could ask for."""
    log = bench.state / "noop.log"
    with cell.uvicorn("noop", "bench.noop:application", log, env={}, factory=False) as server:
        idle = Subject("does nothing", server.port, server.pid, subject.targets)
        bench.interleave("4 KiB get, no work", [idle], {"workload": "get"}, base=None, rounds=2)


def main_table(bench: Bench, subjects: Sequence[Subject]) -> None:
    for workload in MAIN:
        title = "dialogue turn" if workload == "turn" else f"4 KiB {workload}"
        bench.interleave(title, subjects, {"workload": workload})


def latency(bench: Bench, subjects: Sequence[Subject]) -> None:
    """Open loop: 1,000 requests a second, half of them writes."""
    for workload in ("get", "put"):
        job = {"streams": [{"workload": workload}], "rates": [1000], "connections": 64}
        bench.interleave(f"1,000 {workload}/s", subjects, job)


def slow_disk(bench: Bench, subjects: Sequence[Subject]) -> None:
    """commit_delay holds each flush back for 1 ms, as a disk whose fsync takes 1 ms more would."""
    bench.database.setting("commit_delay", "1000")
    bench.database.setting("commit_siblings", "0")
    try:
        for workload in ("put", "get"):
            bench.interleave(f"slow disk, 4 KiB {workload}", subjects, {"workload": workload})
    finally:
        bench.database.setting("commit_delay", "")
        bench.database.setting("commit_siblings", "")
