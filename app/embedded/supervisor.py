"""The process that owns an embedded PostgreSQL: starts it, restarts it, and takes it along when it goes.

- The postmaster is killed: what it left behind is ended, then it starts again on the same port.
- The parent goes away (its end of our standard input closes, or we have another parent): a fast shutdown.
- We are told to stop (SIGTERM, SIGINT, SIGHUP): a fast shutdown.
- We are killed: the kernel stops the postmaster at once (see processes.die_with_parent).
One supervisor at a time may use a state directory; a lock file that the kernel frees says which.

Standard output carries one JSON object a line for the parent: ``ready``, ``down`` and ``failed``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from app.embedded.cluster import (
    Cluster,
    EmbeddedPostgresError,
    find_binaries,
    free_port,
    kept_port,
    port_is_free,
    write_private,
)
from app.embedded.privilege import leave_root
from app.embedded.processes import LINUX, end_servers, remove_stale_lock, servers_in, start_watchdog

START_SECONDS = 300  # recovery after a crash can take long
LOCK_SECONDS = 30  # the last supervisor may still be stopping its server
MAX_FAILED_STARTS = 5
STOP_LADDER = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))  # fast, immediate, the end


class Supervisor:
    """Runs one cluster. Single-threaded: it waits for signals, its parent and its child in one place, ``_wait``."""

    def __init__(self, cluster: Cluster, port: int | None, *, watchdog: bool) -> None:
        self._cluster = cluster
        self._wanted_port = port
        self._watchdog = watchdog
        self._info = cluster.state / "ready.json"
        self._parent = os.getppid()
        self._follows_stdin = stat.S_ISFIFO(os.fstat(0).st_mode)
        self._stopping = False
        self._wake, self._woken = os.pipe()

    def run(self) -> None:
        """Serve until told to stop. Raises EmbeddedPostgresError when the server can't start."""
        self._catch_signals()
        with self._lock():
            self._clear_remains()
            if not self._cluster.exists():
                self._make()
            port = self._choose_port()
            with kept_port(port):
                self._serve(port)

    def _serve(self, port: int) -> None:
        failures = 0
        while not self._stopping:
            was_ready = self._serve_once(port)
            failures = 0 if was_ready else failures + 1
            if failures >= MAX_FAILED_STARTS:
                raise EmbeddedPostgresError(f"PostgreSQL doesn't start; the reason is in {self._cluster.log}.")
            if not self._stopping:
                self._clear_remains()
                self._wait(0.2 * failures)

    def _serve_once(self, port: int) -> bool:
        """One life of the postmaster. Returns whether it ever took connections."""
        server = self._cluster.start_server(port)
        watchdog = start_watchdog(server.pid) if self._watchdog else None
        try:
            if not self._until_ready(server):
                return False
            self._announce(server, port)
            while not self._stopping and server.poll() is None:
                self._wait(1.0)
            self._info.unlink(missing_ok=True)
            if not self._stopping:
                emit("down", code=server.returncode)
            return True
        finally:
            self._info.unlink(missing_ok=True)
            end_watchdog(watchdog)  # first: it must not signal a process id that is free again
            stop_server(server, self._cluster.data)

    def _until_ready(self, server: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while not self._stopping and server.poll() is None and time.monotonic() < deadline:
            if self._cluster.ready(server):
                return True
            self._wait(0.02)
        return False

    def _announce(self, server: subprocess.Popen[bytes], port: int) -> None:
        info = {"port": port, "pid": server.pid, "supervisor_pid": os.getpid()}
        write_private(self._info, json.dumps(info) + "\n")
        write_private(self._cluster.state / "port", f"{port}\n")
        emit("ready", **info)

    def _make(self) -> None:
        """initdb; a stop or the parent's death in the middle leaves nothing that a later start would take for whole."""
        initdb = self._cluster.start_initdb()
        while initdb.poll() is None:
            if self._stopping:
                initdb.kill()
            self._wait(0.05)
        if self._stopping:
            return
        if initdb.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed; the reason is in {self._cluster.log}.")
        self._cluster.adopt()

    def _choose_port(self) -> int:
        """The port asked for, else the one of the last run while nobody else has it, else any."""
        if self._wanted_port is not None:
            if not port_is_free(self._wanted_port):
                raise EmbeddedPostgresError(f"Port {self._wanted_port} is taken: name another one, or none for any.")
            return self._wanted_port
        with contextlib.suppress(OSError, ValueError):
            last = int((self._cluster.state / "port").read_text())
            if port_is_free(last):
                return last
        return free_port()

    def _clear_remains(self) -> None:
        self._info.unlink(missing_ok=True)
        end_servers(self._cluster.data)
        remove_stale_lock(self._cluster.data)

    @contextlib.contextmanager
    def _lock(self) -> Any:
        """Hold the state directory. A supervisor that is ready refuses us; one that is stopping is waited for."""
        descriptor = os.open(self._cluster.state / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            while not self._stopping:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._info.exists() or time.monotonic() > deadline:
                        raise EmbeddedPostgresError(self._refusal()) from None
                self._wait(0.05)
            yield
        finally:
            os.close(descriptor)

    def _refusal(self) -> str:
        try:
            holder = f"process {json.loads(self._info.read_text())['supervisor_pid']}"
        except (OSError, ValueError, KeyError):
            holder = "another process"
        return (
            f"The PostgreSQL in {self._cluster.state} is already run by {holder}: stop that one (is another Confide "
            "running in this checkout?), or use another state directory."
        )

    def _catch_signals(self) -> None:
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake us

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _wait(self, seconds: float) -> None:
        """Sleep until a signal, the end of the parent, or the time is up."""
        watched = [self._wake, 0] if self._follows_stdin and not self._stopping else [self._wake]
        awake, _, _ = select.select(watched, [], [], seconds)
        if self._wake in awake:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if 0 in awake and os.read(0, 4096) == b"":
            self._stopping = True
        if self._follows_stdin and os.getppid() != self._parent:
            self._stopping = True


def stop_server(server: subprocess.Popen[bytes], data: Path) -> None:
    """Stop the postmaster, more and more firmly, and then whatever is left of it."""
    for number, patience in STOP_LADDER:
        if server.poll() is not None:
            break
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience)
    if servers_in(data):
        end_servers(data)


def end_watchdog(watchdog: subprocess.Popen[bytes] | None) -> None:
    if watchdog is None:
        return
    watchdog.kill()
    if watchdog.stdin:
        watchdog.stdin.close()
    watchdog.wait()


def emit(event: str, **fields: object) -> None:
    """One line for the parent; it may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m app.embedded", description="Serve an embedded PostgreSQL until told to stop. Development only."
    )
    parser.add_argument("--state", type=Path, required=True, help="directory for the cluster, its log and its password")
    parser.add_argument("--port", type=int, help="TCP port on the loopback (any free one)")
    parser.add_argument("--no-durability", action="store_true", help="don't wait for the disk; for tests only")
    parser.add_argument(
        "--watchdog",
        action="store_true",
        default=not LINUX,
        help="watch over this process with another one (always, where the kernel can't tell of a parent's death)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program. Answers 0 after an orderly stop and 1 when PostgreSQL could not run."""
    options = parse(arguments)
    state = options.state.absolute()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what passed through the server
    try:
        state.mkdir(parents=True, exist_ok=True)
        binaries = find_binaries()
        leave_root(state, binaries)
        cluster = Cluster(state, binaries, durable=not options.no_durability)
        Supervisor(cluster, options.port, watchdog=options.watchdog).run()
    except (EmbeddedPostgresError, OSError, subprocess.SubprocessError) as error:
        emit("failed", message=str(error))
        print(f"embedded PostgreSQL: {error}", file=sys.stderr)  # noqa: T201 (a program's error)
        return 1
    return 0
