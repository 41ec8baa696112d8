"""Operating-system facts about processes: dying with a parent, and finding what a dead server left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def child_environment() -> dict[str, str]:
    """What a server process needs of the environment; the rest may hold secrets and stays here."""
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
    return {"LC_ALL": "C", **{name: os.environ[name] for name in keep if name in os.environ}}


def die_with_parent(parent: int) -> Callable[[], None]:
    """For use between fork and exec: the kernel sends SIGQUIT (PostgreSQL's immediate stop) when ``parent`` dies.

    Must come after any change of user, which would cancel it. Elsewhere than on Linux ``start_watchdog`` stands in.
    """

    def arm() -> None:
        if LINUX:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm


def start_watchdog(server: int) -> subprocess.Popen[bytes]:
    """A tiny process that stops ``server`` when this process is gone, for systems without a parent-death signal.

    It waits for the end of a pipe whose other end only this process holds, and is itself ended by closing that.
    """
    script = 'trap "" INT TERM HUP; cat >/dev/null; kill -QUIT "$1" 2>/dev/null'
    return subprocess.Popen(  # noqa: S603 (a fixed script)
        ["/bin/sh", "-c", script, "confide-watchdog", str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    )


def servers_in(data: Path) -> list[int]:
    """Process ids of the server processes that live in a data directory: each has it as its working directory.

    Where there is no /proc the answer is the postmaster named by ``postmaster.pid``, if it is still a postgres.
    """
    if not Path("/proc/self/cwd").exists():
        return _postmaster_by_ps(data)
    try:
        home = data.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end, or be another user's, while we look.
        with contextlib.suppress(OSError):
            if os.path.samestat(Path(entry.path, "cwd").stat(), home):
                found.append(int(entry.name))
    return found


def _postmaster_by_ps(data: Path) -> list[int]:
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return []
    listing = subprocess.run(  # noqa: S603 (a fixed program)
        ["/bin/ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False
    )
    return [pid] if "postgres" in listing.stdout else []


def end_servers(data: Path, *, patience: float = 5.0) -> None:
    """End what is left of a server whose postmaster or supervisor was killed, and wait until it is gone.

    Backends leave by themselves once they see that the postmaster is dead; whoever stays is killed, because a new
    postmaster refuses to start while anyone is attached to the old one's shared memory. Nothing acknowledged is lost:
    it is in the write-ahead log.
    """
    deadline = time.monotonic() + patience
    sent = signal.SIGQUIT
    for pid in servers_in(data):
        _send(pid, sent)
    while remaining := servers_in(data):
        if time.monotonic() > deadline:
            for pid in remaining:
                _send(pid, signal.SIGKILL)
            deadline = time.monotonic() + patience
        time.sleep(0.02)


def remove_stale_lock(data: Path) -> None:
    """Remove ``postmaster.pid`` when no server lives there: its process id may belong to a stranger by now.

    PostgreSQL would refuse to start if that id is in use. Call it after ``end_servers``, with the supervisor's lock
    held. Without /proc the file stays, and PostgreSQL's own check decides.
    """
    if Path("/proc/self/cwd").exists() and not servers_in(data):
        (data / "postmaster.pid").unlink(missing_ok=True)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
