"""Starting servers for a measurement, ending them, and what CPU they have used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]


class ServerError(Exception):
    """A server that is needed did not start; the text says where its log is."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _inherited() -> dict[str, str]:
    """The environment without the caller's own settings of a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it, those that have ended included."""
    total = 0.0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
                if process.pid == pid:
                    total += times.children_user + times.children_system
    return total


def memory_bytes(pid: int) -> int:
    """Private and shared memory of a process tree; what is shared counts by its part (PSS)."""
    total = 0
    with suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


class Server:
    """A child process that listens on a loopback port. A context manager: it has ended when the block ends."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        port: int,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self._user = user
        self.name = name
        self.port = port
        self._log = log
        self._command = command
        self._env = {**_inherited(), "PYTHONPATH": str(ROOT), **(env or {})}

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
            )
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _wait(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with suppress(OSError):
                socket.create_connection((HOST, self.port), timeout=1).close()
                return
            time.sleep(0.05)
        self.__exit__(None, None, None)
        raise ServerError(f"{self.name} did not start: see {self._log}")


def uvicorn(
    name: str, target: str, log: Path, *, env: Mapping[str, str], workers: int = 1, factory: bool = True
) -> Server:
    """An ASGI application as Confide itself is served: uvicorn, uvloop, httptools, no access log."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", target, "--host", HOST, "--port", str(port), "--workers", str(workers),
        "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--no-server-header",
        "--backlog", "2048", "--log-level", "warning", *(["--factory"] if factory else []),
    ]  # fmt: skip
    return Server(name, command, log, port=port, env=env)


def own_cpu_seconds(pid: int) -> float:
    """Of this process alone."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def total_cpu(pids: Iterable[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids)
