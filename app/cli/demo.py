"""The demo tenant: made once, kept in demo.env, made anew when its keys no longer work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

from app.cli.output import write_private
from app.errors import ConfideError
from app.identity import Caller, Role
from app.main import Settings, assemble, serving
from app.services.api_keys import Issued, Wanted
from app.services.auditing import NO_TRACE
from app.services.services import Services

_LOOPBACK: Final = "127.0.0.1"
_ROLES: Final = {
    "CONFIDE_RUNTIME_KEY": Role.RUNTIME,
    "CONFIDE_ADMIN_KEY": Role.ADMIN,
    "CONFIDE_AUDITOR_KEY": Role.AUDITOR,
    "CONFIDE_OPERATOR_KEY": Role.OPERATOR,
}
_LINE: Final = re.compile(r"(CONFIDE_[A-Z_]+)=([!-~]+)", re.ASCII)


async def prepare(settings: Settings, url: str) -> None:
    """Make sure that demo.env in the state directory holds a tenant and keys that work, and this ``url``."""
    path = settings.state_dir / "demo.env"
    parts = assemble(settings)
    async with serving(parts):
        values = _read(path)
        if not await _works(parts.services, values):
            values = await _create(parts.services)
    values["CONFIDE_URL"] = url
    names = ("CONFIDE_URL", "CONFIDE_TENANT", *_ROLES)
    write_private(path, "".join(f"{name}={values[name]}\n" for name in names))
    for role in ("RUNTIME", "AUDITOR"):
        # curl reads headers from a file, so that no key stands in a shell's history or in the list of processes.
        header = f"Authorization: Bearer {values[f'CONFIDE_{role}_KEY']}\n"
        write_private(settings.state_dir / f"demo.{role.lower()}.header", header)


def banner(state: Path, url: str) -> str:
    """What is printed once the service answers: three lines to paste."""
    runtime, auditor = (
        shlex.quote(f"@{(state / f'demo.{role}.header').absolute()}") for role in ("runtime", "auditor")
    )
    json = "-H 'Content-Type: application/json'"
    commit = (
        '{"external_id":"demo","create":{},"turns":[{"json":{"role":"user","text":"A table for two, please."}}],'
        '"put":[{"collection":"state","key":"slots","json":{"party_size":2}}]}'
    )
    load = '{"external_id":"demo","context":[{}],"turns":{"last":10}}'
    return (
        f"\nConfide serves at {url}   (documentation: {url}/docs)\n"
        f"The demo tenant and its keys are in {state / 'demo.env'}. To commit a dialogue turn, load it, and"
        " see both in the audit log:\n\n"
        f"curl -sS {url}/v1/commit -H {runtime} {json} -d '{commit}'\n"
        f"curl -sS {url}/v1/load -H {runtime} {json} -d '{load}'\n"
        f"curl -sS '{url}/v1/audit/events?limit=5' -H {auditor}\n"
    )


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return {}
    return {match[1]: match[2] for line in lines if (match := _LINE.fullmatch(line))}


async def _works(services: Services, values: dict[str, str]) -> bool:
    """Whether every key still lets its role in, into one and the same tenant that is active."""
    try:
        callers = {name: await _caller(services, values[name]) for name in _ROLES}
        tenant = await services.tenants.own(callers["CONFIDE_ADMIN_KEY"], NO_TRACE)
    except (ConfideError, KeyError):
        return False
    mine = {caller.tenant for caller in callers.values() if caller.role is not Role.OPERATOR}
    roles = {name: caller.role for name, caller in callers.items()}
    return roles == _ROLES and mine == {tenant["id"]} and values.get("CONFIDE_TENANT") == str(tenant["id"])


async def _caller(services: Services, secret: str) -> Caller:
    return await services.access.authenticate(f"Bearer {secret}".encode(), _LOOPBACK)


async def _create(services: Services) -> dict[str, str]:
    """The way that a real tenant goes, step by step."""
    operator = await services.api_keys.bootstrap("demo-operator")
    created = await services.tenants.create(await _caller(services, operator.secret), "demo", {}, NO_TRACE)
    admin = await services.tenants.redeem(created.token, "demo-admin", NO_TRACE)
    caller = await _caller(services, admin.secret)

    async def issue(role: Role) -> Issued:
        return await services.api_keys.create(caller, Wanted(f"demo-{role.value}", role), NO_TRACE)

    return {
        "CONFIDE_TENANT": str(created.row["id"]),
        "CONFIDE_RUNTIME_KEY": (await issue(Role.RUNTIME)).secret,
        "CONFIDE_ADMIN_KEY": admin.secret,
        "CONFIDE_AUDITOR_KEY": (await issue(Role.AUDITOR)).secret,
        "CONFIDE_OPERATOR_KEY": operator.secret,
    }
