"""The command line: JSON for scripts, one sentence for what went wrong, and no secret in an argument or a log."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
import uvicorn

from app.__main__ import parser
from app.cli.database import bring_up, head
from app.embedded import EmbeddedPostgres
from app.main import api_of, assemble
from app.store.cell import CellError, join_service, make_service_login, name_region, standing
from tests.cell import REGION, settings_of
from tests.control.support import SAFE

ROOT = Path(__file__).parents[2]


def confide(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=clean | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def cell_variables(database: str, tmp_path: Path) -> dict[str, str]:
    name_region(database, REGION)
    return {
        "CONFIDE_ENV": "dev",
        "CONFIDE_REGION": REGION,
        "CONFIDE_DATABASE_URL": database,
        "CONFIDE_STATE_DIR": str(tmp_path / "state"),
    }


@pytest.fixture
def service(database: str, cell_variables: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A served cell in a thread; what a client's environment needs to reach it."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = api_of(assemble(settings_of(database, tmp_path / "state")))
    config = uvicorn.Config(app, http="app.api.protocol:Protocol", log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    made = confide("operator-key", "create", "--json", **cell_variables)
    assert made.returncode == 0, made.stderr
    yield {
        "CONFIDE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "CONFIDE_OPERATOR_KEY": json.loads(made.stdout)["secret"],
    }
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def commands(
    top: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    below = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield path, top
    for action in below:
        for name, each in action.choices.items():
            yield from commands(each, (*path, name))


ALL = dict(commands(parser()))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_none_takes_a_secret_as_an_argument(path: tuple[str, ...]) -> None:
    assert len(ALL[path].format_help()) > 100
    for action in ALL[path]._actions:
        if action.metavar == "VKEY":
            continue  # a verifier key is public
        for option in action.option_strings:
            assert option.strip("-") not in {"key", "api-key", "token", "secret", "password", "database-url"}


def test_the_page_lists_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for path in ALL:
        assert f"`confide {path[0]}" in page
        assert path[-1] in page


def test_a_tenant_is_onboarded_by_commands_alone(service: dict[str, str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    made = confide("tenant", "create", "acme", "--json", "--secret-file", str(token), **service)
    assert made.returncode == 0, made.stderr
    tenant = json.loads(made.stdout)["tenant"]["id"]
    assert token.read_text().strip() not in made.stdout
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    first = confide("tenant", "enrol", "--json", stdin=token.read_text(), **service)
    assert first.returncode == 0, first.stderr
    admin = service | {"CONFIDE_ADMIN_KEY": json.loads(first.stdout)["secret"]}
    key = json.loads(confide("api-key", "create", "agent", "--role", "runtime", "--json", **admin).stdout)["key"]["id"]
    rotated = json.loads(confide("api-key", "rotate", key, "--overlap", "60", "--json", **admin).stdout)
    assert rotated["key"]["principal"]
    assert confide("api-key", "revoke", key, **admin).returncode == 0
    listed = json.loads(confide("api-key", "list", "--json", **admin).stdout)["keys"]
    assert {entry["id"]: "revoked_at" in entry for entry in listed}[key]
    assert "agent" in confide("api-key", "list", **admin).stdout
    for verb, state in (("suspend", "suspended"), ("resume", "active"), ("get", "active")):
        assert json.loads(confide("tenant", verb, tenant, "--json", **service).stdout)["state"] == state
    assert tenant in confide("tenant", "list", **service).stdout


def test_a_refusal_is_one_sentence_and_status_1(service: dict[str, str]) -> None:
    good = service["CONFIDE_OPERATOR_KEY"]
    wrong = service | {"CONFIDE_OPERATOR_KEY": good[:-1] + ("x" if good[-1] != "x" else "y")}
    for arguments, environment in (
        (("tenant", "list"), wrong),
        (("tenant", "get", "../tenants"), service),
        (("tenant", "get", "01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f"), service),
        (("tenant", "create", "Not A Name"), service),
        (("tenant", "list"), {"CONFIDE_URL": service["CONFIDE_URL"]}),
        (("tenant", "list"), {"CONFIDE_OPERATOR_KEY": "x"}),
        (("tenant", "list"), {"CONFIDE_URL": "http://127.0.0.1:1", "CONFIDE_OPERATOR_KEY": "x"}),
        (("tenant", "list"), {"CONFIDE_URL": "file:///etc/passwd", "CONFIDE_OPERATOR_KEY": "x"}),
        (("tenant", "enrol", "--token-file", "/nowhere"), service),
        (("healthcheck",), {"CONFIDE_URL": "http://127.0.0.1:1"}),
    ):
        done = confide(*arguments, **environment)
        assert done.returncode == 1, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("tenant",), ("api-key", "create", "x"), ("serve", "--nonsense")]
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    done = confide(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_healthcheck_answers_as_json(service: dict[str, str]) -> None:
    done = confide("healthcheck", "--json", CONFIDE_URL=service["CONFIDE_URL"])
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ready": True})


def test_migrate_tells_what_is_due_does_it_and_keeps_the_region(empty_database: str) -> None:
    dev = {"CONFIDE_ENV": "dev", "CONFIDE_REGION": REGION, "CONFIDE_DATABASE_URL": empty_database}
    before = confide("migrate", "--check", "--json", **dev)
    assert (before.returncode, json.loads(before.stdout)["due"]) == (1, True)
    done = confide("migrate", "--json", **dev)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["region"] == REGION
    assert confide("migrate", "--check", **dev).returncode == 0
    moved = confide("migrate", **dev | {"CONFIDE_REGION": "us-east-1"})
    assert moved.returncode == 1
    assert REGION in moved.stderr
    assert (
        confide("migrate", **dev | {"CONFIDE_DATABASE_URL": "postgresql://planted:secret@127.0.0.1:1/x"}).returncode
        == 1
    )


def test_serve_refuses_a_superusers_login_in_production(cell_variables: dict[str, str]) -> None:
    done = confide("serve", "--port", "0", **cell_variables | SAFE)
    assert done.returncode == 1
    assert "superuser" in done.stderr
    assert cell_variables["CONFIDE_DATABASE_URL"] not in done.stderr


def test_serve_refuses_a_login_that_may_act_as_the_owner(cell_variables: dict[str, str], database: str) -> None:
    name = f"test_owner_{os.getpid()}"
    asyncio.run(make_service_login(database, name, "planted-password"))
    grant(database, f"GRANT confide_owner TO {name}")
    try:
        url = f"postgresql://{name}:planted-password@{database.rpartition('@')[2]}"
        done = confide("serve", "--port", "0", **cell_variables | SAFE | {"CONFIDE_DATABASE_URL": url})
        assert done.returncode == 1
        assert "owner" in done.stderr
        assert "planted-password" not in done.stderr
    finally:
        grant(database, f"DROP ROLE {name}")


def grant(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CONFIDE_REGION": "us-east-1"}, REGION),
        ({"CONFIDE_DATABASE_URL": "postgresql://planted:password@127.0.0.1:1/x"}, "reached"),
        ({"CONFIDE_PORT": "99999"}, "CONFIDE_PORT"),
        ({"CONFIDE_TYPO": "planted"}, "CONFIDE_TYPO"),
    ],
)
def test_serve_says_what_keeps_it_from_starting(cell_variables: dict[str, str], changes: dict, words: str) -> None:
    done = confide("serve", **{"CONFIDE_PORT": "0"} | cell_variables | changes)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "planted" not in done.stderr


def test_serve_without_a_schema_says_to_migrate(empty_database: str) -> None:
    production = SAFE | {"CONFIDE_DATABASE_URL": empty_database}
    done = confide("serve", "--port", "0", **production)
    assert done.returncode == 1
    assert "confide migrate" in done.stderr


def test_in_development_an_owners_login_that_is_no_superuser_serves_too(own_postgres: EmbeddedPostgres) -> None:
    """On a server that has never seen Confide: the login makes the roles, and may then act as the service."""
    above = own_postgres.superuser_url()
    grant(above, "CREATE ROLE newcomer LOGIN CREATEROLE PASSWORD 'planted'")
    grant(above, "CREATE DATABASE mine OWNER newcomer")
    url = f"postgresql://newcomer:planted@127.0.0.1:{own_postgres.port}/mine"
    with pytest.raises(CellError, match="create it first"):
        asyncio.run(standing(url.replace("mine", "none")))
    assert bring_up(url, REGION) == head()
    with pytest.raises(CellError, match="GRANT confide_service"):
        asyncio.run(standing(url))
    asyncio.run(join_service(url))
    assert asyncio.run(standing(url)).region == REGION
    grant(above, "CREATE ROLE stranger LOGIN PASSWORD 'planted'")
    with pytest.raises(CellError, match="GRANT confide_service"):
        asyncio.run(join_service(url.replace("newcomer", "stranger")))


def test_a_server_that_is_too_old_is_named_as_that() -> None:
    """One that greets as PostgreSQL 14 does; nobody asks it more."""
    greeting = b"R" + struct.pack(">ii", 8, 0)
    for name, value in ((b"server_version", b"14.9"), (b"client_encoding", b"UTF8"), (b"TimeZone", b"UTC")):
        greeting += b"S" + struct.pack(">i", 6 + len(name) + len(value)) + name + b"\0" + value + b"\0"

    def greet(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if client.recv(4096)[4:8] == b"\x04\xd2\x16\x2f":  # may we speak TLS?
                    client.sendall(b"N")
                    client.recv(4096)
                client.sendall(greeting + b"Z" + struct.pack(">ic", 5, b"I"))
                client.recv(4096)
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        url = f"postgresql://planted@127.0.0.1:{listener.getsockname()[1]}/x"
        with pytest.raises(CellError, match="PostgreSQL 14; Confide needs 15 or newer"):
            asyncio.run(standing(url))


def test_serve_tells_a_port_in_use(cell_variables: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = confide("serve", "--json", "--port", str(busy.getsockname()[1]), **cell_variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--port" in done.stderr


def test_serve_tells_a_script_in_one_line_where_it_answers(cell_variables: dict[str, str], tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    command = [sys.executable, "-m", "app", "serve", "--json", "--demo", "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            command, cwd=ROOT, env=clean | cell_variables, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert serving.stdout is not None
    told = json.loads(serving.stdout.readline() or "{}")
    try:
        expected = {"event": "ready", "pid": serving.pid, "workers": 1, "region": REGION, "database": "external"}
        assert told.items() >= expected.items(), (tmp_path / "log").read_text()
        assert confide("healthcheck", CONFIDE_URL=told["url"]).returncode == 0
        keys = Path(told["demo"]).read_text()
        assert f"CONFIDE_URL={told['url']}\n" in keys
        assert not any(line.partition("=")[2] in json.dumps(told) for line in keys.splitlines() if "_KEY=" in line)
    finally:
        serving.terminate()
        rest, _ = serving.communicate(timeout=120)
    assert (serving.returncode, rest) == (0, "")


def test_demo_is_for_development(cell_variables: dict[str, str]) -> None:
    done = confide("serve", "--demo", "--port", "0", **cell_variables | SAFE)
    assert done.returncode == 1
    assert "CONFIDE_ENV=dev" in done.stderr
