"""The table on the terminal, the plot (SVG, written by hand) and the results as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results"
BUSY = (
    "[red]Other programs were using the processors when this began. The kernel shares them out by process, so that"
    " plain, with its 32 server processes, gets more of them than Confide: compare CPU a request, not rates.[/]"
)
GOOD, BAD, PLAIN = "#2a9d6f", "#d1495b", "#8a94a6"


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": [round(each, 2) for each in os.getloadavg()],
        "busy": os.getloadavg()[0] > (os.cpu_count() or 1) / 2,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save(results: dict[str, Any]) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = RESULTS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(results, indent=1))
    (RESULTS / "latest.json").write_text(path.read_text())
    plot = svg(results)
    stem.with_suffix(".svg").write_text(plot)
    (RESULTS / "latest.svg").write_text(plot)
    return path


def show(results: dict[str, Any], console: Console) -> None:
    console.print(_rates(results))
    if results["machine"]["busy"]:
        console.print(BUSY)
    for note in results["notes"]:
        console.print(f"[yellow]{note}[/]")
    if results["checks"]:
        console.print(_checks(results))


def markdown(results: dict[str, Any]) -> str:
    """The tables of docs/performance.md."""
    lines = [
        "| workload | variant | × | spread | × CPU | per s | p50 ms | p99 ms | CPU µs: service (worker) + database |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for group in results["groups"]:
        for row in group["rows"]:
            spread = row.get("ratio_spread")
            ratio = "1 | |"
            if spread:
                ratio = f"{row['ratio']:.2f} | {spread[0]:.2f} – {spread[1]:.2f} | {row['cpu_ratio']:.2f}"
            cpu = f"{row['service']:.0f} ({row.get('first', 0):.0f}) + {row['database']:.0f}"
            rates = f"{row['rate']:,.0f} | {row['p50']:.2f} | {row['p99']:.2f}"
            lines.append(f"| {group['title']} | {row['name']} | {ratio} | {rates} | {cpu} |")
    lines += ["", "| target | wanted | measured | |", "| --- | --- | ---: | --- |"]
    for check in results["checks"]:
        verdict = "met" if check["met"] else "missed"
        lines.append(f"| {check['name']} | {check['wanted']} | {check['measured']:.2f} | {verdict} |")
    return "\n".join(lines)


def _rates(results: dict[str, Any]) -> Table:
    table = Table(title="Ratios against plain in the same rounds; medians, with the lowest and highest round")
    for name in ("workload", "variant"):
        table.add_column(name)
    for name in ("x plain", "spread", "requests/s", "p50 ms", "p99 ms", "service µs", "database µs", "generator CPU"):
        table.add_column(name, justify="right")
    for group in results["groups"]:
        for row in group["rows"]:
            spread = row.get("ratio_spread")
            table.add_row(
                group["title"],
                row["name"],
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                f"{spread[0]:.2f}–{spread[1]:.2f}" if spread else "",
                f"{row['rate']:,.0f}",
                f"{row['p50']:.2f}",
                f"{row['p99']:.2f}",
                f"{row['service']:.0f}",
                f"{row['database']:.0f}",
                f"{row['generator']:.0%}",
            )
        table.add_section()
    return table


def _checks(results: dict[str, Any]) -> Table:
    table = Table(title="Targets")
    for name in ("target", "wanted", "measured", ""):
        table.add_column(name, justify="left" if name == "target" else "right")
    for check in results["checks"]:
        met = "[green]met[/]" if check["met"] else "[red]missed[/]"
        table.add_row(check["name"], check["wanted"], f"{check['measured']:.2f}", met)
    return table


def svg(results: dict[str, Any]) -> str:
    """Bars of the ratios, a line at plain's 1.0."""
    bars = [(f"{g['title']}: {r['name']}", r) for g in results["groups"] for r in g["rows"] if "ratio" in r]
    most = max([row["ratio_spread"][1] for _, row in bars] or [1.0]) * 1.05
    left, width, step = 290, 520, 20
    height = len(bars) * step + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" font-size="12">',
        "<style>text { font-family: sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="18" fill="#333">throughput against plain, same rounds (bar: median, line: spread)</text>',
    ]
    for number, (name, row) in enumerate(bars):
        parts += _bar(name, row, 30 + number * step, left, width / most)
    x = left + width / most
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="26" y2="{height - 16}" stroke="#333" stroke-dasharray="3 3"/>')
    return "\n".join([*parts, "</svg>\n"])


def _bar(name: str, row: dict[str, Any], y: int, left: int, scale: float) -> Sequence[str]:
    low, high = row["ratio_spread"]
    ratio = row["ratio"]
    colour = PLAIN if not row["name"].startswith("confide") else GOOD if ratio >= 1 else BAD
    return (
        f'<text x="{left - 8}" y="{y + 12}" text-anchor="end" fill="#333">{escape(name)}</text>',
        f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="14" fill="{colour}"/>',
        f'<line x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="#111"/>',
        f'<text x="{left + high * scale + 6:.1f}" y="{y + 12}" fill="#333">{ratio:.2f}</text>',
    )


if __name__ == "__main__":  # python -m bench.report [results.json]: as Markdown
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    print(markdown(json.loads(chosen.read_text())))
