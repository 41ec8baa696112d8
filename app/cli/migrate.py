"""``confide migrate``: bring the database's schema to this program's revision, as its owner."""

from __future__ import annotations

import argparse
import asyncio
import os

from app.cli.output import FAILED, OK, CommandError, Subparsers, emit


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds ``migrate``."""
    parser = subparsers.add_parser(
        "migrate",
        help="bring the database's schema up to this program",
        description="Migrates the database of CONFIDE_OWNER_DATABASE_URL (default: CONFIDE_DATABASE_URL), whose login"
        " must be able to create roles, and writes CONFIDE_REGION into an empty one.",
        epilog="exit status: 0 the database is where it should be; 1 it isn't, or the migration failed; 2 wrong usage",
    )
    parser.add_argument("--to", metavar="REV", default="head", help="stop at this revision (default: the newest)")
    parser.add_argument("--check", action="store_true", help="change nothing; tell whether a migration is due")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from app.cli.database import bring_up, head  # noqa: PLC0415  the migrations' libraries take a while to import
    from app.main import load  # noqa: PLC0415
    from app.store.cell import CellError, standing  # noqa: PLC0415

    settings = load(os.environ)
    url = settings.owner_database_url or settings.database_url
    if url is None:
        raise CommandError("CONFIDE_DATABASE_URL is not set: it names the database to migrate")
    wanted = head() if args.to == "head" else args.to
    if not args.check:
        reached = bring_up(url, settings.region, args.to)
        emit({"revision": reached, "region": settings.region}, as_json=args.json)
        return OK
    try:
        found = asyncio.run(standing(url))
    except CellError as error:
        raise CommandError(str(error)) from None
    due = found.revision != wanted or found.region != settings.region
    answer = {"revision": found.revision or "none", "wanted": wanted, "region": found.region or "none", "due": due}
    emit(answer, as_json=args.json)
    return FAILED if due else OK
