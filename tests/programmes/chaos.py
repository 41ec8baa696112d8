"""Kill -9 at random moments under load, then hold every answer that anybody got against the log and the data.

    python -m tests.programmes.chaos [--cycles 20] [--seed N] [--clients 24] [--only main|control]

The service runs as users run it: ``confide serve`` with two workers and its embedded PostgreSQL. In each cycle
something is killed: a worker, all workers, the sealer, the database's postmaster, a backend, its supervisor, the
service's own process, or everything at once; often a second time while it comes back. At the end

  - every answer that released content or acknowledged a write has its event, with action, container, versions, turns,
  - every acknowledged write is there, versions and turns run without a gap, and no precondition held that couldn't,
  - what had no answer was done whole or not at all, and a repeated request got the first answer,
  - the log's export verifies against a checkpoint kept from before, and no writer's numbers have a gap,
  - no process outlived its service.

Then parts of the record are taken away, one at a time: the reconciler must name each. Last comes the control, the same
load over a database that acknowledges before its log is written: there, reads and writes must be found lost.

Exit status: 0 as it should be; 1 a promise was broken, or a loss wasn't seen.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.programmes.audit_crash import Failed
from tests.programmes.chaos_after import checkpoint, exported, finals, gaps, journal
from tests.programmes.chaos_blindness import blindness
from tests.programmes.chaos_load import Client, World
from tests.programmes.chaos_reconcile import Reconciliation
from tests.programmes.chaos_record import KINDS as FINDINGS
from tests.programmes.chaos_record import Finding, Record
from tests.programmes.chaos_service import KINDS, Service

CYCLES = 20
CLIENTS = 24
SLOW_CLIENTS = 3
CONTROL_CYCLES = 5
ACKNOWLEDGED_A_CYCLE = 300
PROGRESS_SECONDS = 90.0
DRAIN_SECONDS = 60.0
REGION = "eu-central-1"
READ_LOSS, WRITE_LOSS = "read-without-event", "write-without-event"


@dataclass
class Run:
    """A service under load, and what was done to it."""

    service: Service
    world: World
    random: random.Random
    keys: dict[str, str]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def client(self, role: str) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self.keys[f'CONFIDE_{role}_KEY']}"}
        return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.service.port}", headers=headers, timeout=60)

    def set_off(self, clients: int) -> None:
        """The clients begin. They go on until ``settle``."""
        self.world.issuing = self.world.running = True
        for number in range(clients + SLOW_CLIENTS):
            client = Client(self.world, self.random.getrandbits(32), slow=number >= clients)
            self.tasks.append(asyncio.create_task(client.run()))

    async def progress(self, many: int) -> None:
        """Until so many more requests are acknowledged. Raises Failed where the service doesn't come back."""
        goal, deadline = self.world.acknowledged + many, time.monotonic() + PROGRESS_SECONDS
        while self.world.acknowledged < goal:
            for task in self.tasks:
                if task.done():
                    task.result()
            self.service.keep()
            if time.monotonic() > deadline:
                raise Failed(f"no progress within {PROGRESS_SECONDS:.0f} s")
            await asyncio.sleep(0.02)

    async def harm(self, kind: str) -> str:
        found = await self.service.harm(kind)
        self.kills[kind] += found
        return kind if found else f"({kind}: none at this moment)"

    async def settle(self, *, repeat: bool) -> None:
        """Nothing new is begun; what has no answer yet is repeated until it has one, where that is asked for."""
        self.world.issuing, self.world.running = False, repeat
        await self.service.start()
        done, pending = await asyncio.wait(self.tasks, timeout=DRAIN_SECONDS)
        self.world.running = False
        for task in done:
            task.result()
        if pending:
            raise Failed(f"{len(pending)} clients still repeat a request after {DRAIN_SECONDS:.0f} s")
        self.tasks.clear()


async def begin(folder: Path, seed: int) -> Run:
    """A new service that answers, with its demo tenant."""
    chance = random.Random(seed)
    service = Service(folder, random.Random(seed + 1))
    try:
        await service.start()
    except BaseException:
        service.kill_all()
        raise
    keys = service.keys()
    return Run(service, World(service.port, keys["CONFIDE_RUNTIME_KEY"], chance), chance, keys)


@dataclass
class Verdict:
    """What a run has shown. ``record`` for who wants to look further."""

    findings: list[Finding]
    record: Record
    checked: Counter[str]
    log: str = ""


