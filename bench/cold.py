"""Cold starts: a worker that has just begun, and each tenant's first request to it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from bench import cell
from bench.cell import Subject
from bench.http import Http
from bench.loadgen import quantiles
from bench.processes import HOST
from bench.suite import Bench, body, service

TENANTS = 200


def cold_start(bench: Bench, confide: Subject, operator: str) -> None:
    """With the vendor's local key. A tenant's first request unwraps its root key, with an event before and after."""
    names = [f"bench-cold-{number}" for number in range(TENANTS)]
    keys = asyncio.run(cell.onboard(confide.port, operator, names))
    path = bench.state / "confide-cold.json"
    asyncio.run(cell.seed_confide(confide.port, keys, path, sessions=TENANTS, objects=1, body=body()))
    started = time.monotonic()
    with service(bench, "confide-cold") as fresh:
        up = time.monotonic() - started
        bench.say("cold start: each tenant's first request, then its second")
        first, second = asyncio.run(first_and_second(fresh.port, json.loads(path.read_text())))
    bench.extra["cold_start"] = {"provider": "local", "seconds_to_serve": up, "first": first, "second": second}
    bench.notes.append(
        f"cold start, local provider: serving after {up:.1f} s; a tenant's first request p50 {first['p50']:.1f} ms,"
        f" p99 {first['p99']:.1f} ms; its second p50 {second['p50']:.1f} ms"
    )


async def first_and_second(port: int, stored: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Quantiles in milliseconds, of one request for each session of a file of targets, and of one more."""
    took: tuple[list[float], list[float]] = [], []
    async with Http(HOST, port) as http:
        for turn in took:
            for owner, session in stored["sessions"]:
                began = time.perf_counter()
                path = f"/v1/sessions/{session}/context/facts/0"
                status, _ = await http.request("GET", path, stored["keys"][owner])
                assert status == 200, status
                turn.append(time.perf_counter() - began)
    first, second = (quantiles(sorted(turn)) for turn in took)
    return first, second
