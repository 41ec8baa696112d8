"""``confide tenant``, ``confide api-key`` and ``confide healthcheck``: the control plane through the REST API."""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from app.cli.output import FAILED, OK, CommandError, Subparsers, emit, write_private
from app.cli.rest import call

_OPERATOR: Final = "CONFIDE_OPERATOR_KEY"
_ADMIN: Final = "CONFIDE_ADMIN_KEY"
_ROLES: Final = ("runtime", "admin", "auditor")

Parser = argparse.ArgumentParser


def add_parsers(subparsers: Subparsers[Parser]) -> None:
    """Adds ``tenant``, ``api-key`` and ``healthcheck``."""
    _add_tenant(subparsers.add_parser("tenant", help="create, list, get, suspend and resume tenants"))
    _add_api_key(subparsers.add_parser("api-key", help="create, list, rotate and revoke a tenant's API keys"))
    health = subparsers.add_parser("healthcheck", help="ask whether the service on this machine can serve")
    health.add_argument("--json", action="store_true", help="print JSON")
    health.set_defaults(run=healthcheck)


def _add_tenant(parser: Parser) -> None:
    parser.description = f"Operators' commands. They call CONFIDE_URL with the key in {_OPERATOR}."
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    create = _command(commands, "create", "create a tenant; prints its one-time enrolment token", _create_tenant)
    create.add_argument("name", help="a-z, 0-9 and -")
    create.add_argument("--rate-per-second", type=int, metavar="N", help="requests a second, for each worker")
    create.add_argument("--require-preconditions", action="store_true", help="refuse writes without If-Match")
    _add_secret_file(create)
    _add_paging(_command(commands, "list", "list the cell's tenants", _list_tenants))
    for name, words in (("get", "show a tenant"), ("suspend", "stop serving a tenant"), ("resume", "serve it again")):
        _command(commands, name, words, _one_tenant).add_argument("id", help="the tenant's id")
        commands.choices[name].set_defaults(verb=name)
    enrol = _command(commands, "enrol", "exchange an enrolment token for the tenant's first admin key", _enrol)
    enrol.add_argument("--name", default="first-admin", help="of the key (default: first-admin)")
    enrol.add_argument("--token-file", type=Path, metavar="FILE", help="where the token is (default: standard input)")
    _add_secret_file(enrol)


def _add_api_key(parser: Parser) -> None:
    parser.description = f"Tenant administrators' commands. They call CONFIDE_URL with the key in {_ADMIN}."
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    create = _command(commands, "create", "issue an API key", _create_key)
    create.add_argument("name", help="a-z, 0-9 and -")
    create.add_argument("--role", choices=_ROLES, required=True)
    create.add_argument("--scope", action="append", dest="scopes", metavar="SCOPE", help="only this scope; repeatable")
    create.add_argument("--purpose", action="append", dest="purposes", metavar="PURPOSE", help="only this; repeatable")
    create.add_argument("--source", action="append", dest="sources", metavar="CIDR", help="only from there; repeatable")
    create.add_argument("--ttl", type=int, metavar="SECONDS", help="how long the key lives (default: without end)")
    _add_secret_file(create)
    _add_paging(_command(commands, "list", "list the tenant's API keys", _list_keys))
    rotate = _command(commands, "rotate", "issue a key's successor", _rotate_key)
    rotate.add_argument("id", help="the key's id")
    rotate.add_argument(
        "--overlap", type=int, default=3600, metavar="SECONDS", help="both work so long (default: 3600)"
    )
    _add_secret_file(rotate)
    _command(commands, "revoke", "revoke a key, at once", _revoke_key).add_argument("id", help="the key's id")


def _command(commands: Subparsers[Parser], name: str, words: str, run: Callable[..., int]) -> Parser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_paging(parser: Parser) -> None:
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="how many, at most (default: 50)")
    parser.add_argument("--cursor", help="go on where the last page ended")


def _add_secret_file(parser: Parser) -> None:
    parser.add_argument("--secret-file", type=Path, metavar="FILE", help="write the secret there (0600), not here")


def _show(
    args: argparse.Namespace, answer: dict[str, Any], holder: dict[str, Any] | None = None, name: str = "secret"
) -> int:
    """Print; where the user wants the secret in a file, it goes there and not to the terminal."""
    path: Path | None = getattr(args, "secret_file", None)
    if path is not None and holder is not None:
        write_private(path, holder.pop(name) + "\n")
        holder[f"{name}_file"] = str(path)
    emit(answer, as_json=args.json)
    return OK


def _page(args: argparse.Namespace) -> dict[str, Any]:
    return {"limit": args.limit} | ({"cursor": args.cursor} if args.cursor else {})


def _create_tenant(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"name": args.name}
    if args.rate_per_second is not None:
        body["rate_per_second"] = args.rate_per_second
    if args.require_preconditions:
        body["require_preconditions"] = True
    answer = call("POST", "/v1/tenants", key_name=_OPERATOR, body=body)
    return _show(args, answer, answer["enrolment"], "token")


def _list_tenants(args: argparse.Namespace) -> int:
    return _show(args, call("GET", "/v1/tenants", key_name=_OPERATOR, query=_page(args)))


def _one_tenant(args: argparse.Namespace) -> int:
    path = f"/v1/tenants/{quote(args.id, safe='')}"
    if args.verb == "get":
        return _show(args, call("GET", path, key_name=_OPERATOR))
    return _show(args, call("POST", f"{path}/{args.verb}", key_name=_OPERATOR))


def _enrol(args: argparse.Namespace) -> int:
    try:
        token = (args.token_file.read_text() if args.token_file is not None else sys.stdin.read()).strip()
    except (OSError, UnicodeError):
        raise CommandError("the enrolment token can't be read") from None
    answer = call("POST", "/v1/enrolments/redeem", key_name=None, body={"token": token, "name": args.name})
    return _show(args, answer, answer)


def _create_key(args: argparse.Namespace) -> int:
    body = {"name": args.name, "role": args.role}
    body |= {
        name: value for name in ("scopes", "purposes", "sources", "ttl") if (value := getattr(args, name)) is not None
    }
    answer = call("POST", "/v1/api-keys", key_name=_ADMIN, body=body)
    return _show(args, answer, answer)


def _list_keys(args: argparse.Namespace) -> int:
    return _show(args, call("GET", "/v1/api-keys", key_name=_ADMIN, query=_page(args)))


def _rotate_key(args: argparse.Namespace) -> int:
    path = f"/v1/api-keys/{quote(args.id, safe='')}/rotate"
    answer = call("POST", path, key_name=_ADMIN, body={"overlap_seconds": args.overlap})
    return _show(args, answer, answer)


def _revoke_key(args: argparse.Namespace) -> int:
    return _show(args, call("POST", f"/v1/api-keys/{quote(args.id, safe='')}/revoke", key_name=_ADMIN))


def healthcheck(args: argparse.Namespace) -> int:
    """Asks /readyz of CONFIDE_URL, else of CONFIDE_HOST and CONFIDE_PORT on this machine."""
    host = os.environ.get("CONFIDE_HOST", "127.0.0.1")
    host = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  compared, not bound
    url = os.environ.get("CONFIDE_URL") or f"http://{host}:{os.environ.get('CONFIDE_PORT', '8080')}"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=3) as answer:  # noqa: S310  the operator's
            ready = answer.status == 200
    except (OSError, ValueError):
        ready = False
    emit({"ready": ready}, as_json=args.json)
    return OK if ready else FAILED
