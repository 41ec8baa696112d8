"""``confide audit``: export, verify, cross-check, reconcile."""

from __future__ import annotations

import argparse
import asyncio
import os
import urllib.error
import urllib.request
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from app.cli.output import FAILED, OK, CommandError, Subparsers, emit

Parser = argparse.ArgumentParser
_AUDITOR: Final = "CONFIDE_AUDITOR_KEY"
_OPERATOR: Final = "CONFIDE_OPERATOR_KEY"
_CHUNK: Final = 1 << 20
_EXPORT_SECONDS: Final = 120


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Adds ``audit``."""
    parser = subparsers.add_parser("audit", help="export and verify the audit log, and hold it against other records")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_export(commands.add_parser("export", help="download an export that verifies offline"))
    _add_verify(commands.add_parser("verify", help="verify an export offline"))
    _add_cross_check(commands.add_parser("cross-check", help="hold stored rows against the log, on the cell itself"))
    _add_reconcile(commands.add_parser("reconcile", help="hold an export against your own cloud's log"))


def _add_export(parser: Parser) -> None:
    parser.description = (
        f"Downloads an export from CONFIDE_URL with the key in {_AUDITOR}; with --cell, of the cell's own log with the"
        f" operator's key in {_OPERATOR}."
    )
    parser.add_argument("--cell", action="store_true", help="the cell's own log, for operators")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to write it; replaced when it is complete")
    parser.add_argument("--from", dest="since", metavar="TIME", help="events at this time or later (RFC 3339)")
    parser.add_argument("--to", dest="until", metavar="TIME", help="events before this time")
    parser.add_argument("--first", type=int, metavar="LEAF", help="begin with this leaf")
    parser.add_argument("--epoch", type=int, metavar="N", help="an older origin of the log, from before a restore")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="LAST", help="the checkpoint that you kept: prove that it extends"
    )
    parser.add_argument("--format", choices=("ndjson", "ocsf"), default="ndjson")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=export)


def _add_verify(parser: Parser) -> None:
    parser.description = (
        "Verifies an export, or an evidence archive (ZIP), without the service. For exports app/audit/verify.py does"
        " the same as a single file."
    )
    parser.epilog = "exit status: 0 verified; 1 tampering or a mismatch; 2 nothing can be said; 3 incomplete"
    parser.add_argument("export", metavar="EXPORT", help="the export file, or the evidence archive")
    parser.add_argument("--key", action="append", required=True, metavar="VKEY", help="verifier key; may be repeated")
    parser.add_argument("--checkpoint", metavar="LAST", help="file with the last checkpoint that you kept")
    parser.add_argument("--origin", default="", help="the log that you expect")
    parser.add_argument("--clock-tolerance", default="10", metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=verify)


def _add_cross_check(parser: Parser) -> None:
    parser.description = (
        "For operators, on the cell: holds stored versions, turn numbers and commit numbers against the log. Needs the"
        " service's settings. A row that was put back whole, or deleted behind the service's back, is named."
    )
    parser.epilog = "exit status: 0 nothing differs; 1 something does, or the command failed"
    parser.add_argument("--tenant", metavar="ID", help="only this tenant (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=cross_check)


def _add_reconcile(parser: Parser) -> None:
    parser.description = (
        "Joins an export's KMS calls with your cloud's log. Lists calls that the log can't explain and events that your"
        " cloud doesn't show. Verify the export first."
    )
    parser.epilog = "exit status: 0 nothing differs; 1 something does, or the command failed"
    parser.add_argument("export", type=Path, metavar="EXPORT", help="the export file (ndjson)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cloudtrail", type=Path, nargs="+", metavar="FILE", help="CloudTrail files, plain or gzip")
    source.add_argument("--key-vault", type=Path, nargs="+", metavar="FILE", help="Key Vault AuditEvent files")
    parser.add_argument("--kek", metavar="URI", help="only this key (default: every key of that cloud)")
    parser.add_argument(
        "--delay", type=float, default=60.0, metavar="MINUTES", help="how late the cloud may deliver (60)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=reconcile)


# ---------------------------------------------------------------- running


def export(args: argparse.Namespace) -> int:
    """Stream into a draft beside the file; a broken download leaves the older file as it was."""
    from app.cli.rest import base_url, key  # noqa: PLC0415

    query: dict[str, Any] = {"format": args.format, "from": args.since, "to": args.until, "first": args.first}
    query["epoch"] = args.epoch
    if args.checkpoint is not None:
        query["known"] = _size_of(args.checkpoint)
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    path, name = ("/v1/cell/audit/export", _OPERATOR) if args.cell else ("/v1/audit/export", _AUDITOR)
    request = urllib.request.Request(  # noqa: S310  http or https, as base_url checks
        f"{base_url()}{path}?{asked}", headers={"Authorization": f"Bearer {key(name)}"}
    )
    draft = args.file.with_name(f".{args.file.name}.{os.getpid()}")
    size, tail = 0, b""
    try:
        with urllib.request.urlopen(request, timeout=_EXPORT_SECONDS) as answer, draft.open("wb") as file:  # noqa: S310
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                size, tail = size + len(chunk), (tail + chunk)[-64:]
        if args.format == "ndjson" and b"\n#end " not in b"\n" + tail:
            raise CommandError("the download broke off: repeat it")
        draft.replace(args.file)
    except urllib.error.HTTPError as error:
        raise CommandError(f"the service answered {error.code}") from None
    except OSError as error:
        raise CommandError(f"the export can't be downloaded or written ({type(error).__name__})") from None
    finally:
        draft.unlink(missing_ok=True)
    emit({"file": str(args.file), "bytes": size}, as_json=args.json)
    return OK


def _size_of(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8").split("\n")[1])
    except (OSError, ValueError, IndexError):
        raise CommandError(f"{path} is not a checkpoint") from None


def verify(args: argparse.Namespace) -> int:
    from app.audit import verify as verifier  # noqa: PLC0415
    from app.cli import audit_evidence  # noqa: PLC0415

    if audit_evidence.is_archive(args.export):
        return audit_evidence.verify(args.export, args.key, as_json=args.json)
    arguments = [args.export, "--origin", args.origin, "--clock-tolerance", args.clock_tolerance]
    arguments += [part for one in args.key for part in ("--key", one)]
    arguments += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    return verifier.main(arguments + (["--json"] if args.json else []))


def reconcile(args: argparse.Namespace) -> int:
    from app.cli import audit_reconcile as work  # noqa: PLC0415

    read, files, prefix = (
        (work.cloudtrail, args.cloudtrail, "arn:") if args.cloudtrail else (work.key_vault, args.key_vault, "https://")
    )
    try:
        calls = [call for path in files for call in read(path)]
        found = work.reconcile(
            work.events_of(args.export), calls, prefix=prefix, key=args.kek, delay=timedelta(minutes=args.delay)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"a file can't be read or is no log of that kind ({type(error).__name__})") from None
    emit(asdict(found), as_json=args.json)
    return OK if found.clean else FAILED


def cross_check(args: argparse.Namespace) -> int:
    from app.cli.operator import _with_embedded  # noqa: PLC0415
    from app.errors import ConfideError  # noqa: PLC0415
    from app.main import load  # noqa: PLC0415  imports all of the service

    settings = load(_with_embedded(os.environ))
    try:
        found = asyncio.run(_cross_check(settings.database_url or "", settings.region, args.tenant))
    except ConfideError:
        raise CommandError("The database can't be reached or refuses the login.") from None
    emit(found, as_json=args.json)
    return OK if found["findings"] == [] else FAILED


async def _cross_check(url: str, region: str, tenant: str | None) -> dict[str, Any]:
    from uuid import UUID  # noqa: PLC0415

    from app.identity import NO_UUID  # noqa: PLC0415
    from app.services.audit_cross_check import cross_check as check  # noqa: PLC0415
    from app.store import audit_check  # noqa: PLC0415
    from app.store.audit_pool import AuditPool, audit_connector  # noqa: PLC0415

    pool = AuditPool(audit_connector(url), 1)
    try:
        if tenant is not None:
            tenants = [UUID(tenant)]
        else:
            async with pool.transaction() as tx:
                tenants = await audit_check.tenants(tx.connection)
        answer: dict[str, Any] = {"tenants": len(tenants), "containers": 0, "events": 0, "findings": []}
        for one in tenants if tenant is not None else [*tenants, NO_UUID]:  # the cell's own log too
            report = await check(pool, one, region)
            answer["containers"] += report.containers
            answer["events"] += report.events
            answer["findings"] += [{"tenant": str(one), **asdict(finding)} for finding in report.findings]
    except ValueError:
        raise CommandError("--tenant is not a tenant's id") from None
    finally:
        await pool.close()
    return answer
