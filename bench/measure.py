"""One run of the load generator against one service, and what it cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from bench.cell import Subject
from bench.processes import HOST, ROOT, total_cpu


@dataclass(frozen=True)
class Measured:
    """``service`` and ``database``: CPU microseconds a request."""

    rate: float
    p50: float
    p99: float
    service: float
    database: float
    generator: float
    detail: dict[str, Any]


class LoadError(Exception):
    """A run that isn't worth counting: the generator failed, or answers were refused."""


def run(subject: Subject, database: int, job: dict[str, Any]) -> Measured:
    """Raises LoadError."""
    whole = {
        "host": HOST,
        "port": subject.port,
        "targets": str(subject.targets),
        "connections": 32,
        "seconds": 5.0,
        **job,
    }
    command = [sys.executable, "-m", "bench.loadgen"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(whole))
        process.stdin.close()
        marks = {}
        line = ""
        for line in process.stdout:
            if line.strip() in {"begin", "end"}:
                marks[line.strip()] = (total_cpu([subject.pid]), total_cpu([database]))
    if process.returncode or "end" not in marks:
        raise LoadError(f"{subject.name}: the load generator failed")
    return _measured(subject, json.loads(line), marks)


def _measured(subject: Subject, detail: dict[str, Any], marks: dict[str, tuple[float, float]]) -> Measured:
    answers = max(1, detail["answers"])
    bad = sum(count for status, count in detail["statuses"].items() if int(status) >= 400)
    if bad > answers / 1000 or not detail["answers"]:
        raise LoadError(f"{subject.name}: {bad} of {answers} refused: {detail['failure']}")
    service, database = ((end - begin) / answers * 1e6 for begin, end in zip(marks["begin"], marks["end"], strict=True))
    return Measured(detail["rate"], detail["p50"], detail["p99"], service, database, detail["generator_cpu"], detail)