async def crash(
    run: Run, cycles: int, clients: int, kinds: Sequence[str] = KINDS, many: int = ACKNOWLEDGED_A_CYCLE
) -> Verdict:
    """The load and the kills, and what came of them. ``many``: requests that must be acknowledged before each."""
    run.set_off(clients)
    bag: list[str] = []
    async with run.client("AUDITOR") as auditor:
        kept = await checkpoint(auditor)
        for cycle in range(1, cycles + 1):
            await run.progress(many)
            if cycle == cycles // 2:
                kept = await checkpoint(auditor)
            await asyncio.sleep(run.random.uniform(0, 0.5))
            bag = bag or run.random.sample(kinds, len(kinds))
            killed = [await run.harm(bag.pop())]
            if run.random.random() < 0.35:
                await asyncio.sleep(run.random.uniform(0, 1.5))
                killed.append(await run.harm(run.random.choice(kinds)))
            print(f"cycle {cycle}: killed {' and '.join(killed)}; {run.world.acknowledged} acknowledged", flush=True)
        await run.progress(many)
        await run.settle(repeat=True)
        async with run.client("RUNTIME") as runtime:
            found = await finals(runtime, run.world.intents)
        events, findings, log = await exported(auditor, kept)
    judged = Reconciliation(Record(run.world.intents, events, found))
    findings = [*judged.run(), *findings, *await gaps(run.service.database_url())]
    return Verdict(findings, judged.record, judged.checked, log)


async def control(run: Run, cycles: int, clients: int) -> Verdict:
    """The same over a database that loses. Ends once reads and writes were found lost."""
    await run.service.make_it_lose()
    verdict = Verdict([], Record([], [], {}), Counter())
    for cycle in range(1, cycles + 1):
        run.set_off(clients)
        await run.progress(ACKNOWLEDGED_A_CYCLE)
        await asyncio.sleep(run.random.uniform(0, 0.5))
        await run.harm("postmaster")
        await run.settle(repeat=False)
        async with run.client("RUNTIME") as runtime:
            found = await finals(runtime, run.world.intents)
        events = await journal(run.service.database_url(), REGION)
        judged = Reconciliation(Record(run.world.intents, events, found))
        verdict = Verdict(judged.run(), judged.record, judged.checked)
        reads, writes = losses(verdict)
        print(f"control cycle {cycle}: killed postmaster; {reads} reads and {writes} writes lost", flush=True)
        if reads and writes:
            break
    return verdict


def losses(verdict: Verdict) -> tuple[int, int]:
    """How many requests that read and that wrote were found lost, each counted once."""
    lost = {(finding.kind, finding.text.partition(": ")[0]) for finding in verdict.findings}
    kinds = Counter(kind for kind, _ in lost)
    return kinds[READ_LOSS], kinds[WRITE_LOSS]


def show(findings: Sequence[Finding], most: int = 5) -> None:
    for kind in dict.fromkeys(finding.kind for finding in findings):
        texts = [finding.text for finding in findings if finding.kind == kind]
        print(f"{len(texts)} × {kind}: {FINDINGS[kind]}")
        for text in texts[:most]:
            print(f"    {text}")


async def main_part(args: argparse.Namespace, folder: Path) -> bool:
    began = time.monotonic()
    run = await begin(folder, args.seed)
    try:
        verdict = await crash(run, args.cycles, args.clients)
        verdict.findings += await run.service.stop()
    except Failed:
        print("the last errors in the service's log:", *run.service.errors()[-20:], sep="\n    ")
        raise
    finally:
        run.service.kill_all()
    attempts = sum(len(intent.attempts) for intent in run.world.intents)
    print(f"\n{len(run.world.intents)} requests in {attempts} attempts, {time.monotonic() - began:.0f} s")
    print("killed: " + ", ".join(f"{many} × {kind}" for kind, many in sorted(run.kills.items())))
    print("answers: " + ", ".join(f"{many} × {kind}" for kind, many in run.world.outcomes.most_common()))
    print("held against the log: " + ", ".join(f"{many} {what}" for what, many in verdict.checked.most_common()))
    print(f"export: {verdict.log}")
    show(verdict.findings)
    if verdict.findings:
        for line in run.service.errors(" ".join(finding.text for finding in verdict.findings))[:10]:
            print(f"    log: {line}")
        return False
    print("no promise was broken")
    found, missed = blindness(verdict.record, random.Random(args.seed))
    print(f"taken away and named: {'; '.join(found)}")
    if missed:
        print(f"TAKEN AWAY AND NOT SEEN: {'; '.join(missed)}")
    return not missed


async def control_part(args: argparse.Namespace, folder: Path) -> bool:
    run = await begin(folder, args.seed)
    try:
        verdict = await control(run, CONTROL_CYCLES, args.clients)
    finally:
        run.service.kill_all()
    reads, writes = losses(verdict)
    if not reads or not writes:
        print(f"control: CANNOT SEE A LOSS ({reads} reads, {writes} writes)")
        return False
    print(f"control: {reads} reads released without an event that lasted, {writes} acknowledged writes lost: seen")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--only", choices=("main", "control"))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    good = True
    for name, part in (("main", main_part), ("control", control_part)):
        if args.only in {None, name} and good:
            with tempfile.TemporaryDirectory(prefix="confide-chaos-") as folder:
                try:
                    good = asyncio.run(part(args, Path(folder)))
                except Failed as failure:
                    print(f"FAILED: {failure}")
                    good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
