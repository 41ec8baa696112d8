"""The parent's side: start the supervisor, know the server's address, restart a supervisor that was killed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Self

from app.embedded.cluster import LOOPBACK, SUPERUSER, EmbeddedPostgresError
from app.embedded.processes import child_environment

log = logging.getLogger(__name__)

READY_SECONDS = 330  # longer than the supervisor's own limit, so that its reason arrives first
STOP_SECONDS = 60
MAX_RESTARTS_A_MINUTE = 10


class EmbeddedPostgres:
    """A running embedded PostgreSQL. It stops with ``stop`` and, whatever happens, with this process."""

    def __init__(self, state: Path, port: int | None, *, durable: bool = True, watchdog: bool = False) -> None:
        self._state = state.absolute()
        self._wanted_port = port
        self._durable = durable
        self._watchdog = watchdog
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._info: dict[str, Any] = {}
        self._supervisor = self._spawn()
        self._thread = threading.Thread(target=self._watch, name="embedded-postgres", daemon=True)

    @classmethod
    def start(
        cls, state_dir: Path, port: int | None = None, *, durable: bool = True, watchdog: bool = False
    ) -> EmbeddedPostgres:
        """Make the cluster if there is none, start it and wait until it takes connections.

        ``port`` None: the one of the last run, or any free one. ``durable`` False: don't wait for the disk (tests).
        Raises EmbeddedPostgresError, whose text says what to do.
        """
        server = cls(state_dir, port, durable=durable, watchdog=watchdog)
        server._thread.start()
        server._ready.wait(READY_SECONDS)
        if server._failure is not None or not server._info:
            server.stop()
            raise EmbeddedPostgresError(server._failure or f"PostgreSQL did not start; see {server._state}.")
        return server

    @property
    def port(self) -> int:
        return int(self._info["port"])

    @property
    def postmaster_pid(self) -> int:
        return int(self._info["pid"])

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor.pid

    def superuser_url(self, database: str = "postgres") -> str:
        """An address with the superuser's password: a secret. Keep it out of arguments and logs."""
        password = (self._state / "superuser.password").read_text().strip()
        return f"postgresql://{SUPERUSER}:{password}@{LOOPBACK}:{self.port}/{database}"

    def stop(self) -> None:
        """Stop the server in order and wait for it. Safe to call twice."""
        self._stopping.set()
        supervisor = self._supervisor
        close(supervisor)
        try:
            supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app.embedded", "--state", str(self._state)]
        port = self._info.get("port", self._wanted_port)
        if port is not None:
            command += ["--port", str(port)]
        if not self._durable:
            command.append("--no-durability")
        if self._watchdog:
            command.append("--watchdog")
        # The package may be a checkout that isn't installed; the interpreter's own variables may be needed to start.
        checkout = Path(__file__).resolve().parents[2]
        python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
        return subprocess.Popen(  # noqa: S603 (a fixed program)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what it has to say comes as an event
            text=True,
            cwd=checkout,
            env={**child_environment(), **python},
            start_new_session=True,  # a Ctrl-C is for us; we stop it after our own work has ended
        )

    def _watch(self) -> None:
        """Take in the supervisor's events; when it dies unasked, start another one on the same port."""
        starts: deque[float] = deque(maxlen=MAX_RESTARTS_A_MINUTE)
        while True:
            self._follow(self._supervisor)
            code = self._supervisor.wait()
            close(self._supervisor)
            if self._stopping.is_set() or self._failure is not None:
                break
            if len(starts) == starts.maxlen and time.monotonic() - starts[0] < 60:
                self._failure = "The supervisor of the embedded PostgreSQL keeps dying."
                break
            starts.append(time.monotonic())
            log.warning("embedded PostgreSQL: its supervisor ended (%s); starting another", code)
            self._supervisor = self._spawn()
            if self._stopping.is_set():  # stop() came in between and saw the old one
                close(self._supervisor)
        if self._failure is not None:
            log.error("embedded PostgreSQL: %s", self._failure)
        self._ready.set()

    def _follow(self, supervisor: subprocess.Popen[str]) -> None:
        """Read events until the supervisor's output ends."""
        if supervisor.stdout is None:
            return
        with supervisor.stdout as lines:
            for line in lines:
                event = json.loads(line)
                if event["event"] == "ready":
                    self._info = event
                    self._ready.set()
                elif event["event"] == "down":
                    log.warning("embedded PostgreSQL: the server ended (%s); restarting it", event["code"])
                elif event["event"] == "failed":
                    self._failure = event["message"]


def close(supervisor: subprocess.Popen[str]) -> None:
    """Close our end of its standard input, which tells it to stop."""
    if supervisor.stdin:
        with contextlib.suppress(OSError):
            supervisor.stdin.close()
