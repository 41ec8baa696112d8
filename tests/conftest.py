"""PostgreSQL for the tests.

One embedded server serves the whole session, however many xdist workers there are: it belongs to the process that lives
longest (xdist's controller, or pytest itself) and starts when the first test asks for it. ``database`` gives each test
a database of its own, cloned from one that was migrated once. A test that kills servers takes ``own_postgres``.

    CONFIDE_TEST_DATABASE_URL   use this PostgreSQL (15 or newer) instead; its user must be a superuser
    CONFIDE_TEST_DURABLE=1      let the session's server wait for the disk, as in production
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.chance import settle_hypothesis

EXTERNAL = "CONFIDE_TEST_DATABASE_URL"
PREFIX = "confide-tests-"
FOLDER = pytest.StashKey[Path]()
OWNER = pytest.StashKey["SessionServer"]()


class SessionServer:
    """Waits in the longest-lived process until a worker wants a server, starts it and tells all of them where."""

    def __init__(self) -> None:
        remove_forsaken_folders()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._alive = (self.folder / "alive").open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._server: EmbeddedPostgres | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._wait_and_start, name="session-postgres", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join(60)
        if self._server is not None:
            self._server.stop()
        if EXTERNAL in os.environ:
            execute(os.environ[EXTERNAL], f"DROP DATABASE IF EXISTS {template_name(self.folder)} WITH (FORCE)")
        self._alive.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_and_start(self) -> None:
        while not (self.folder / "wanted").exists():
            if self._ending.wait(0.02):
                return
        durable = os.environ.get("CONFIDE_TEST_DURABLE", "") not in {"", "0"}
        try:
            self._server = EmbeddedPostgres.start(self.folder / "postgres", durable=durable)
            answer = {"url": self._server.superuser_url()}
        except EmbeddedPostgresError as error:
            answer = {"error": str(error)}
        scratch = self.folder / "answer.new"
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(answer))
        scratch.rename(self.folder / "answer")


settle_hypothesis()


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[FOLDER] = Path(worker["confide_folder"])
    else:
        config.stash[OWNER] = SessionServer()
        config.stash[FOLDER] = config.stash[OWNER].folder


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """xdist: tell a new worker where the session's folder is."""
    node.workerinput["confide_folder"] = str(node.config.stash[FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWNER in config.stash:
        config.stash[OWNER].end()


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> str:
    """A superuser's address on the session's PostgreSQL."""
    if EXTERNAL in os.environ:
        return os.environ[EXTERNAL]
    folder = pytestconfig.stash[FOLDER]
    (folder / "wanted").touch()
    deadline = time.monotonic() + 90
    while not (folder / "answer").exists():
        if time.monotonic() > deadline:
            pytest.fail("the session's PostgreSQL did not start within 90 seconds")
        time.sleep(0.02)
    answer = json.loads((folder / "answer").read_text())
    if "error" in answer:
        pytest.fail(answer["error"])
    return str(answer["url"])


@pytest.fixture(scope="session")
def database_template(postgres: str, pytestconfig: pytest.Config) -> str:
    """The name of a migrated database that nobody may enter, so that it can be cloned at any moment."""
    folder = pytestconfig.stash[FOLDER]
    template = template_name(folder)
    with alone(folder / "template.lock"):
        if not (folder / "template.done").exists():
            execute(postgres, f"CREATE DATABASE {template} TEMPLATE template0")
            # By name at the last moment, so that tests of other parts run while migrations are being written.
            upgrade: Callable[[str], None] = importlib.import_module("app.store.migrate").upgrade
            outside_the_loop(lambda: upgrade(with_database(postgres, template)))
            execute(postgres, f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")
            (folder / "template.done").touch()
    return template


@pytest.fixture
def database(postgres: str, database_template: str) -> Iterator[str]:
    """A superuser's address on a migrated database of this test's own; it is dropped afterwards."""
    with temporary_database(postgres, database_template) as url:
        yield url


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    """The same with no schema: for tests of migrations."""
    with temporary_database(postgres, "template0") as url:
        yield url


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A durable server of this test's own, which it may kill."""
    with EmbeddedPostgres.start(tmp_path / "postgres") as server:
        yield server


@pytest.fixture
def one_day() -> None:
    """The test begins and ends on one day of UTC, and so in one month: close before midnight it waits for the next."""
    left = 86_400 - time.time() % 86_400
    if left < 60:
        time.sleep(left + 0.5)


@contextmanager
def temporary_database(postgres: str, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield with_database(postgres, name)
    finally:
        drop(postgres, name)


def drop(postgres: str, name: str) -> None:
    """A backend that has just been told to end may need a while on a busy machine."""
    deadline = time.monotonic() + 60
    while True:
        try:
            execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")
        except asyncpg.ObjectInUseError:
            if time.monotonic() > deadline:
                raise
        else:
            return


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Keep the other workers out. The kernel frees the lock when a worker dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def template_name(folder: Path) -> str:
    """One for each session, so that two sessions can share a server."""
    return "confide_template_" + folder.name.removeprefix(PREFIX).lower()


def remove_forsaken_folders() -> None:
    """What sessions that were killed have left: their lock is free. The youngest may not have taken it yet."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / "alive").open("r+") as file:
            if time.time() - folder.stat().st_mtime < 60:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    outside_the_loop(lambda: asyncio.run(run()))


def outside_the_loop(work: Callable[[], None]) -> None:
    """Run in a thread: pytest-asyncio's event loop belongs to this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
