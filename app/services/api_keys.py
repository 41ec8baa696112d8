"""API keys: issued once, shown once, stored as a peppered digest.

Nobody gets more than he has. An admin may issue runtime and auditor keys; of what an admin key itself can do, he may
pass on only what his own key carries. Rotation hands out a secret too, so it follows the same rule.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from app.crypto import apikeys
from app.crypto.secret import SecretKey
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound
from app.identity import NO_UUID, ROLE_PURPOSES, ROLE_SCOPES, Caller, Purpose, Role, Scope, new_id
from app.services.access import Access, rights_of
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.store import api_keys as rows
from app.store.ledger import Transaction

TENANT_ROLES: Final = frozenset({Role.RUNTIME, Role.ADMIN, Role.AUDITOR})
MAX_LIFE: Final = timedelta(days=3653)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to issue. ``scopes`` and ``purposes`` None: all of the role's; ``sources`` None: from anywhere."""

    name: str
    role: Role
    scopes: frozenset[Scope] | None = None
    purposes: frozenset[Purpose] | None = None
    expires_at: datetime | None = None
    sources: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key's row and its secret, which exists nowhere else."""

    row: Any
    secret: str = field(repr=False)


class ApiKeys:
    """Issues, lists, rotates and revokes. Operators' keys belong to the nil tenant and go the same way."""

    def __init__(self, env: str, region: str, pepper: SecretKey, control: ControlPlane, access: Access) -> None:
        self._env = env
        self._region = region
        self._pepper = pepper
        self._control = control
        self._access = access

    async def create(self, caller: Caller, wanted: Wanted, trace: Trace) -> Issued:
        """Raises Forbidden where the caller may not pass that on, InvalidRequest where the role can't have it."""
        async with self._control.act(caller, trace, "api-key.create", role=wanted.role.value) as act:
            settled = self.settle(wanted)
            _may_pass_on(caller, wanted.role, settled.scopes or (), settled.purposes or ())
            issued = await self.issue(act.tx, caller.tenant, settled, new_id())
            act.detail["key"] = str(issued.row["id"])
        return issued

    async def rotate(self, caller: Caller, key: UUID, overlap: int, trace: Trace) -> Issued:
        """A successor with the same principal, rights and sources, and as long a life. The old key ends after
        ``overlap`` seconds. Raises NotFound; Conflict for a key that is revoked, expired or rotated already.
        """
        async with self._control.act(caller, trace, "api-key.rotate", overlap_seconds=overlap) as act:
            old = await rows.get(act.tx, caller.tenant, key, lock=True)
            if old is None:
                raise NotFound
            act.detail["key"] = str(key)
            _must_stand(old)
            role = Role(old["role"])
            scopes = frozenset(Scope(scope) for scope in old["scopes"])
            purposes = frozenset(Purpose(purpose) for purpose in old["purposes"])
            _may_pass_on(caller, role, scopes, purposes)
            sources = tuple(map(str, old["sources"])) if old["sources"] is not None else None
            life = old["expires_at"] - old["created_at"] if old["expires_at"] is not None else None
            expires = datetime.now(UTC) + life if life is not None else None
            wanted = Wanted(old["name"], role, scopes, purposes, expires, sources)
            issued = await self.issue(act.tx, caller.tenant, wanted, old["principal"])
            successor = issued.row["id"]
            await rows.supersede(act.tx, caller.tenant, key, successor, overlap)
            act.detail["successor"] = str(successor)
        self._access.forget(key)
        return issued

    async def revoke(self, caller: Caller, key: UUID, trace: Trace) -> Any:
        """From now on no statement of any worker lets the key in. Answers its row; raises NotFound."""
        async with self._control.act(caller, trace, "api-key.revoke") as act:
            row = await rows.revoke(act.tx, caller.tenant, key)
            if row is None:
                raise NotFound
            act.detail["key"] = str(key)
        self._access.forget(key)
        return row

    async def get(self, caller: Caller, key: UUID, trace: Trace) -> Any:
        """Raises NotFound."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, caller.tenant, key)
        if row is None:
            raise NotFound
        return row

    async def page(self, caller: Caller, before: UUID | None, limit: int, trace: Trace) -> list[Any]:
        """Newest first, one more than ``limit`` where there are more."""
        async with self._control.look(caller, trace) as tx:
            return await rows.page(tx, caller.tenant, before, limit + 1)

    async def bootstrap(self, name: str) -> Issued:
        """An operator's key from the cell itself: the first one has nobody to issue it. An event in the cell's log."""
        async with self._control.local(NO_UUID, "api-key.create") as act:
            issued = await self.issue(act.tx, NO_UUID, self.settle(Wanted(name, Role.OPERATOR)), new_id())
            act.detail |= {"key": str(issued.row["id"]), "role": Role.OPERATOR.value}
        return issued

    def settle(self, wanted: Wanted) -> Wanted:
        """Fill in the role's scopes and purposes. Raises InvalidRequest for what the role can't have."""
        scopes = ROLE_SCOPES[wanted.role] if wanted.scopes is None else wanted.scopes
        purposes = ROLE_PURPOSES[wanted.role] if wanted.purposes is None else wanted.purposes
        if not scopes <= ROLE_SCOPES[wanted.role]:
            raise InvalidRequest("This role doesn't have one of these scopes.", "/scopes")
        if not purposes <= ROLE_PURPOSES[wanted.role]:
            raise InvalidRequest("This role doesn't have one of these purposes.", "/purposes")
        now = datetime.now(UTC)
        if wanted.expires_at is not None and not now < wanted.expires_at <= now + MAX_LIFE:
            raise InvalidRequest("The expiry must lie ahead, by ten years at most.", "/expires_at")
        return Wanted(wanted.name, wanted.role, scopes, purposes, wanted.expires_at, wanted.sources)

    async def issue(self, tx: Transaction, tenant: UUID, wanted: Wanted, principal: UUID) -> Issued:
        """Mint and store a key of settled rights. The caller of this has decided that it may be issued."""
        key = new_id()
        secret = apikeys.mint(self._env, self._region, key)
        rights: dict[str, Any] = {
            "tenant_id": tenant,
            "principal": principal,
            "role": wanted.role.value,
            "scopes": sorted(wanted.scopes or ()),
            "purposes": sorted(wanted.purposes or ()),
            "sources": wanted.sources,
        }
        row = await rows.insert(
            tx,
            tenant=tenant,
            key=key,
            principal=principal,
            name=wanted.name,
            digest=apikeys.digest(self._pepper, secret, *rights_of(rights)),
            role=wanted.role.value,
            scopes=rights["scopes"],
            purposes=rights["purposes"],
            sources=wanted.sources,
            expires_at=wanted.expires_at,
        )
        return Issued(row, secret)


def _may_pass_on(caller: Caller, role: Role, scopes: Collection[Scope], purposes: Collection[Purpose]) -> None:
    """Raises Forbidden. What admins can't do themselves (open context to serve) is theirs to give out all the same."""
    if caller.tenant == NO_UUID:
        allowed = role is Role.OPERATOR and caller.scopes.issuperset(scopes)
    else:
        own_scopes = ROLE_SCOPES[Role.ADMIN].intersection(scopes)
        own_purposes = ROLE_PURPOSES[Role.ADMIN].intersection(purposes)
        allowed = role in TENANT_ROLES and caller.scopes >= own_scopes and caller.purposes >= own_purposes
    if not allowed:
        raise Forbidden("This API key may not pass on what it doesn't carry itself.")


def _must_stand(row: Any) -> None:
    now = datetime.now(UTC)
    ended = row["revoked_at"] is not None or (row["expires_at"] is not None and row["expires_at"] <= now)
    if ended or row["replaced_by"] is not None:
        raise Conflict("This API key has ended or was rotated already. Create a new one, or rotate its successor.")
