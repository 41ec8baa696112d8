"""Parts that change the stock or the surroundings: sizes, tenants, objects, workers, cold starts, peers."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from statistics import median

from bench import cell
from bench.cell import Subject
from bench.http import RefusedError
from bench.measure import LoadError, Measured, run, run_peer
from bench.peers.servers import PYTHON, MissingError, Ready, debian_postgres, openbao, redis
from bench.processes import ServerError, memory_bytes
from bench.suite import Bench, body, plain_service, service

PEERS = ("langgraph", "langgraph encrypted", "pgcrypto", "openbao", "redis")


def stock(
    bench: Bench, confide: Subject, name: str, keys: list[str], *, sessions: int, objects: int, size: int = 4096
) -> Subject:
    """More sessions for the running service, under a file of targets of their own."""
    path = bench.state / f"confide-{name}.json"
    started = time.monotonic()
    many = {"sessions": sessions, "objects": objects, "body": body(size)}
    asyncio.run(cell.seed_confide(confide.port, keys, path, **many))
    bench.say(f"{name}: {sessions * objects:,} objects seeded in {time.monotonic() - started:.0f} s")
    return replace(confide, targets=path)


def sizes(bench: Bench, confide: Subject, key: str) -> None:
    """64 KiB and 1 MiB, against plain with the same objects."""
    for title, size, sessions in (("64 KiB", 1 << 16, 128), ("1 MiB", 1 << 20, 24)):
        own = stock(bench, confide, title.replace(" ", ""), [key], sessions=sessions, objects=2, size=size)
        smaller = replace(bench, plan=replace(bench.plan, sessions=sessions, objects=2))
        with plain_service(smaller, f"plain_{size}", content=body(size)) as other:
            pair = [replace(other, name="plain"), own]
            for workload in ("put", "get"):
                job = {"workload": workload, "size": size, "connections": 8}
                bench.interleave(f"{title} {workload}, 8 connections", pair, job, rounds=2)


def tenants(bench: Bench, confide: Subject, operator: str, key: str) -> None:
    """The same number of sessions, spread over many tenants."""
    names = [f"bench-{number}" for number in range(bench.plan.tenants)]
    before = memory_bytes(confide.pid)
    started = time.monotonic()
    keys = asyncio.run(cell.onboard(confide.port, operator, names))
    bench.say(f"{len(keys):,} tenants onboarded in {time.monotonic() - started:.0f} s")
    sessions = max(bench.plan.sessions, len(keys))
    many = stock(bench, confide, "tenants", keys, sessions=sessions, objects=bench.plan.objects)
    one = stock(bench, confide, "tenant", [key], sessions=sessions, objects=bench.plan.objects)
    title = f"{len(keys):,} tenants"
    pair = [replace(one, name="confide, 1 tenant"), replace(many, name=f"confide, {title}")]
    for workload in ("put", "get"):
        bench.interleave(f"{title}: {workload}", pair, {"workload": workload}, base=pair[0].name)
    grown = memory_bytes(confide.pid) - before
    bench.extra["bytes_per_tenant"] = grown / len(keys)
    bench.notes.append(f"{title} and {2 * sessions:,} sessions in memory: {grown / 1e6:.0f} MB more in the worker")


def many_objects(bench: Bench, confide: Subject, key: str) -> None:
    """Ten thousand against a great many."""
    if not bench.plan.many_objects:
        bench.notes.append("1 million objects: only in make bench-full")
        return
    few = replace(confide, name="confide, 10,000 objects")
    large = stock(bench, confide, "large", [key], sessions=bench.plan.many_objects // 100, objects=100)
    pair = [few, replace(large, name=f"confide, {bench.plan.many_objects:,} objects")]
    for workload in ("put", "get"):
        bench.interleave(f"many objects: {workload}", pair, {"workload": workload}, base=few.name)


def fairness(bench: Bench, confide: Subject, operator: str) -> None:
    """A quiet tenant's latencies alone, and beside one that asks ten times as much."""
    keys = asyncio.run(cell.onboard(confide.port, operator, ["bench-quiet", "bench-loud"]))
    both = stock(bench, confide, "fairness", keys, sessions=400, objects=5)
    alone = {"streams": [{"workload": "put", "tenant": 0}], "rates": [50], "connections": 64}
    flooded = {
        "streams": [{"workload": "put", "tenant": 0}, {"workload": "put", "tenant": 1}],
        "rates": [50, 500],
        "connections": 256,
    }
    bench.interleave("quiet tenant alone, 50/s", [both], alone, base=None)
    bench.interleave("quiet tenant beside 500/s of another", [both], flooded, base=None)
    quiet = [run.detail["streams"][0]["p99"] for run in bench.runs["quiet tenant beside 500/s of another", "confide"]]
    before = [run.detail["streams"][0]["p99"] for run in bench.runs["quiet tenant alone, 50/s", "confide"]]
    if quiet and before:
        ratio = median(quiet) / median(before)
        bench.extra["fairness"] = {"alone_p99": sorted(before), "flooded_p99": sorted(quiet), "ratio": ratio}


def workers(bench: Bench) -> None:
    """Two worker processes against one, on the same store."""
    with ExitStack() as stack:
        pair = []
        for count in (1, 2):
            name = f"confide, {count} worker{'s' * (count - 1)}"
            pair.append(replace(stack.enter_context(service(bench, name, workers=count)), name=name))
        for workload in ("put", "get"):
            bench.interleave(f"workers: {workload}", pair, {"workload": workload}, base=pair[0].name)


def peers(bench: Bench, confide: Subject) -> None:
    """Each peer's puts and gets between Confide's, in the same rounds."""
    if not PYTHON.exists():
        bench.notes.append("peers: their clients are not installed; make bench installs them")
        return
    url = bench.database.for_plain("peers")
    servers: dict[str, Callable[[], AbstractContextManager[Ready]]] = {
        "pgcrypto": lambda: debian_postgres(bench.state),
        "openbao": lambda: openbao(bench.state / "bao", url, bench.database.pid),
        "redis": lambda: redis(bench.state / "redis"),
    }
    with ExitStack() as stack:
        ready: dict[str, Ready] = {}
        for name in PEERS:
            try:
                if name in servers:
                    ready[name] = stack.enter_context(servers[name]())
                else:
                    own = bench.database.for_plain(name.replace(" ", "_"), storage="none")
                    ready[name] = Ready((bench.database.pid,), {"url": own})
                run_peer(PYTHON, name, ready[name], {"workload": "fill"})
            except (MissingError, LoadError, ServerError, RefusedError, OSError, subprocess.SubprocessError) as error:
                bench.notes.append(f"left out, {name}: {error}")
                ready.pop(name, None)
        for workload in ("put", "get"):
            _peer_rounds(bench, confide, ready, workload)


def _peer_rounds(bench: Bench, confide: Subject, ready: dict[str, Ready], workload: str) -> None:
    runs: dict[str, list[Measured]] = {name: [] for name in ("confide", *ready)}
    for number in range(bench.plan.rounds):
        bench.database.checkpoint()
        job = {"workload": workload, "seconds": bench.plan.seconds, "seed": number}
        bench.say(f"peers, {workload}: round {number + 1}")
        try:
            runs["confide"].append(run(confide, bench.database.pid, job))
            for name, server in ready.items():
                measured = run_peer(PYTHON, name, server, job)
                assert measured is not None
                runs[name].append(measured)
        except LoadError as error:
            bench.notes.append(f"peers, {workload}: {error}")
    rounds = min(len(own) for own in runs.values())
    bench.add(f"peers: {workload}", {name: own[:rounds] for name, own in runs.items()}, "confide")
