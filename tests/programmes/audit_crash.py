"""Kill -9 of workers, the sealer and PostgreSQL at random moments under load: what was acknowledged is in the log.

    python -m tests.programmes.audit_crash [--cycles 50] [--seed N] [--control]

After each cycle: every acknowledged commit has its event in the tree, the export verifies offline against the
checkpoint kept from the cycle before (no gap, no inconsistent checkpoint), and the log still has its first origin.
``--control`` runs the workers with synchronous_commit=off and kills PostgreSQL only: it must see a loss, or the test
would see none either.

Exit status: 0 as it should be (with --control: a loss was seen); 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil

from app.audit.verify import verify
from app.embedded import EmbeddedPostgres
from app.store import migrate
from tests.cell import REGION, running_cell
from tests.ports import Port

ROOT = Path(__file__).parents[2]
CLIENTS = 8
SETTLE_SECONDS = 60.0
WORKER = """
import sys
from app.store import connection
if sys.argv[1] == "off":
    connection.SETTINGS["synchronous_commit"] = "off"
from app.__main__ import main
sys.exit(main(["serve", "--port", sys.argv[2]]))
"""


class Failed(Exception):
    """What the log should have and hasn't."""


@dataclass
class Worker:
    """A served process that is started again whenever it is gone."""

    held: Port
    environment: dict[str, str]
    commit: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.held.number

    def start(self) -> None:
        with (Path(self.environment["CONFIDE_STATE_DIR"]) / f"worker-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, self.commit, str(self.port)],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def revive(self) -> None:
        """One that was started while the database was starting has given up."""
        if self.process is not None and self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Run:
    """One run's processes and what it was promised."""

    server: EmbeddedPostgres
    database: str
    workers: list[Worker]
    keys: dict[str, str]
    tenant: str
    random: random.Random
    acknowledged: set[str] = field(default_factory=set)
    attempts: int = 0
    refused: int = 0
    kept: bytes | None = None
    lost: int = 0
    running: bool = True

    # ------------------------------------------------------------ load

    async def load(self, number: int) -> None:
        """Commit turn after turn; only an answer of 200 counts as a promise."""
        turn = 0
        async with httpx2.AsyncClient(
            headers={"authorization": f"Bearer {self.keys['runtime']}"}, timeout=10
        ) as client:
            while self.running:
                turn += 1
                self.attempts += 1
                body = {
                    "external_id": f"call-{number}-{turn // 20}",
                    "create": {},
                    "turns": [{"json": {"turn": turn}}],
                }
                worker = self.workers[(number + turn) % len(self.workers)]
                try:
                    answer = await client.post(f"{worker.url}/v1/commit", json=body)
                except httpx2.HTTPError:
                    self.refused += 1
                    await asyncio.sleep(0.1)
                    continue
                if answer.status_code == 200:
                    self.acknowledged.add(answer.headers["confide-request-id"])
                else:
                    self.refused += 1
                    await asyncio.sleep(0.05)

    async def progress(self) -> None:
        """Until a few dozen more commits are acknowledged, and then to a random moment."""
        goal, deadline = len(self.acknowledged) + 40, time.monotonic() + SETTLE_SECONDS
        while len(self.acknowledged) < goal and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.sleep(self.random.uniform(0.0, 1.0))

    # ------------------------------------------------------------ harm

    async def sealer(self) -> psutil.Process | None:
        """The process that leads, found by its connection: a worker, or what it keeps beside itself."""
        connection = await asyncpg.connect(self.database)
        try:
            port = await connection.fetchval(
                "SELECT a.client_port FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.objid = 7203553 AND l.granted"
            )
        finally:
            await connection.close()
        for worker in self.workers:
            with suppress(psutil.Error):
                parent = psutil.Process(worker.process.pid)
                for process in (parent, *parent.children(recursive=True)):
                    if port in {one.laddr.port for one in process.net_connections()}:
                        return process
        return None

    async def harm(self, control: bool) -> str:
        kind = (
            "postgres" if control else self.random.choice(["worker", "worker", "sealer", "sealer", "postgres", "all"])
        )
        victims: list[Worker] = []
        if kind == "sealer":
            with suppress(OSError, asyncpg.PostgresError, psutil.Error):
                leader = await self.sealer()
                if leader is None:
                    kind = "nobody, for no sealer led"
                else:
                    leader.kill()
        elif kind == "worker":
            victims = [self.random.choice(self.workers)]
        elif kind == "all":
            victims = list(self.workers)
        if kind in {"postgres", "all"}:
            os.kill(self.server.postmaster_pid, signal.SIGKILL)
        for worker in victims:
            worker.kill()
        await asyncio.sleep(self.random.uniform(0, 0.5))
        for worker in victims:
            worker.start()
        for worker in self.workers:
            worker.revive()
        return kind

    # ------------------------------------------------------------ judgement

    async def check(self, promised: set[str], *, control: bool) -> dict[str, Any]:
        """Raises Failed where a promise is broken. Counts losses instead where they are expected."""
        found = await self._sealed()
        missing = promised - found
        if missing and not control:
            raise Failed(f"{len(missing)} acknowledged commits have no event in the tree, e.g. {min(missing)}")
        self.lost = max(self.lost, len(missing))
        if control:
            return {"acknowledged": len(promised), "lost": len(missing)}
        params = {"known": int(self.kept.split(b"\n")[1])} if self.kept is not None else {}
        async with httpx2.AsyncClient(
            headers={"authorization": f"Bearer {self.keys['auditor']}"}, timeout=60
        ) as client:
            keys = (await self._get(client, "/v1/audit/checkpoints")).json()["keys"]
            export = (await self._get(client, "/v1/audit/export", params)).content
            report = verify(export.splitlines(), keys, self.kept)
            if report.exit_code:
                raise Failed(f"the export doesn't verify: {report.findings[:3]}")
            if not report.origin.endswith(self.tenant):
                raise Failed("the log had to open a new epoch")
        self.kept = report.checkpoint.encode()
        return {"acknowledged": len(promised), "events": report.events, "size": report.size}

    async def _sealed(self) -> set[str]:
        """Requests of sealed events, once every event that was committed before is in the tree."""
        deadline = time.monotonic() + SETTLE_SECONDS
        goal: dict[Any, int] | None = None
        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(self.database)
                try:
                    waiting = await connection.fetch("SELECT * FROM confide_audit.waiting_writers()")
                    goal = goal if goal is not None else {row["writer"]: row["top"] for row in waiting}
                    if all(row["mark"] >= goal.get(row["writer"], 0) for row in waiting):
                        rows = await connection.fetch(
                            "SELECT entry FROM confide_audit.event WHERE action = 'context.commit'"
                        )
                        return {json.loads(row["entry"])["request"] for row in rows}
                finally:
                    await connection.close()
            for worker in self.workers:
                worker.revive()
            if time.monotonic() > deadline:
                raise Failed("the sealer didn't catch up")
            await asyncio.sleep(0.1)

    async def _get(self, client: httpx2.AsyncClient, path: str, params: Any = None) -> httpx2.Response:
        deadline, last = time.monotonic() + SETTLE_SECONDS, "nothing"
        while True:
            for worker in self.workers:
                with suppress(httpx2.HTTPError):
                    answer = await client.get(worker.url + path, params=params or {})
                    last = f"{answer.status_code} {answer.text[:300]}"
                    if answer.status_code == 200:
                        return answer
            if time.monotonic() > deadline:
                raise Failed(f"{path} isn't answered: {last}")
            await asyncio.sleep(0.2)


async def prepare(server: EmbeddedPostgres, folder: Path, seed: int, commit: str) -> Run:
    """A migrated database, a tenant, two workers."""
    connection = await asyncpg.connect(server.superuser_url())
    await connection.execute("CREATE DATABASE crash")
    await connection.close()
    url, state = server.superuser_url("crash"), folder / "state"
    await asyncio.to_thread(migrate.upgrade, url)
    async with running_cell(url, state) as cell:
        tenant = await cell.tenant()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")} | {
        "CONFIDE_ENV": "dev",
        "CONFIDE_REGION": REGION,
        "CONFIDE_DATABASE_URL": url,
        "CONFIDE_STATE_DIR": str(state),
        "CONFIDE_LOG_LEVEL": "ERROR",
    }
    workers = [Worker(Port(), environment, commit) for _ in range(2)]
    return Run(server, url, workers, tenant.keys, str(tenant.id), random.Random(seed))


