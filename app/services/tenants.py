"""Tenants: created by operators, entered through a one-time token, then out of the operators' hands.

An operator's act on a tenant stands in the tenant's log and in the cell's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from app.crypto import apikeys
from app.crypto.secret import SecretKey
from app.errors import Conflict, InvalidRequest, NotFound, TenantSuspended, Unauthenticated
from app.identity import NO_UUID, ROLE_PURPOSES, ROLE_SCOPES, ApiKeyId, Caller, Role, TenantId, new_id
from app.services.access import Access
from app.services.api_keys import ApiKeys, Issued, Wanted
from app.services.auditing import Auditing, Trace
from app.services.control import ControlPlane
from app.store import api_keys as key_rows
from app.store import tenants as rows
from app.store.ledger import Ledger, Transaction

ENROLMENT_LIFE: Final = timedelta(days=7)


DEFAULT_TIMES: Final = {"ttl_idle_seconds": 2592000, "ttl_max_seconds": 31536000}
"""As in the schema."""


class TenantKeyMaker(Protocol):
    """Makes a tenant's first keys (``app/services/keyring.py``)."""

    async def prepare_tenant(self, tenant: UUID) -> Any:
        """Calls the KMS, in no transaction. Raises KeyUnavailable."""

    async def store_tenant(self, tx: Transaction, prepared: Any) -> None:
        """Inserts what ``prepare_tenant`` made."""


@dataclass(frozen=True, slots=True)
class Created:
    """A new tenant, and the token that makes its first admin key; the token exists nowhere else."""

    row: Any
    expires_at: datetime
    token: str = field(repr=False)


