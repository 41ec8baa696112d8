"""What must be reached, against what was measured."""

from __future__ import annotations

from itertools import product
from typing import Any

from bench.suite import Bench

PLAIN = {"4 KiB put": 2.0, "4 KiB conditional": 1.6, "4 KiB get": 1.4, "dialogue turn": 1.5}
GROUPED = {"4 KiB put": 0.9, "4 KiB get": 0.75}
PEERS = {"langgraph encrypted": 8.0, "openbao": 4.0, "pgcrypto": 2.5, "redis": 0.8}
THIRD = 2 / 3


def checks(bench: Bench) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def check(name: str, wanted: str, measured: float | None, *, met: bool) -> None:
        if measured is not None:
            found.append({"name": name, "wanted": wanted, "measured": round(measured, 3), "met": met})

    def at_least(name: str, limit: float, measured: float | None) -> None:
        check(name, f"≥ {limit:.2f} ×", measured, met=measured is not None and measured >= limit)

    def at_most(name: str, limit: float, measured: float | None) -> None:
        check(name, f"≤ {limit:.2f} ×", measured, met=measured is not None and measured <= limit)

    for title, limit in PLAIN.items():
        at_least(f"{title} against plain", limit, _ratio(bench, title, "confide"))
    for title, limit in GROUPED.items():
        at_least(f"{title} against grouped plain", limit, _between(bench, title, "grouped", "rate"))
    for workload, peer in product(("put", "get"), PEERS):
        other = _ratio(bench, f"peers: {workload}", peer)
        at_least(f"{workload} against {peer}", PEERS[peer], 1 / other if other else None)
    for title in ("1,000 get/s", "1,000 put/s"):
        at_most(f"{title}: p50 against plain", 1.5, _between(bench, title, "plain", "p50"))
        at_most(f"{title}: p99 against plain", 2.0, _between(bench, title, "plain", "p99"))
    for group in bench.groups:
        if "tenants:" in group["title"] or group["title"].startswith("many objects"):
            ratio = next((each["ratio"] for each in group["rows"] if "ratio" in each), None)
            at_least(f"{group['title']} against few", THIRD, ratio)
    at_most("a quiet tenant's p99 beside a flood of 10 ×", 2.0, bench.extra.get("fairness", {}).get("ratio"))
    share = bench.extra.get("kms_calls", {}).get("quick", {}).get("share")
    check("KMS calls of all operations", "≤ 1 %", share * 100 if share is not None else None, met=(share or 0) <= 0.01)
    return found


def _ratio(bench: Bench, title: str, name: str) -> float | None:
    row = bench.find(title, name)
    return row.get("ratio") if row else None


def _between(bench: Bench, title: str, other: str, field: str) -> float | None:
    own, base = bench.find(title, "confide"), bench.find(title, other)
    return own[field] / base[field] if own and base else None