async def cycles(run: Run, count: int, *, control: bool) -> None:
    for worker in run.workers:
        worker.start()
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {run.keys['auditor']}"}, timeout=10) as client:
        await run._get(client, "/v1/audit/events", {"limit": 1})
    tasks = [asyncio.create_task(run.load(number)) for number in range(CLIENTS)]
    try:
        for cycle in range(1, count + 1):
            await run.progress()
            kind = await run.harm(control)
            promised = set(run.acknowledged)
            await asyncio.sleep(0.3)
            told = await run.check(promised, control=control)
            print(f"cycle {cycle}: killed {kind}, {told}", flush=True)
            if control and run.lost:
                return
    finally:
        run.running = False
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in run.workers:
            worker.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="confide-crash-") as name:
        folder = Path(name)
        with EmbeddedPostgres.start(folder / "postgres") as server:
            return asyncio.run(judge(server, folder, args))


async def judge(server: EmbeddedPostgres, folder: Path, args: argparse.Namespace) -> int:
    run = await prepare(server, folder, args.seed, "off" if args.control else "on")
    began = time.monotonic()
    try:
        await cycles(run, args.cycles, control=args.control)
    except Failed as failure:
        print(f"FAILED: {failure}")
        return 1
    spent = time.monotonic() - began
    print(f"{len(run.acknowledged)} acknowledged, {run.refused} refused of {run.attempts} attempts in {spent:.0f} s")
    if args.control:
        print(f"control run: {run.lost} acknowledged commits lost" if run.lost else "control run: NO LOSS SEEN")
        return 0 if run.lost else 1
    print("nothing acknowledged is missing; every export verified against the checkpoint before it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
