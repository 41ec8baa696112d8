"""The gate: whose API key this is, and whether he may come in now.

A key is judged offline first (form, checksum, region), then against its row. A row found is kept for a while, by the
SHA-256 of what was sent, so that a warm request costs a hash and no query. That doesn't defer revocation: the dialogue
statements and ``ControlPlane`` check the row again in their own transaction, and so does a denial.

Every failure is one and the same ``Unauthenticated``; the reason is only counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final, Protocol
from uuid import UUID

from app.crypto import apikeys
from app.crypto.secret import SecretKey
from app.errors import ConfideError, Unauthenticated, WrongRegion
from app.identity import ApiKeyId, Caller, Purpose, Role, Scope, TenantId
from app.services.auditing import Trace
from app.services.denials import Denials
from app.services.ending import end
from app.services.rate import Rates
from app.store.api_keys import Found, KeyRows

log = logging.getLogger("confide.access")

FRESH: Final = 30.0
"""Seconds that a row found is kept."""
UNKNOWN_FRESH: Final = 5.0
KEPT: Final = 20_000
TOUCH_SECONDS: Final = 30.0
NO_DIGEST: Final = bytes(apikeys.DIGEST_SIZE)
_SCHEME: Final = b"bearer "

Network = IPv4Network | IPv6Network


class Traced(Protocol):
    """What a denial needs of a request."""

    trace_id: str
    request_id_text: str
    client_address: str


@dataclass(slots=True)
class _Known:
    """A key whose secret was right, as of ``checked`` on the monotonic clock."""

    caller: Caller
    expires_at: float | None
    sources: tuple[Network, ...] | None
    rate: int | None
    checked: float
    used: float = 0.0
    """When it was last used, in Unix seconds."""


def trace_of(request: Traced) -> Trace:
    return Trace(request.trace_id, request.request_id_text, request.client_address)


class Access:
    """Implements the dispatcher's ``Gate``."""

    def __init__(
        self,
        *,
        env: str,
        region: str,
        cells: Mapping[str, str],
        pepper: SecretKey,
        rows: KeyRows,
        rates: Rates,
        denials: Denials,
    ) -> None:
        self._env = env
        self._region = region
        self._cells = cells
        self._pepper = pepper
        self._rows = rows
        self._rates = rates
        self.denials = denials
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._by_key: dict[UUID, bytes] = {}
        self._flushed = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="last-use")

    async def close(self) -> None:
        await end(self._task)
        await self.flush()

    # ------------------------------------------------------------ the gate

    async def authenticate(self, authorization: bytes | None, client_address: str) -> Caller:
        """The caller. Raises Unauthenticated; WrongRegion for a well-formed key of another region; Unavailable."""
        if authorization is None or len(authorization) > 256 or authorization[:7].lower() != _SCHEME:
            raise self._refusal("missing" if authorization is None else "malformed")
        name = hashlib.sha256(authorization[7:]).digest()
        known = self._known.get(name)
        if known is None or time.monotonic() - known.checked > FRESH:
            known = await self._look_up(name, authorization[7:])
        now = time.time()
        if known.expires_at is not None and known.expires_at <= now:
            raise self._refusal("expired")
        if known.sources is not None and not _listed(client_address, known.sources):
            raise self._refusal("source")
        known.used = now
        return known.caller

    def admit(self, caller: Caller) -> None:
        """Raises RateLimited. The rate counts per worker."""
        known = self._known.get(self._by_key.get(caller.api_key, b""))
        self._rates.admit(caller.tenant, known.rate if known is not None else None)

    async def denied(self, caller: Caller, route_name: str, reason: str, request: Traced) -> None:
        """Audit that a known caller may not do this. A key that no longer stands gets the 401 it deserves instead."""
        await self.check(caller)
        await self.denials.denied(caller, reason, route_name, trace_of(request))

    async def check(self, caller: Caller) -> None:
        """Read the key's row now. Raises Unauthenticated if it was revoked or has expired."""
        found = await self._rows.find(caller.api_key)
        reason = _dead(found)
        if reason is not None:
            self.forget(caller.api_key)
            raise self._refusal(reason, found)

    def forget(self, key: UUID) -> None:
        """Drop what is kept of a key: a statement found it revoked, or this worker revoked it."""
        name = self._by_key.pop(key, None)
        if name is not None:
            self._known.pop(name, None)

    # ------------------------------------------------------------ looking up

    async def _look_up(self, name: bytes, token: bytes) -> _Known:
        until = self._unknown.get(name)
        if until is not None and until > time.monotonic():
            raise self._refusal("unknown")
        parsed = self._parse(token)
        text = token.decode("ascii")
        found = await self._rows.find(parsed.key_id)
        stored, rights = (found[0]["digest"], rights_of(found[0])) if found is not None else (NO_DIGEST, ())
        right = apikeys.matches(self._pepper, text, stored, *rights)
        if found is None or not right:
            self._remember_unknown(name)
            raise self._refusal("unknown" if found is None else "secret")
        reason = _dead(found)
        if reason is not None:
            self.forget(parsed.key_id)
            raise self._refusal(reason, found)
        return self._remember(name, found)

    def _parse(self, token: bytes) -> apikeys.ParsedKey:
        try:
            parsed = apikeys.parse(token.decode("ascii", "replace"))
        except Unauthenticated:
            raise self._refusal("malformed") from None
        if parsed.env != self._env:
            raise self._refusal("environment")
        self.check_region(parsed)
        return parsed

    def check_region(self, parsed: apikeys.ParsedKey) -> None:
        """Raises WrongRegion, with the right cell's address where the deployment lists it."""
        if parsed.region != self._region:
            self.denials.unauthenticated("region")
            raise WrongRegion(parsed.region, self._cells.get(parsed.region))

    def _remember(self, name: bytes, found: Found) -> _Known:
        row, rate = found
        expires = row["expires_at"]
        sources = row["sources"]
        before = self._known.get(name)
        known = _Known(
            self._caller(name, row),
            expires.timestamp() if expires is not None else None,
            tuple(ip_network(source) for source in sources) if sources is not None else None,
            rate,
            time.monotonic(),
            before.used if before is not None else 0.0,
        )
        self._known[name] = known
        self._by_key[row["id"]] = name
        if len(self._known) > KEPT:
            _, oldest = self._known.popitem(last=False)
            self._by_key.pop(oldest.caller.api_key, None)
        return known

    def _caller(self, name: bytes, row: Any) -> Caller:
        """The same object as before where nothing of it changed."""
        caller = Caller(
            TenantId(row["tenant_id"]),
            ApiKeyId(row["id"]),
            row["principal"],
            Role(row["role"]),
            frozenset(Scope(scope) for scope in row["scopes"]),
            frozenset(Purpose(purpose) for purpose in row["purposes"]),
        )
        before = self._known.get(name)
        return before.caller if before is not None and before.caller == caller else caller

    def _remember_unknown(self, name: bytes) -> None:
        self._unknown[name] = time.monotonic() + UNKNOWN_FRESH
        if len(self._unknown) > KEPT:
            self._unknown.popitem(last=False)

    def _refusal(self, reason: str, found: Found | None = None) -> Unauthenticated:
        """Count it, and give the one error that stands for all of them. ``found``: the key, whose secret was right."""
        if reason == "revoked" and found is not None:
            self.denials.revoked(found[0]["tenant_id"], found[0]["id"], found[0]["principal"])
        else:
            self.denials.unauthenticated(reason)
        return Unauthenticated()

    # ------------------------------------------------------------ last use

    async def flush(self) -> None:
        """Write the times of last use. They are a help to find forgotten keys, no audit: one lost is no harm."""
        since, self._flushed = self._flushed, time.time()
        used: dict[tuple[UUID, UUID], datetime] = {
            (known.caller.tenant, known.caller.api_key): datetime.fromtimestamp(known.used, UTC)
            for known in self._known.values()
            if known.used >= since and known.used
        }
        if used:
            with suppress(ConfideError):
                await self._rows.touch(used)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_SECONDS)
            await self.flush()


def rights_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a key's digest binds beside its text: whose it is and what it may do. Its end may move, so that isn't in
    it.
    """
    sources = "" if row["sources"] is None else ",".join(sorted(str(ip_network(source)) for source in row["sources"]))
    return (
        str(row["tenant_id"]),
        str(row["principal"]),
        row["role"],
        ",".join(row["scopes"]),
        ",".join(row["purposes"]),
        "from" if row["sources"] is not None else "anywhere",
        sources,
    )


def _dead(found: Found | None) -> str | None:
    """Why a row no longer lets anybody in, or None."""
    if found is None:
        return "unknown"
    row, now = found[0], datetime.now(UTC)
    if row["revoked_at"] is not None and row["revoked_at"] <= now:
        return "revoked"
    if row["expires_at"] is not None and row["expires_at"] <= now:
        return "expired"
    return None


def _listed(address: str, sources: tuple[Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in sources)
