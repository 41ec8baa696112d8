"""The service as a user runs it (``confide serve`` with its embedded PostgreSQL), and the ways to kill it."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx2
import psutil

from tests.ports import Port
from tests.programmes.audit_crash import Failed
from tests.programmes.chaos_record import Finding

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
SERVE = (sys.executable, "-m", "app", "serve", "--demo")
REQUEST = re.compile(r'"request":"([0-9a-f-]{36})"')
GONE_SECONDS = 45.0
"""Longer than a service may drain."""
KINDS = ("worker", "workers", "sealer", "postmaster", "backend", "database-supervisor", "service", "everything")
"""``service``: the process that the user started; ``everything``: it and all below it, at once."""

LOSING = """
CREATE FUNCTION public.dont_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    RETURN NULL;
END $$;
CREATE TRIGGER dont_wait BEFORE INSERT ON confide_audit.journal FOR EACH STATEMENT EXECUTE FUNCTION public.dont_wait();
"""
"""Every transaction that leaves an event is acknowledged before its log is written. The service stays as it is."""


class Service:
    """``confide serve --demo``, started again on the same port and state whenever it was killed."""

    def __init__(self, folder: Path, chance: random.Random, *, workers: int = 2) -> None:
        self.state = folder / "state"
        self.log = folder / "service.log"
        self._held = Port()
        self.port = self._held.number
        self._workers = workers
        self._random = chance
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: list[psutil.Process] = []
        """What stood below a process that is gone. It has to go by itself."""

    # ------------------------------------------------------------ life

    def spawn(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*SERVE, "--port", str(self.port), "--workers", str(self._workers)],
                cwd=ROOT,
                env=clean | {"CONFIDE_ENV": "dev", "CONFIDE_STATE_DIR": str(self.state), "CONFIDE_LOG_SHARE": "0"},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    async def start(self) -> None:
        """Until it answers. A start that meets what a killed one left behind is tried again, as a user would."""
        deadline = time.monotonic() + START_SECONDS
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=2) as client:
            while True:
                if self._process is None or self._process.poll() is not None:
                    self.spawn()
                with suppress(httpx2.HTTPError):
                    if (await client.get("/readyz")).status_code == 200 and self._process.poll() is None:
                        return
                if time.monotonic() > deadline:
                    raise Failed(f"the service doesn't come back: {self.log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)

    def keep(self) -> None:
        """Start it again where it ended by itself: a start that met a killed one's remains, for instance."""
        if self._process is not None and self._process.poll() is not None:
            self.spawn()

    async def stop(self) -> list[Finding]:
        """In order. Answers which processes outlived their service, this time or when it was killed."""
        self._orphans += self._tree()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait, 60)
        _, left = await asyncio.to_thread(psutil.wait_procs, self._orphans, GONE_SECONDS)
        return [Finding("left-behind", f"process {each.pid}: {_command(each)}") for each in left]

    def kill_all(self) -> None:
        """Whatever still runs, at the end of a run."""
        _kill([*self._tree(), *self._orphans])
        if self._process is not None:
            self._process.wait()

    def errors(self, about: str | None = None) -> list[str]:
        """The log's lines of errors; ``about``: only those that name a request which stands in that text."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if '"level":"error"' in line]
        if about is None:
            return lines
        return [line for line in lines if any(name in about for name in REQUEST.findall(line))]

    def keys(self) -> dict[str, str]:
        lines = (self.state / "demo.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    # ------------------------------------------------------------ harm

    async def harm(self, kind: str) -> bool:
        """Kill -9 what ``kind`` names. Answers whether there was such a process at this moment."""
        victims = self._victims(kind)
        if kind in {"service", "everything"}:
            self._orphans += self._tree()
        _kill(victims)
        if kind in {"service", "everything"} and self._process is not None:
            await asyncio.to_thread(self._process.wait)
            await asyncio.sleep(self._random.choice((0.0, self._random.uniform(0.0, 1.0))))
            self.spawn()
        return bool(victims)

    def _victims(self, kind: str) -> list[psutil.Process]:
        tree = self._tree()
        if kind == "everything":
            return tree
        if kind == "service":
            return tree[:1]
        found = [each for each in tree if _is(each, kind)]
        self._random.shuffle(found)
        return found[:1] if kind in {"worker", "backend"} else found

    def _tree(self) -> list[psutil.Process]:
        """The service's process and all below it."""
        with suppress(psutil.NoSuchProcess):
            if self._process is not None and self._process.poll() is None:
                top = psutil.Process(self._process.pid)
                return [top, *top.children(recursive=True)]
        return []

    # ------------------------------------------------------------ its database

    def database_url(self) -> str:
        folder = self.state / "postgres"
        password = (folder / "superuser.password").read_text().strip()
        return f"postgresql://postgres:{password}@127.0.0.1:{(folder / 'port').read_text().strip()}/confide"

    async def make_it_lose(self) -> None:
        """From now on a crash of PostgreSQL loses what was acknowledged shortly before."""
        connection = await asyncpg.connect(self.database_url())
        try:
            await connection.execute(LOSING)
            await connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()


def _is(process: psutil.Process, kind: str) -> bool:
    try:
        command, nice = _command(process), process.nice()
    except psutil.Error:
        return False
    spawned = "spawn_main" in command
    return {
        "worker": spawned and nice == os.nice(0),
        "workers": spawned and nice == os.nice(0),
        "sealer": spawned and nice > os.nice(0),
        "postmaster": "/postgres" in command.split(" ")[0] and "-D" in command,
        "backend": command.startswith("postgres: ") and " confide " in command,
        "database-supervisor": "app.embedded" in command,
    }[kind]


def _command(process: psutil.Process) -> str:
    """Empty where it has gone meanwhile."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.Error):
            each.send_signal(signal.SIGKILL)
