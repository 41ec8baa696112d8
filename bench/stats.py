"""Medians and spreads of interleaved rounds, and ratios taken round by round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.measure import Measured


def row(name: str, runs: Sequence[Measured], base: Sequence[Measured] | None = None) -> dict[str, Any]:
    """``base``: the same rounds of what it is compared with."""
    found: dict[str, Any] = {"name": name, "rounds": len(runs)}
    for field in ("rate", "p50", "p99", "service", "first", "database", "generator"):
        values = sorted(getattr(run, field) for run in runs)
        found[field] = round(median(values), 3)
        found[f"{field}_spread"] = [round(values[0], 3), round(values[-1], 3)]
    if base:
        ratios = sorted(own.rate / other.rate for own, other in zip(runs, base, strict=False))
        found["ratio"] = round(median(ratios), 3)
        found["ratio_spread"] = [round(ratios[0], 3), round(ratios[-1], 3)]
        found["cpu_ratio"] = round(
            median(_cpu(other) / max(1.0, _cpu(own)) for own, other in zip(runs, base, strict=False)), 3
        )
    return found


def _cpu(run: Measured) -> float:
    return run.service + run.database
