"""One run of the load generator against one service, and what it cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cell import Subject
from bench.peers.servers import Ready
from bench.processes import HOST, ROOT, own_cpu_seconds, total_cpu

CONNECTIONS = 32
Marks = dict[str, tuple[float, float, float]]
"""CPU seconds of the service, of the database, and of the service's first process alone, at "begin" and at "end"."""


@dataclass(frozen=True)
class Measured:
    """``service`` and ``database``: CPU microseconds a request. ``first``: of the service's first process alone, which
    is the worker where there is one; the rest is what the service does behind it, such as sealing the log.
    """

    rate: float
    p50: float
    p99: float
    service: float
    database: float
    generator: float
    detail: dict[str, Any]
    first: float = 0.0


class LoadError(Exception):
    """A run that isn't worth counting: the generator failed, or answers were refused."""


def run(subject: Subject, database: int, job: dict[str, Any]) -> Measured:
    """Raises LoadError."""
    whole = {
        "host": HOST,
        "port": subject.port,
        "targets": str(subject.targets),
        "connections": CONNECTIONS,
        "seconds": 5.0,
        **job,
    }
    command = [sys.executable, "-m", "bench.loadgen"]
    detail, marks = _drive(subject.name, command, whole, [subject.pid], [database])
    return _measured(subject.name, detail, marks)


def run_peer(python: Path, name: str, ready: Ready, job: dict[str, Any]) -> Measured | None:
    """A peer's own client, whose CPU is the service's part. None for a run that only fills. Raises LoadError."""
    whole = {"peer": name, "connections": CONNECTIONS, "seconds": 5.0, **ready.job, **job}
    detail, marks = _drive(name, [str(python), "-m", "bench.peers"], whole, [], ready.pids)
    return _measured(name, detail, marks) if marks else None


def _drive(
    name: str, command: list[str], job: dict[str, Any], service: Sequence[int], database: Sequence[int]
) -> tuple[dict[str, Any], Marks]:
    """Run a generator, and note the CPU used when it begins to count and when it ends."""
    marks: Marks = {}
    line = ""
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        for line in process.stdout:
            if line.strip() in {"begin", "end"}:
                pids = service or [process.pid]
                own = sum(map(own_cpu_seconds, pids))
                marks[line.strip()] = (total_cpu(pids), total_cpu(database), own)
    if process.returncode or len(marks) == 1:
        raise LoadError(f"{name}: the load generator failed")
    return json.loads(line), marks


def _measured(name: str, detail: dict[str, Any], marks: Marks) -> Measured:
    answers = max(1, detail["answers"])
    bad = sum(count for status, count in detail["statuses"].items() if int(status) >= 400)
    if bad > answers / 1000 or not detail["answers"]:
        raise LoadError(f"{name}: {bad} of {answers} refused: {detail['failure']}")
    service, database, first = (
        (end - begin) / answers * 1e6 for begin, end in zip(marks["begin"], marks["end"], strict=True)
    )
    return Measured(
        detail["rate"], detail["p50"], detail["p99"], service, database, detail["generator_cpu"], detail, first
    )
