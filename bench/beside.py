"""What else a cell does while dialogues go on: an auditor's questions, erasures, and all data encrypted anew."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from statistics import median
from uuid import uuid4

from bench.cell import Subject
from bench.http import Http
from bench.measure import LoadError, Measured, run
from bench.processes import HOST
from bench.suite import Bench, body

RATE = 100
"""Reads a second, and as many writes."""
SECONDS = 10.0
Job = Callable[[Http, Mapping[str, str]], Awaitable[int]]
"""Does its work once, with a connection and API keys by role; answers how much it did."""
QUESTIONS = ("action=context.read", "outcome=allowed", "purpose=serve", "order=oldest", "from=2026-01-01T00:00:00Z")


async def audit_queries(http: Http, keys: Mapping[str, str]) -> int:
    """First pages of a hundred events each."""
    for each in QUESTIONS:
        await http.json("GET", f"/v1/audit/events?limit=100&{each}", keys["auditor"], None)
    return len(QUESTIONS)


async def erasures(http: Http, keys: Mapping[str, str]) -> int:
    """A session of five objects and ten turns, and its erasure to the receipt."""
    puts = [{"collection": "facts", "key": str(each), "json": json.loads(body())} for each in range(5)]
    commit = {"external_id": f"bench-{uuid4()}", "create": {}, "put": puts, "turns": [{"json": "turn"}] * 10}
    made = await http.json("POST", "/v1/commit", keys["runtime"], commit)
    asked = {"session": made["session"]["id"]}
    job = (await http.json("POST", "/v1/privacy/erasures", keys["admin"], asked))["id"]
    await http.done(f"/v1/privacy/erasures/{job}", keys["admin"])
    return 1


async def rekeys(http: Http, keys: Mapping[str, str]) -> int:
    """All that the tenant holds, under new container keys and a new index key."""
    job = (await http.json("POST", "/v1/keys/rekey", keys["admin"], None))["job"]
    await http.done(f"/v1/jobs/{job}", keys["admin"])
    return 1


class _Worker(threading.Thread):
    """Repeats a job on a connection of its own until it is told to stop; the last one is finished."""

    def __init__(self, job: Job, port: int, keys: Mapping[str, str]) -> None:
        super().__init__(name="beside", daemon=True)
        self.done = 0
        self.error: Exception | None = None
        self._job, self._port, self._keys = job, port, keys
        self._ending = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._repeat())
        except Exception as error:  # noqa: BLE001  it is raised where the load ends
            self.error = error

    async def _repeat(self) -> None:
        async with Http(HOST, self._port) as http:
            while not self._ending.is_set():
                self.done += await self._job(http, self._keys)

    def end(self) -> None:
        self._ending.set()
        self.join(120)
        if self.error is not None:
            raise LoadError(f"beside the load: {self.error}")


@contextmanager
def beside(job: Job, port: int, keys: Mapping[str, str], done: list[int]) -> Iterator[None]:
    worker = _Worker(job, port, keys)
    worker.start()
    try:
        yield
    finally:
        worker.end()
        done.append(worker.done)


def jobs(bench: Bench, confide: Subject, values: Mapping[str, str]) -> None:
    """Reads and writes of the tenant whose data the jobs are about, alone and beside each of them."""
    keys = {role: values[f"CONFIDE_{role.upper()}_KEY"] for role in ("runtime", "admin", "auditor")}
    kinds: dict[str, Job | None] = {
        "alone": None,
        "beside audit queries": audit_queries,
        "beside erasures": erasures,
        "beside rekeys": rekeys,
    }
    streams = [{"workload": "get"}, {"workload": "put"}]
    load = {"streams": streams, "rates": [RATE] * 2, "connections": 64, "seconds": SECONDS}
    runs: dict[str, list[Measured]] = {name: [] for name in kinds}
    done: dict[str, list[int]] = {name: [] for name in kinds}
    for number in range(bench.plan.rounds):
        for name, job in kinds.items():
            bench.say(f"{RATE} get/s and {RATE} put/s, {name}: round {number + 1}")
            bench.database.checkpoint()
            with beside(job, confide.port, keys, done[name]) if job else nullcontext():
                runs[name].append(run(confide, bench.database.pid, {"seed": number + 1, **load}))
    title = f"{RATE} get/s and {RATE} put/s"
    bench.add(title, runs, "alone")
    for name, counts in done.items():
        if counts:
            p99 = [_ratio(own, base) for own, base in zip(runs[name], runs["alone"], strict=True)]
            bench.notes.append(
                f"{title}, {name}: {median(counts):.0f} in {SECONDS:.0f} s; p99 {median(p99):.2f} × that alone"
            )
            bench.extra.setdefault("beside", {})[name] = {"done": counts, "p99": p99}


def _ratio(own: Measured, base: Measured) -> float:
    return own.p99 / base.p99
