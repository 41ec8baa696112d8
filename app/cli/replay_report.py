"""What a replay shows: progress while it runs, numbers at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Any, Final, Protocol, Self, TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS: Final = 5.0
_NAMED: Final = 20
_TITLES: Final = {
    "load": "load",
    "commit": "commit",
    "read_load": "load, reading back",
    "read_turns": "turns, reading back",
}


class Display(Protocol):
    """Where progress is shown. One phase at a time."""

    def phase(self, name: str, unit: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class Bar:
    """On a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._exits = ExitStack()
        self._exits.enter_context(self._progress)
        self._task = self._progress.add_task("", total=None, visible=False, unit="")

    def phase(self, name: str, unit: str, total: int) -> None:
        self._task = self._progress.add_task(name, total=total, unit=unit)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        self._exits.close()


class Lines:
    """Elsewhere: a line now and then, so that a log stays short."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._name = self._unit = ""
        self._total = self._done = 0
        self._started = self._shown = 0.0

    def phase(self, name: str, unit: str, total: int) -> None:
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._started = self._shown = monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = monotonic()
        if self._done >= self._total or now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self.note(f"{self._name}: {self._done} of {self._total} {self._unit}, {now - self._started:.1f} s")

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def end(self) -> None:
        """Nothing is held open."""


def display() -> Display:
    """On standard error, because standard output is for the result."""
    return Bar(Console(stderr=True)) if sys.stderr.isatty() else Lines(sys.stderr)


class Percentiles(msgspec.Struct):
    """Milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """By nearest rank: each is a latency that some call really had."""
        ordered = sorted(seconds)
        at = (round(1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) for share in (0.5, 0.95, 0.99, 1))
        return cls(len(ordered), *at)


class Phase(msgspec.Struct):
    """``done`` counts exchanges where they are written and dialogues where they are read back."""

    seconds: float
    dialogues: int
    done: int
    per_second: float


class Report(msgspec.Struct, omit_defaults=True):
    """The result. Dialogues are named by their ids in the file, content never."""

    outcome: str
    dialogues: int
    exchanges: int
    found_before: int
    phases: dict[str, Phase]
    latency_ms: dict[str, Percentiles]
    retries: Mapping[str, int]
    mismatches: list[dict[str, str]]
    error: str | None = None


def as_json(report: Report) -> str:
    plain: dict[str, Any] = msgspec.to_builtins(report)
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def as_text(report: Report) -> str:
    lines = [f"{report.dialogues} dialogues, {report.exchanges} exchanges"]
    if report.found_before:
        lines.append(f"{report.found_before} exchanges had been committed by a run before this one")
    for name, phase in report.phases.items():
        unit = "exchanges" if name == "write" else "dialogues"
        lines.append(f"{name}: {phase.done} {unit} in {phase.seconds:.1f} s, {phase.per_second:.1f}/s")
    if report.latency_ms:
        lines.append(f"{'latency in ms':<20} {'calls':>8} {'p50':>9} {'p95':>9} {'p99':>9} {'max':>9}")
    for kind, of in report.latency_ms.items():
        title = _TITLES.get(kind, kind)
        lines.append(f"{title:<20} {of.count:>8} {of.p50:>9.2f} {of.p95:>9.2f} {of.p99:>9.2f} {of.max:>9.2f}")
    causes = ", ".join(f"{count} × {cause}" for cause, count in sorted(report.retries.items()))
    lines.append(f"retries: {causes or 'none'}")
    lines += [f"mismatch in dialogue {one['dialogue_id']!r}: {one['reason']}" for one in report.mismatches[:_NAMED]]
    if len(report.mismatches) > _NAMED:
        lines.append(f"… and in {len(report.mismatches) - _NAMED} more dialogues (--json names all)")
    if report.error:
        lines.append(f"failed: {report.error}")
    lines.append({"ok": "everything compared is equal", "mismatch": "MISMATCH", "failed": "FAILED"}[report.outcome])
    return "\n".join(lines)