class Tenants:
    """The operator's and the administrator's side of a tenant's own row."""

    def __init__(
        self,
        *,
        env: str,
        region: str,
        pepper: SecretKey,
        ledger: Ledger,
        auditing: Auditing,
        access: Access,
        control: ControlPlane,
        keys: ApiKeys,
        maker: TenantKeyMaker,
    ) -> None:
        self._env = env
        self._region = region
        self._pepper = pepper
        self._ledger = ledger
        self._auditing = auditing
        self._access = access
        self._control = control
        self._keys = keys
        self._maker = maker

    # ------------------------------------------------------------ operators

    async def create(self, caller: Caller, name: str, settings: Mapping[str, Any], trace: Trace) -> Created:
        """A tenant with its keys and an enrolment token. Raises InvalidRequest, KeyUnavailable."""
        _check_times(settings, DEFAULT_TIMES)
        async with self._control.look(caller, trace):
            pass  # no KMS call for an operator whose key was revoked
        tenant, token_id = new_id(), new_id()
        prepared = await self._maker.prepare_tenant(tenant)
        token = apikeys.mint_enrolment(self._env, self._region, token_id)
        expires = datetime.now(UTC) + ENROLMENT_LIFE
        async with self._control.act(caller, trace, "tenant.create", tenant) as act:
            row = await rows.insert(act.tx, tenant, self._region, name, settings)
            await self._maker.store_tenant(act.tx, prepared)
            await key_rows.insert_enrolment(
                act.tx, tenant, token_id, apikeys.digest(self._pepper, token, str(tenant)), expires
            )
            act.detail |= {"tenant": str(tenant), "enrolment": str(token_id)}
        return Created(row, expires, token)

    async def get(self, caller: Caller, tenant: UUID, trace: Trace) -> Any:
        """Any tenant's row, for operators. Raises NotFound."""
        async with self._control.look(caller, trace, tenant) as tx:
            row = await rows.get(tx, tenant)
        if row is None:
            raise NotFound
        return row

    async def page(self, caller: Caller, after: UUID, limit: int, trace: Trace) -> list[Any]:
        """Tenants by age, oldest first, one more than ``limit`` where there are more. For operators."""
        async with self._control.look(caller, trace) as tx:
            found = await rows.ids(tx, after, limit + 1)
        async with self._ledger.transaction(*found) as tx:
            return await rows.get_many(tx, found)

    async def suspend(self, caller: Caller, tenant: UUID, trace: Trace) -> Any:
        """No request of the tenant's is served from the next statement on. Raises NotFound, Conflict."""
        return await self._set_state(caller, tenant, "active", "suspended", "tenant.suspend", trace)

    async def resume(self, caller: Caller, tenant: UUID, trace: Trace) -> Any:
        """Raises NotFound, Conflict."""
        return await self._set_state(caller, tenant, "suspended", "active", "tenant.resume", trace)

    async def _set_state(self, caller: Caller, tenant: UUID, old: str, new: str, action: str, trace: Trace) -> Any:
        async with self._control.act(caller, trace, action, tenant) as act:
            before = await rows.get(act.tx, tenant)
            if before is None:
                raise NotFound
            act.detail |= {"tenant": str(tenant), "from": before["state"], "to": new}
            row = await rows.set_state(act.tx, tenant, old, new)
            if row is None:
                raise Conflict("The tenant is leaving or gone; its state can't be changed this way.")
        return row

    # ------------------------------------------------------------ the tenant's own side

    async def own(self, caller: Caller, trace: Trace) -> Any:
        async with self._control.look(caller, trace) as tx:
            return await rows.get(tx, caller.tenant)

    async def update(self, caller: Caller, changes: Mapping[str, Any], trace: Trace) -> Any:
        """Change the tenant's settings. Raises InvalidRequest if the idle time to live passes the greatest one."""
        async with self._control.act(caller, trace, "tenant.update") as act:
            before = await rows.get(act.tx, caller.tenant)
            _check_times(changes, before)
            act.detail |= {column: str(value).lower() for column, value in changes.items() if column != "name"}
            return await rows.update(act.tx, caller.tenant, changes)

    async def redeem(self, text: str, name: str, trace: Trace) -> Issued:
        """The first admin key for an enrolment token, once. Raises Unauthenticated for whatever is wrong with it,
        WrongRegion, TenantSuspended.
        """
        try:
            parsed = apikeys.parse_enrolment(text)
            if parsed.env != self._env:
                raise Unauthenticated
            self._access.check_region(parsed)
            tenant = await self._owner_of(parsed.key_id, text)
            return await self._redeem(tenant, parsed.key_id, name, trace)
        except Unauthenticated:
            self._access.denials.unauthenticated("enrolment")
            raise

    async def _owner_of(self, token: UUID, text: str) -> UUID:
        async with self._ledger.transaction() as tx:
            found = await key_rows.find_enrolment(tx, token)
        stored = found["digest"] if found is not None else bytes(apikeys.DIGEST_SIZE)
        tenant: UUID = found["tenant_id"] if found is not None else NO_UUID
        if not apikeys.matches(self._pepper, text, stored, str(tenant)) or found is None:
            raise Unauthenticated
        return tenant

    async def _redeem(self, tenant: UUID, token: UUID, name: str, trace: Trace) -> Issued:
        principal = new_id()
        wanted = Wanted(name, Role.ADMIN, ROLE_SCOPES[Role.ADMIN], ROLE_PURPOSES[Role.ADMIN])
        caller = Caller(
            TenantId(tenant), ApiKeyId(NO_UUID), principal, Role.ADMIN, wanted.scopes or frozenset(), frozenset()
        )
        source = await self._auditing.source(tenant, trace.source) if trace.source else None
        async with self._ledger.transaction(tenant) as tx:
            row = await rows.get(tx, tenant)
            if row is None or row["state"] != "active":
                raise TenantSuspended
            if not await key_rows.redeem(tx, tenant, token):
                raise Unauthenticated
            issued = await self._keys.issue(tx, tenant, wanted, caller.principal)
            tx.event(tenant, "tenant.enrol", self._enrol_facts(issued, token, trace, source))
        return issued

    @staticmethod
    def _enrol_facts(issued: Issued, token: UUID, trace: Trace, source: str | None) -> str:
        """The event names the key that was made: it is what its redeemer may now call himself."""
        known: dict[str, Any] = {
            "principal": str(issued.row["principal"]),
            "api_key": str(issued.row["id"]),
            "role": issued.row["role"],
            "trace": trace.trace,
            "request": trace.request,
            "detail": {"enrolment": str(token)},
        }
        if source is not None:
            known["source"] = source
        return orjson.dumps({name: value for name, value in known.items() if value}).decode()


def _check_times(changes: Mapping[str, Any], before: Any) -> None:
    """Raises InvalidRequest where the idle time to live would pass the greatest one."""
    idle = changes.get("ttl_idle_seconds", before["ttl_idle_seconds"])
    if idle > changes.get("ttl_max_seconds", before["ttl_max_seconds"]):
        raise InvalidRequest("The default idle time to live can't exceed the greatest one.", "/ttl_idle_seconds")
