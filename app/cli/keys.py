"""``confide keys``: a tenant's own keys through the REST API."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final
from urllib.parse import quote

from app.cli.output import FAILED, OK, CommandError, Subparsers, emit
from app.cli.rest import call

_ADMIN: Final = "CONFIDE_ADMIN_KEY"
_AT_BINDING: Final = (
    ("check", "run the doctor: what is wrong with a binding, and how to mend it"),
    ("activate", "let a checked binding's key rule"),
    ("retire", "take a binding out of use, once nothing depends on it"),
)
_AT_ONCE: Final = (
    ("seal", "the kill switch: no key of the tenant's is used any more"),
    ("unseal", "lift the seal"),
    ("rotate", "begin a new root key generation under the present key"),
    ("rekey", "encrypt everything anew, under new keys"),
)

Parser = argparse.ArgumentParser


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Adds ``keys``."""
    parser = subparsers.add_parser("keys", help="bring your own key, and see or change what opens the tenant's data")
    parser.description = f"Tenant administrators' commands. They call CONFIDE_URL with the key in {_ADMIN}."
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _command(commands, "show", "what opens the tenant's data").set_defaults(method="GET", path="/v1/keys")
    bind = _command(commands, "bind", "name a key of your own; prints what to paste into your cloud")
    bind.add_argument("provider", help="aws-kms, azure-key-vault, vault-transit, or vendor")
    bind.add_argument(
        "field", nargs="*", metavar="NAME=VALUE", help="e.g. key_arn=arn:aws:kms:… role_arn=arn:aws:iam::…"
    )
    bind.set_defaults(run=_bind)
    for name, words in _AT_BINDING:
        one = _command(commands, name, words)
        one.add_argument("id", help="the binding's id")
        one.set_defaults(method="POST", path=f"/v1/keys/bindings/{{id}}/{name}")
    for name, words in _AT_ONCE:
        _command(commands, name, words).set_defaults(method="POST", path=f"/v1/keys/{name}")
    for name in ("activate", "rotate", "rekey"):
        commands.choices[name].add_argument("--wait", action="store_true", help="until the job is done")
    policy = _command(commands, "policy", "change lease, grace or rotation period")
    policy.add_argument("--lease", type=int, metavar="SECONDS", help="0 to 300")
    policy.add_argument("--grace", type=int, metavar="SECONDS", help="0 to 900")
    policy.add_argument("--rotation-days", type=int, metavar="DAYS")
    policy.add_argument("--region", action="append", metavar="REGION", help="where a KMS key may be; repeatable")
    policy.set_defaults(run=_policy)


def _command(commands: Subparsers[Parser], name: str, words: str) -> Parser:
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)
    return parser


def _run(args: argparse.Namespace) -> int:
    path = args.path.replace("{id}", quote(getattr(args, "id", ""), safe=""))
    answer = call(args.method, path, key_name=_ADMIN)
    if getattr(args, "wait", False):
        answer = _wait(str(answer["job"]))
    emit(answer, as_json=args.json)
    refused = (
        answer.get("ok") is False or answer.get("retired") is False or answer.get("state") in {"failed", "blocked"}
    )
    return FAILED if refused else OK


def _wait(job: str) -> dict[str, Any]:
    while True:
        answer = call("GET", f"/v1/jobs/{quote(job, safe='')}", key_name=_ADMIN)
        if answer["state"] in {"done", "failed", "blocked"}:
            return answer
        time.sleep(0.5)


def _bind(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"provider": args.provider}
    for pair in args.field:
        name, equals, value = pair.partition("=")
        if not equals:
            raise CommandError("give each field as NAME=VALUE")
        body[name] = value == "true" if name == "managed_hsm" else value
    answer = call("POST", "/v1/keys/bindings", key_name=_ADMIN, body=body)
    if args.json:
        emit(answer, as_json=True)
        return OK
    steps = answer.pop("steps", [])
    emit(answer, as_json=False)
    for number, step in enumerate(steps, 1):
        print(f"\n{number}. {step['title']}\n\n{step['text']}")
    return OK


def _policy(args: argparse.Namespace) -> int:
    given = {
        "lease_seconds": args.lease,
        "grace_seconds": args.grace,
        "rotation_days": args.rotation_days,
        "allowed_kms_regions": args.region,
    }
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise CommandError("name what to change: --lease, --grace, --rotation-days or --region")
    emit(call("PATCH", "/v1/keys/policy", key_name=_ADMIN, body=body), as_json=args.json)
    return OK
