"""Can a clock tell another tenant's id from one that nothing has? Both are asked for in turns, and the times compared.

    python -m tests.programmes.not_found [--samples 1500] [--seed N]

In one process, without a network between: what is seen here is more than any client sees. For each route: medians, the
chance that a foreign id took longer than an absent one (one half: a clock learns nothing) with the two-sided p of
Mann and Whitney, and the p of Kolmogorov and Smirnov. The last line is the control: an own id against an absent one,
which a clock must tell. An exit status of 1 says that a route's p is below 0.01 divided by the number of routes in both
tests and the medians differ by more than 2 %: a busy machine makes outliers, not that.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

from app.embedded import EmbeddedPostgres
from app.identity import new_id
from app.store.migrate import upgrade
from tests.cell import Tenant, running_cell
from tests.dialogue.calls import commit

DOUBT = 0.01
NOTABLE = 0.02
Ask = Callable[[str], Awaitable[httpx2.Response]]


def routes(tenant: Tenant) -> dict[str, Ask]:
    """The hot routes, reading and writing, and one of the control plane."""
    own = tenant.runtime
    return {
        "GET session": lambda at: own.get(f"/v1/sessions/{at}"),
        "GET context": lambda at: own.get(f"/v1/sessions/{at}/context"),
        "GET object": lambda at: own.get(f"/v1/sessions/{at}/context/c/k"),
        "PUT object": lambda at: own.put(f"/v1/sessions/{at}/context/c/k", content=b"x"),
        "DELETE object": lambda at: own.delete(f"/v1/sessions/{at}/context/c/k"),
        "GET turns": lambda at: own.get(f"/v1/sessions/{at}/turns"),
        "POST load": lambda at: own.post("/v1/load", json={"session": at, "context": [{}], "turns": {"last": 3}}),
        "POST commit": lambda at: own.post("/v1/commit", json={"session": at, "turns": [{"json": 1}]}),
        "DELETE session": lambda at: own.delete(f"/v1/sessions/{at}"),
        "POST hold": lambda at: tenant.admin.post("/v1/privacy/holds", json={"session": at, "reason": "r"}),
    }


async def timed(ask: Ask, at: str, status: int) -> float:
    """Microseconds."""
    began = time.perf_counter()
    answer = await ask(at)
    took = time.perf_counter() - began
    if answer.status_code != status:
        raise SystemExit(f"{answer.status_code} where {status} was expected: {answer.text}")
    return took * 1e6


async def sample(
    ask: Ask, ids: Sequence[str], none: Sequence[str], dice: random.Random, status: int = 404
) -> tuple[list[float], list[float]]:
    """Times for ``ids`` and for those of ``none``, which nothing has: in pairs whose order is drawn."""
    there: list[float] = []
    absent: list[float] = []
    for at, nowhere in zip(ids, none, strict=True):
        pair = [(there, at, status), (absent, nowhere, 404)]
        dice.shuffle(pair)
        for times, asked, expected in pair:
            times.append(await timed(ask, asked, expected))
    return there, absent


# ---------------------------------------------------------------- statistics


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """P(one > other), and the two-sided p by the normal approximation with tied ranks (Mann and Whitney 1947)."""
    ranked = sorted((value, side) for side, values in enumerate((one, other)) for value in values)
    n, m, total = len(one), len(other), len(ranked)
    ranks, ties, place = 0.0, 0.0, 0
    while place < total:
        end = place
        while end < total and ranked[end][0] == ranked[place][0]:
            end += 1
        tied = end - place
        ties += tied**3 - tied
        ranks += sum(1 for _, side in ranked[place:end] if side == 0) * (place + end + 1) / 2
        place = end
    u = ranks - n * (n + 1) / 2
    deviation = math.sqrt(n * m / 12 * (total + 1 - ties / (total * (total - 1))))
    z = (u - n * m / 2) / deviation
    return u / (n * m), math.erfc(abs(z) / math.sqrt(2))


def kolmogorov_smirnov(one: Sequence[float], other: Sequence[float]) -> float:
    """The asymptotic two-sided p of the largest distance between the two distributions (Smirnov 1939)."""
    first, second = sorted(one), sorted(other)
    distance = max(
        abs(bisect.bisect_right(first, at) / len(first) - bisect.bisect_right(second, at) / len(second))
        for at in (*first, *second)
    )
    scaled = distance * math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    if scaled < 0.2:
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)))


def judge(name: str, there: list[float], absent: list[float]) -> tuple[float, float, float]:
    """Print a line; answer both p and the medians' relative difference."""
    medians = statistics.median(there), statistics.median(absent)
    longer, p = mann_whitney(there, absent)
    smirnov = kolmogorov_smirnov(there, absent)
    figures = f"{medians[0]:>9.0f} µs{medians[1]:>9.0f} µs   {longer:>6.3f}   {p:>8.3g}   {smirnov:>8.3g}"
    print(f"{name:<16}{figures}", flush=True)
    return p, smirnov, abs(medians[0] - medians[1]) / medians[1]


# ---------------------------------------------------------------- the run


async def run(url: str, state: Path, samples: int, seed: int) -> int:
    dice = random.Random(seed)
    async with running_cell(url, state, sealer="process") as cell:
        one, other = await cell.tenant("one"), await cell.tenant("other")
        foreign = [await _session(other) for _ in range(samples)]
        own = [await _session(one, objects=20) for _ in range(min(samples, 300))]
        none = [str(new_id()) for _ in foreign]  # asked for as often as the foreign ones: caches by id treat both alike
        asks = routes(one)
        for ask in asks.values():
            await sample(ask, foreign[:30], none[:30], dice)
        print(f"{samples} pairs a route, seed {seed}")
        print(f"{'':<16}{'foreign':>12}{'absent':>12}   longer   p (M-W)   p (K-S)")
        told = 0
        for name, ask in asks.items():
            p, smirnov, difference = judge(name, *await sample(ask, foreign, none, dice))
            told += max(p, smirnov) < DOUBT / len(asks) and difference > NOTABLE
        p, _, _ = judge("own (control)", *await sample(asks["GET context"], own, none[: len(own)], dice, 200))
    if p > DOUBT:
        print("The control saw nothing: the run is worth nothing.")
        return 1
    print("A clock can tell." if told else "A clock can't tell.")
    return min(told, 1)


async def _session(tenant: Tenant, objects: int = 1) -> str:
    made: dict[str, Any] = await commit(
        tenant.runtime,
        external_id=str(new_id()),
        create={},
        put=[{"collection": "c", "key": f"k{number}", "json": 1} for number in range(objects)],
        turns=[{"json": 1}],
    )
    return str(made["session"]["id"])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, default=1500)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="confide-not-found-") as folder,
        # Without waiting for the disk: that would hide what the rest takes.
        EmbeddedPostgres.start(Path(folder) / "postgres", durable=False) as server,
    ):
        upgrade(server.superuser_url())
        return asyncio.run(run(server.superuser_url(), Path(folder) / "state", given.samples, given.seed))


if __name__ == "__main__":
    sys.exit(main())
