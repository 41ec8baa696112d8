"""``confide replay``: plays recorded dialogues against a service as a runtime would, then reads everything back."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from app.identity import Purpose

if TYPE_CHECKING:
    from app.cli.replay_run import Plan

OK: Final = 0
MISMATCH: Final = 1
USAGE: Final = 2
FAILURE: Final = 3
INTERRUPTED: Final = 130

_EXITS: Final = {"ok": OK, "mismatch": MISMATCH, "failed": FAILURE}
_DESCRIPTION: Final = """\
Plays a file of dialogues as a dialogue runtime would: a session for each dialogue, and one load and one commit for each
user turn. Every load must show what was committed before. At the end everything is read back and compared.

The API key comes from CONFIDE_RUNTIME_KEY or --key-file. A dialogue's session has the external id PREFIX + dialogue_id,
so a run that was broken off goes on where it stood when it is started again, and --read-only finds what an earlier run
has written. For a fresh start choose another prefix."""
_EPILOG: Final = """\
exit status: 0 all equal; 1 the service holds something else than was committed (the dialogues' ids are told);
2 wrong usage; 3 the service refused or kept failing"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``replay`` to the program's commands."""
    parser = subparsers.add_parser(
        "replay",
        help="play recorded dialogues against a service and compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="JSON lines, plain or gzip; - for standard input")
    parser.add_argument("--url", default=os.environ.get("CONFIDE_URL"), help="the service (default: CONFIDE_URL)")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="read the API key from there")
    parser.add_argument("--concurrency", type=_count, default=8, metavar="N", help="dialogues at a time (default: 8)")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N dialogues")
    parser.add_argument("--prefix", default="replay:", help="of the external ids (default: replay:)")
    phases = parser.add_mutually_exclusive_group()
    phases.add_argument("--write-only", action="store_true", help="don't read back")
    phases.add_argument("--read-only", action="store_true", help="only read back what an earlier run has written")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="remember the sessions' ids and commit numbers there; with --read-only: compare with them too",
    )
    parser.add_argument(
        "--retry-for", type=_seconds, default=60.0, metavar="S", help="how long one call may fail (default: 60 seconds)"
    )
    parser.add_argument("--purpose", choices=[str(purpose) for purpose in Purpose], help="where the key has several")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command. Its exit status is told by ``--help``."""
    # The HTTP client and the progress bar take a while to import: other commands shouldn't wait for them.
    from app.cli.replay_dialogues import UsageError, read_dialogues  # noqa: PLC0415
    from app.cli.replay_report import as_json, as_text, display  # noqa: PLC0415
    from app.cli.replay_run import known_sessions, replay  # noqa: PLC0415

    try:
        plan = _plan(args)
        known = known_sessions(plan)
        dialogues = read_dialogues(args.file, args.limit)
    except UsageError as error:
        print(f"confide replay: {error}", file=sys.stderr)
        return USAGE
    shown = display()
    try:
        report = asyncio.run(replay(plan, dialogues, known, shown))
    except KeyboardInterrupt:
        shown.note("interrupted; the same command goes on from here")
        return INTERRUPTED
    finally:
        shown.end()
    print(as_json(report) if args.json else as_text(report))
    return _EXITS[report.outcome]


def _plan(args: argparse.Namespace) -> Plan:
    from app.cli.replay_run import Plan  # noqa: PLC0415  see run

    return Plan(
        url=_url(args.url),
        api_key=_api_key(args.key_file),
        concurrency=args.concurrency,
        prefix=args.prefix,
        write=not args.read_only,
        read=not args.write_only,
        state_file=args.state,
        retry_for=args.retry_for,
        purpose=args.purpose,
    )


def _url(text: str | None) -> str:
    from app.cli.replay_dialogues import UsageError  # noqa: PLC0415  see run

    if not text:
        raise UsageError("give the service's address with --url or CONFIDE_URL")
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment or parts.username is not None:
        raise UsageError("--url must look like http://host:port")
    return text.rstrip("/")


def _api_key(file: Path | None) -> str:
    """Never from an argument: other users of the machine could read it there."""
    from app.cli.replay_dialogues import UsageError  # noqa: PLC0415  see run

    try:
        key = os.environ.get("CONFIDE_RUNTIME_KEY", "") if file is None else file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise UsageError("the key file can't be read") from None
    key = key.strip()
    if not key:
        raise UsageError("the API key must be in CONFIDE_RUNTIME_KEY or in a --key-file")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("that is not an API key")
    return key


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86_400:
        raise ValueError
    return number
