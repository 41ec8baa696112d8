"""What the tests of the embedded PostgreSQL share: asking it, waiting for it, and running Python as somebody else."""

from __future__ import annotations

import asyncio
import os
import site
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


async def ask(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url, timeout=60)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def ask_until_answered(url: Callable[[], str], statement: str, seconds: float = 120) -> Any:
    """Ask again while the server is down or starting, as a client that reconnects would."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask(url(), statement)
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


def servers_of(state: Path) -> list[psutil.Process]:
    """All server processes and supervisors of a state directory, as the process table has them."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = str(state) in " ".join(process.cmdline()) or process.cwd() == str(state / "data")
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def python(code: str, *arguments: str, user: int | None = None, first: Path = CHECKOUT) -> subprocess.Popen[str]:
    """Run a program in another process, if asked as another user who has no privilege at all.

    ``first``: a folder whose packages come before the installed ones.
    """
    become = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    home = {} if user is None else {"HOME": "/"}  # root's own is closed to others
    return subprocess.Popen(
        [sys.executable if user is None else interpreter_for_all(), "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(first), str(CHECKOUT), *site.getsitepackages()])} | home,
        **become,
    )


def interpreter_for_all() -> str:
    """An interpreter of this version that every user may run; root's own may stand below root's closed home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        parts = [Path(candidate), *Path(candidate).parents, CHECKOUT, *CHECKOUT.parents]
        if all(part.exists() and part.stat().st_mode & stat.S_IXOTH for part in parts):
            return candidate
    pytest.skip(f"no {name}, or not this checkout, can be reached by users other than root")


@pytest.fixture
def as_root() -> None:
    """Some things can only be seen as root. As an ordinary user, every other test here runs as that user anyway."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
