"""What is measured, set up from nothing: PostgreSQL, the service with its tenants, the plain services."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from app.cli.database import set_up_embedded
from app.embedded import EmbeddedPostgres
from app.main import load
from bench import plain
from bench.http import Http
from bench.processes import HOST, Server, free_port, uvicorn

SEED_TASKS = 32


@dataclass(frozen=True)
class Subject:
    """Something under load: where it listens, its processes, and the file of targets that fits it."""

    name: str
    port: int
    pid: int
    targets: Path


class Database:
    """The embedded PostgreSQL, durable, with a database for each service."""

    def __init__(self, state: Path) -> None:
        self._state = state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.server = EmbeddedPostgres.start(state / "postgres")

    @property
    def pid(self) -> int:
        return self.server.postmaster_pid

    def for_confide(self) -> Path:
        """The file with the address for the service's login, migrated."""
        return set_up_embedded(self.server, load(service_env(self._state)))

    def for_plain(self, name: str, *, storage: str = "tuned") -> str:
        asyncio.run(execute(self.server.superuser_url(), f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}"))
        url = self.server.superuser_url(name)
        statements = [plain.SCHEMA.format(storage=plain.TUNED if storage == "tuned" else "")]
        if storage == "tuned":
            statements.append(plain.EXTERNAL)
        asyncio.run(execute(url, *statements))
        return url

    def setting(self, name: str, value: str) -> None:
        """For the whole server, until it is reset."""
        command = f"ALTER SYSTEM SET {name} = '{value}'" if value else f"ALTER SYSTEM RESET {name}"
        asyncio.run(execute(self.server.superuser_url(), command, "SELECT pg_reload_conf()"))

    def checkpoint(self) -> None:
        """So that no run pays for the pages that another has made dirty."""
        asyncio.run(execute(self.server.superuser_url(), "CHECKPOINT"))

    def stop(self) -> None:
        self.server.stop()


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def service_env(state: Path) -> dict[str, str]:
    return {
        "CONFIDE_ENV": "dev",
        "CONFIDE_REGION": "eu-central-1",
        "CONFIDE_STATE_DIR": str(state),
        "CONFIDE_RATE_PER_SECOND": "1000000",
    }


def confide(
    state: Path, database: Database, log: Path, *, workers: int = 1, env: Mapping[str, str] | None = None
) -> Server:
    """The service as ``confide serve`` runs it, its log lines written to a file."""
    port = free_port()
    url = {"CONFIDE_DATABASE_URL_FILE": str(database.for_confide()), "CONFIDE_OWNER_DATABASE_URL": _owner(database)}
    environment = service_env(state) | url | dict(env or {})
    command = [sys.executable, "-m", "app", "serve", "--demo", "--port", str(port), "--workers", str(workers)]
    return Server("confide", command, log, port=port, env=environment)


def _owner(database: Database) -> str:
    return database.server.superuser_url("confide")


def plain_server(
    name: str, url: str, key: str, log: Path, *, target: str = "bench.plain:application", workers: int = 1
) -> Server:
    return uvicorn(name, target, log, env={"BENCH_DATABASE_URL": url, "BENCH_KEY": key}, workers=workers)


# ---------------------------------------------------------------- tenants and what they hold


def demo_values(state: Path) -> dict[str, str]:
    lines = (state / "demo.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


async def onboard(port: int, operator: str, names: list[str]) -> list[str]:
    """Tenants as an operator and their first admin make them. Answers a runtime key of each."""
    keys: dict[str, str] = {}
    queue = iter(names)

    async def work() -> None:
        async with Http(HOST, port) as http:
            for name in queue:
                made = await http.json("POST", "/v1/tenants", operator, {"name": name})
                token = made["enrolment"]["token"]
                first = await http.json("POST", "/v1/enrolments/redeem", None, {"token": token, "name": "first"})
                runtime = {"name": "runtime", "role": "runtime"}
                keys[name] = (await http.json("POST", "/v1/api-keys", first["secret"], runtime))["secret"]

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(work())
    return [keys[name] for name in names]


async def seed_confide(port: int, keys: list[str], path: Path, *, sessions: int, objects: int, body: bytes) -> None:
    """``sessions`` of every tenant's key, round-robin, each with so many objects, through the API."""
    made: list[tuple[int, str]] = []
    queue = iter(range(sessions))
    value = json.loads(body)

    async def work() -> None:
        async with Http(HOST, port) as http:
            for number in queue:
                owner = number % len(keys)
                puts = [{"collection": "facts", "key": str(each), "json": value} for each in range(objects)]
                commit = {"external_id": f"bench-{uuid4()}", "create": {}, "put": puts[:100]}
                done = await http.json("POST", "/v1/commit", keys[owner], commit)
                for start in range(100, objects, 100):
                    more = {"session": done["session"]["id"], "put": puts[start : start + 100]}
                    await http.json("POST", "/v1/commit", keys[owner], more)
                made.append((owner, done["session"]["id"]))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(SEED_TASKS, sessions)):
            group.create_task(work())
    write_targets(path, keys, made, objects)


async def seed_plain(url: str, key: str, path: Path, *, sessions: int, objects: int, body: bytes) -> None:
    ids = [uuid4() for _ in range(sessions)]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("TRUNCATE session, object, turn")
        await connection.execute("INSERT INTO session (id) SELECT unnest($1::uuid[])", ids)
        await connection.execute(
            "INSERT INTO object SELECT s, 'facts', n::text, gen_random_uuid(), 'application/json', now(), $2"
            " FROM unnest($1::uuid[]) AS s, generate_series(0, $3::int - 1) AS n",
            ids,
            body,
            objects,
        )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    write_targets(path, [key], [(0, str(each)) for each in ids], objects)


def write_targets(path: Path, keys: list[str], sessions: list[Any], objects: int) -> None:
    path.write_text(json.dumps({"keys": keys, "sessions": sessions, "objects": objects}))
    path.chmod(0o600)


def new_key() -> str:
    return secrets.token_urlsafe(24)
