"""A run of one peer, in a process of its own: its client library is part of what it costs.

python -m bench.peers < job.json      prints what the load generator prints
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from array import array
from typing import Any

from bench.loadgen import quantiles
from bench.peers.peer import NAMES, Peer
from bench.peers.rows import PgCrypto, Transit
from bench.peers.stores import LangGraph, Redis
from bench.workloads import json_bytes

WARMUP = 0.5


def made(name: str) -> Peer:
    if name.startswith("langgraph"):
        return LangGraph(encrypted=name.endswith("encrypted"))
    return {"pgcrypto": PgCrypto, "openbao": Transit, "redis": Redis}[name]()


async def run(job: dict[str, Any]) -> dict[str, Any]:
    peer = made(job["peer"])
    await peer.open(job)
    source = random.Random(job.get("seed", 1))
    bodies = [json_bytes(4096, source) for _ in range(16)]
    names = job.get("names", NAMES)
    if job["workload"] == "fill":
        await _fill(peer, job["connections"], names, bodies)
        await peer.close()
        return {}
    found = await _measured(peer, job, names, bodies, source)
    await peer.close()
    return found


async def _fill(peer: Peer, tasks: int, names: int, bodies: list[bytes]) -> None:
    numbers = iter(range(names))

    async def work(task: int) -> None:
        for number in numbers:
            await peer.write(task, number, bodies[number % len(bodies)])

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(work(task))


async def _measured(
    peer: Peer, job: dict[str, Any], names: int, bodies: list[bytes], source: random.Random
) -> dict[str, Any]:
    clock = time.perf_counter
    begin = clock() + WARMUP
    end = begin + job["seconds"]
    latencies = array("d")
    begun = False

    async def work(task: int) -> None:
        nonlocal begun
        while (now := clock()) < end:
            if not begun and now >= begin:
                begun = True
                print("begin", flush=True)
            number = source.randrange(names)
            if job["workload"] == "put":
                await peer.write(task, number, bodies[number % len(bodies)])
            else:
                assert await peer.read(task, number)
            if now >= begin:
                latencies.append(clock() - now)

    async with asyncio.TaskGroup() as group:
        for task in range(job["connections"]):
            group.create_task(work(task))
    print("end", flush=True)
    every = sorted(latencies)
    answers = len(every)
    return {
        "seconds": job["seconds"],
        "answers": answers,
        "rate": answers / job["seconds"],
        "generator_cpu": 0.0,
        "statuses": {"200": answers},
        "failure": "",
        **quantiles(every),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))), flush=True)
