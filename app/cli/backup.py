"""``confide backup`` and ``confide restore``: the database as its owner, and what was erased since."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.output import OK, CommandError, Subparsers, emit

Parser = argparse.ArgumentParser


def add_parsers(subparsers: Subparsers[Parser]) -> None:
    """Adds ``backup`` and ``restore``."""
    backup = subparsers.add_parser(
        "backup",
        help="back up the database, wrapped keys apart",
        description="Dumps the database of CONFIDE_OWNER_DATABASE_URL (a superuser's login) with pg_dump, data and"
        " wrapped keys into folders of their own; or copies the whole cluster with pg_basebackup. The deletion journal"
        " (CONFIDE_DELETION_JOURNAL_DIR) is no part of it: keep it apart, for as long as any backup is kept.",
    )
    backup.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder for the data")
    backup.add_argument("--keys-to", type=Path, metavar="DIR", help="a new folder, elsewhere, for the wrapped keys")
    backup.add_argument("--physical", action="store_true", help="pg_basebackup of the whole cluster, keys included")
    backup.add_argument("--json", action="store_true", help="print JSON")
    backup.set_defaults(run=run_backup)
    restore = subparsers.add_parser(
        "restore",
        help="restore a backup, and erase again what was erased since",
        description="Restores into the empty database of CONFIDE_OWNER_DATABASE_URL, replays the deletion journal,"
        " recomputes every end of life, and erases what has expired. Start the service only when this has ended well."
        " A backup from before the journal's beginning is refused."
        " With --replay-only: for a cluster that was started from a physical backup (--from names that one).",
    )
    restore.add_argument("--from", dest="source", type=Path, metavar="DIR", help="the backup's folder")
    restore.add_argument("--keys-from", type=Path, metavar="DIR", help="the folder of its wrapped keys")
    restore.add_argument("--journal", type=Path, metavar="DIR", help="the deletion journal (default: as the service)")
    restore.add_argument("--replay-only", action="store_true", help="the data is in place: only erase again")
    restore.add_argument("--json", action="store_true", help="print JSON")
    restore.set_defaults(run=run_restore)


def run_backup(args: argparse.Namespace) -> int:
    from app.services import backup  # noqa: PLC0415  imports the database driver

    url = _owner_url()
    if args.physical:
        made = _await(backup.base_backup(url, args.to))
    elif args.keys_to is None:
        raise CommandError("--keys-to is missing: wrapped keys are kept apart from the data, and shorter")
    else:
        made = _await(backup.dump(url, args.to, args.keys_to))
    emit({"taken_at": made.taken_at.isoformat(), "files": made.files}, as_json=args.json)
    return OK


def run_restore(args: argparse.Namespace) -> int:
    from app.main import load, replay_deletions  # noqa: PLC0415  imports all of the service
    from app.services import backup  # noqa: PLC0415
    from app.services.privacy import deletion_folder  # noqa: PLC0415

    url, settings = _owner_url(), load(os.environ)
    journal = args.journal or deletion_folder(settings.deletion_journal_dir, settings.state_dir)
    if not args.replay_only:
        if args.source is None or args.keys_from is None:
            raise CommandError("--from and --keys-from name the backup; --replay-only does without")
        _await(backup.restore(url, args.source, args.keys_from, journal))
    try:
        state_of = backup.taken_at(args.source) if args.source is not None else None
    except backup.BackupError as error:
        raise CommandError(str(error)) from None
    done = _await(replay_deletions(replace(settings, database_url=url), journal, state_of))
    names = ("entries", "containers", "objects", "turns", "tenants", "requests", "expired")
    emit({name: getattr(done, name) for name in names}, as_json=args.json)
    return OK


def _owner_url() -> str:
    from app.main import load  # noqa: PLC0415

    settings = load(os.environ)
    url = settings.owner_database_url or settings.database_url
    if url is None:
        raise CommandError("CONFIDE_OWNER_DATABASE_URL is not set: it names the database, with a superuser's login")
    return url


def _await(work: Coroutine[Any, Any, Any]) -> Any:
    """The result. Raises CommandError with what the operator must know."""
    from app.errors import ConfideError  # noqa: PLC0415
    from app.services.backup import BackupError  # noqa: PLC0415
    from app.services.journal_horizon import HorizonError  # noqa: PLC0415
    from app.store.cell import CellError  # noqa: PLC0415

    try:
        return asyncio.run(work)
    except (BackupError, CellError, HorizonError) as error:
        raise CommandError(str(error)) from None
    except ConfideError as error:
        raise CommandError(f"The database refused the replay; run it again. {error.detail}") from None
    except OSError as error:
        raise CommandError(f"A file can't be read or written: {os.strerror(error.errno or 0)}") from None
