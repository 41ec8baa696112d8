"""The supervisor's promises: what is killed comes back with its data, and nothing is ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from app.embedded import EmbeddedPostgres, EmbeddedPostgresError
from app.embedded.processes import LINUX
from tests.embedded.conftest import CHECKOUT, ask, ask_until_answered, python, servers_of, until

PARENT = """
import sys
from pathlib import Path
from app.embedded import EmbeddedPostgres
server = EmbeddedPostgres.start(Path(sys.argv[1]), watchdog=len(sys.argv) > 2)
print(server.supervisor_pid, flush=True)
sys.stdin.read()
"""


async def test_a_killed_postmaster_comes_back_with_its_data(own_postgres: EmbeddedPostgres) -> None:
    await ask(own_postgres.superuser_url(), "CREATE TABLE kept AS SELECT 42 AS answer")
    before = own_postgres.postmaster_pid
    os.kill(before, signal.SIGKILL)
    assert await ask_until_answered(own_postgres.superuser_url, "SELECT answer FROM kept") == 42
    until(lambda: own_postgres.postmaster_pid != before, "the handle learns of the new postmaster")


async def test_a_busy_backend_does_not_keep_a_killed_postmaster_from_coming_back(
    own_postgres: EmbeddedPostgres,
) -> None:
    connection = await asyncpg.connect(own_postgres.superuser_url())
    busy = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(busy, signal.SIGSTOP)  # attached to the old shared memory, and deaf to everything but SIGKILL
    os.kill(own_postgres.postmaster_pid, signal.SIGKILL)
    assert await ask_until_answered(own_postgres.superuser_url, "SELECT 1") == 1
    connection.terminate()


@pytest.mark.skipif(not LINUX, reason="elsewhere the port would be kept from the server too")
async def test_nobody_is_given_the_port_of_a_server_that_is_down(own_postgres: EmbeddedPostgres) -> None:
    """It comes back where it was, whoever has asked the kernel for any port meanwhile."""
    port, before = own_postgres.port, own_postgres.postmaster_pid
    os.kill(before, signal.SIGKILL)
    while own_postgres.postmaster_pid == before:
        with socket.socket() as greedy, pytest.raises(OSError, match="in use"):
            greedy.bind(("127.0.0.1", port))
        await asyncio.sleep(0.001)
    assert await ask_until_answered(own_postgres.superuser_url, "SELECT 1") == 1
    assert own_postgres.port == port


async def test_a_killed_supervisor_is_replaced_and_clients_keep_their_address(own_postgres: EmbeddedPostgres) -> None:
    url, before = own_postgres.superuser_url(), own_postgres.supervisor_pid
    await ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(before, signal.SIGKILL)
    until(lambda: own_postgres.supervisor_pid != before, "another supervisor")
    assert await ask_until_answered(lambda: url, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize("watchdog", [False, True], ids=["death-signal", "watchdog"])
def test_no_server_outlives_a_killed_supervisor(tmp_path: Path, *, watchdog: bool) -> None:
    state = tmp_path / "postgres"
    command = [sys.executable, "-m", "app.embedded", "--state", str(state)]
    supervisor = subprocess.Popen(
        command + ["--watchdog"] * watchdog, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with supervisor:
        assert json.loads(supervisor.stdout.readline())["event"] == "ready"
        assert len(servers_of(state)) > 3
        supervisor.kill()
    until(lambda: not servers_of(state), "every process of the server is gone")
    with EmbeddedPostgres.start(state) as server:
        assert server.port


@pytest.mark.parametrize("arguments", [[], ["watchdog"]], ids=["death-signal", "watchdog"])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, arguments: list[str]) -> None:
    state = tmp_path / "postgres"
    with python(PARENT, str(state), *arguments) as parent:
        assert parent.stdout.readline().strip().isdigit()
        parent.kill()
    until(lambda: not servers_of(state), "supervisor and server are gone")


def test_nothing_outlives_a_parent_and_a_supervisor_killed_at_once(tmp_path: Path) -> None:
    state = tmp_path / "postgres"
    with python(PARENT, str(state)) as parent:
        supervisor = int(parent.stdout.readline())
        parent.kill()
        os.kill(supervisor, signal.SIGKILL)
    until(lambda: not servers_of(state), "the server is gone")


def test_a_parent_killed_during_initdb_leaves_a_directory_that_starts(tmp_path: Path) -> None:
    state = tmp_path / "postgres"
    with python(PARENT, str(state)) as parent:
        until(lambda: (state / "data.new").exists() or (state / "data").exists(), "initdb has begun")
        parent.kill()
    until(lambda: not servers_of(state), "supervisor and initdb are gone")
    with EmbeddedPostgres.start(state) as server:
        assert server.port


def test_stop_leaves_nothing_and_the_next_start_is_quick(tmp_path: Path) -> None:
    state = tmp_path / "postgres"
    with EmbeddedPostgres.start(state) as server:
        port = server.port
    assert servers_of(state) == []
    for _ in range(5):  # a busy machine may need a second try, and between two runs a port may go to somebody else
        begun, last = time.monotonic(), port
        with EmbeddedPostgres.start(state) as server:
            port = server.port
        if port == last and time.monotonic() - begun < 5:  # 0.2 s on an idle machine
            return
    pytest.fail("the address of the last run doesn't hold, or it takes long")


def test_a_lock_file_that_names_a_strangers_process_does_not_block_the_start(tmp_path: Path) -> None:
    state = tmp_path / "postgres"
    with EmbeddedPostgres.start(state):
        lock = (state / "data" / "postmaster.pid").read_text()
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (state / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n" + lock.partition("\n")[2])
        with EmbeddedPostgres.start(state) as server:
            assert server.port
        assert stranger.poll() is None, "the stranger was left alone"
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_second_supervisor_is_refused_and_says_by_whom(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=f"already run by process {own_postgres.supervisor_pid}: stop"):
        EmbeddedPostgres.start(tmp_path / "postgres")
    assert await ask(own_postgres.superuser_url(), "SELECT 1") == 1


def test_a_taken_port_is_refused(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=f"Port {own_postgres.port} is taken"):
        EmbeddedPostgres.start(tmp_path / "other", own_postgres.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_supervisor_in_order(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "postgres"
    command = [sys.executable, "-m", "app.embedded", "--state", str(state)]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert json.loads(supervisor.stdout.readline())["event"] == "ready"
        supervisor.send_signal(number)
        assert supervisor.wait(120) == 0
    assert servers_of(state) == []
    assert "database system is shut down" in (state / "postgres.log").read_text()
