# ruff: noqa: S608  what is put into the texts are column lists of this module
"""SQL for API keys and enrolment tokens.

``KeyRows`` answers the gate's question, whose key an id is, on a connection of its own: requests that ask at the same
moment share one query, so a flood of made-up ids costs the database one statement at a time and never holds up the
control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from app.errors import Unavailable
from app.store.connection import BROKEN, Connect
from app.store.ledger import Transaction

MAX_WAITING: Final = 1024
MAX_BATCH: Final = 64
ASK_SECONDS: Final = 5.0

_FIND: Final = (
    "SELECT k.tenant_id, k.id, k.principal, k.digest, k.role, k.scopes, k.purposes, k.sources, k.expires_at,"
    " k.revoked_at FROM unnest($1::uuid[]) AS a (id) CROSS JOIN LATERAL confide.api_key_by_id(a.id) AS k"
)
_RATES: Final = "SELECT id, rate_per_second FROM confide.tenant WHERE id = ANY ($1)"
_TOUCH: Final = (
    "UPDATE confide.api_key k SET last_used_at = a.at"
    " FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS a (tenant_id, id, at)"
    " WHERE k.tenant_id = a.tenant_id AND k.id = a.id AND (k.last_used_at IS NULL OR k.last_used_at < a.at)"
)
_SEE: Final = "SELECT set_config('confide.tenants', $1, true)"

COLUMNS: Final = (
    "id, principal, name, role, scopes, purposes, sources, replaced_by, created_at, expires_at, revoked_at,"
    " last_used_at"
)

Found = tuple[Any, int | None]
"""A key's row and its tenant's own rate, where it has one."""


class KeyRows:
    """Key rows by id, batched; and the lazy times of last use."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection[Any] | None = None
        self._lock = asyncio.Lock()
        self._waiting: dict[UUID, asyncio.Future[Found | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, key: UUID) -> Found | None:
        """The row of a key and its tenant's rate, or None. Raises Unavailable."""
        future = self._waiting.get(key)
        if future is None:
            if len(self._waiting) >= MAX_WAITING:
                raise Unavailable
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._serve(), name="key-rows")
        return await asyncio.shield(future)

    async def touch(self, used: Mapping[tuple[UUID, UUID], datetime]) -> None:
        """Note when keys (tenant, id) were last used. Raises Unavailable."""
        names = "{" + ",".join({str(tenant) for tenant, _ in used}) + "}"
        order = sorted(used)  # the same order in all workers: no deadlock
        columns = [tenant for tenant, _ in order], [key for _, key in order], [used[pair] for pair in order]

        async def write(connection: asyncpg.Connection[Any]) -> None:
            async with connection.transaction():
                await connection.execute(_SEE, names)
                await connection.execute(_TOUCH, *columns)

        await self._run(write)

    async def close(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})
        if self._connection is not None:
            await self._connection.close()

    async def _serve(self) -> None:
        """Ask for all that wait, until nobody waits."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:MAX_BATCH])
            found: dict[UUID, Found] = {}
            failed = False
            try:
                found = await self._ask(list(batch))
            except Unavailable:
                failed = True
            for key, future in batch.items():
                del self._waiting[key]
                if future.done():
                    continue
                if failed:
                    future.set_exception(Unavailable())
                    future.exception()  # a caller that went away leaves nobody to take it
                else:
                    future.set_result(found.get(key))

    async def _ask(self, keys: Sequence[UUID]) -> dict[UUID, Found]:
        found: dict[UUID, Found] = {}

        async def read(connection: asyncpg.Connection[Any]) -> None:
            rows = await connection.fetch(_FIND, keys)
            tenants = {row["tenant_id"] for row in rows}
            rates: dict[UUID, int | None] = {}
            if tenants:
                async with connection.transaction():
                    await connection.execute(_SEE, "{" + ",".join(map(str, tenants)) + "}")
                    rates = {row["id"]: row["rate_per_second"] for row in await connection.fetch(_RATES, list(tenants))}
            found.update({row["id"]: (row, rates.get(row["tenant_id"])) for row in rows})

        await self._run(read)
        return found

    async def _run(self, work: Any) -> None:
        """Run ``work`` on the connection; once more on a new one if the old one had broken."""
        async with self._lock:
            for attempt in (1, 2):
                try:
                    async with asyncio.timeout(ASK_SECONDS):
                        if self._connection is None or self._connection.is_closed():
                            self._connection = await self._connect()
                        await work(self._connection)
                    return
                except (*BROKEN, asyncpg.PostgresError, TimeoutError) as error:
                    if self._connection is not None:
                        self._connection.terminate()
                    self._connection = None
                    if attempt == 2:
                        raise Unavailable from error


async def guard(tx: Transaction, tenant: UUID, key: UUID) -> str | None:
    """Whether the caller's key stands and his tenant is active, at this moment: ``ok``, ``api-key`` or ``suspended``.

    Operators' keys belong to the nil tenant, which has no row and no state. The auditors of a tenant that has left go
    on
    reading its audit log.
    """
    state: str = await tx.connection.fetchval(
        "SELECT CASE WHEN k.id IS NULL OR k.revoked_at <= now() OR k.expires_at <= now() THEN 'api-key'"
        " WHEN k.role = 'auditor' AND t.state IN ('leaving', 'gone') THEN 'ok'"
        " WHEN k.role <> 'operator' AND t.state IS DISTINCT FROM 'active' THEN 'suspended' ELSE 'ok' END"
        " FROM (SELECT 1) one LEFT JOIN confide.api_key k ON k.tenant_id = $1 AND k.id = $2"
        " LEFT JOIN confide.tenant t ON t.id = $1",
        tenant,
        key,
    )
    return state


async def insert(
    tx: Transaction,
    *,
    tenant: UUID,
    key: UUID,
    principal: UUID,
    name: str,
    digest: bytes,
    role: str,
    scopes: Sequence[str],
    purposes: Sequence[str],
    sources: Sequence[str] | None,
    expires_at: datetime | None,
) -> Any:
    """A new key's row. ``expires_at`` must lie ahead."""
    return await tx.connection.fetchrow(
        "INSERT INTO confide.api_key (tenant_id, id, principal, name, digest, role, scopes, purposes, sources,"
        f" expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text[]::cidr[], $10) RETURNING {COLUMNS}",
        tenant,
        key,
        principal,
        name,
        digest,
        role,
        list(scopes),
        list(purposes),
        list(sources) if sources is not None else None,
        expires_at,
    )


async def get(tx: Transaction, tenant: UUID, key: UUID, *, lock: bool = False) -> Any:
    """The key's row or None. ``lock``: nobody else may change it until the transaction ends."""
    return await tx.connection.fetchrow(
        f"SELECT {COLUMNS} FROM confide.api_key WHERE tenant_id = $1 AND id = $2" + (" FOR UPDATE" if lock else ""),
        tenant,
        key,
    )


async def page(tx: Transaction, tenant: UUID, before: UUID | None, limit: int) -> list[Any]:
    """Keys below ``before``, newest first."""
    return list(
        await tx.connection.fetch(
            f"SELECT {COLUMNS} FROM confide.api_key WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2)"
            " ORDER BY id DESC LIMIT $3",
            tenant,
            before,
            limit,
        )
    )


async def revoke(tx: Transaction, tenant: UUID, key: UUID) -> Any:
    """Revoke at once; one that is revoked already keeps its first time."""
    return await tx.connection.fetchrow(
        "UPDATE confide.api_key SET revoked_at = coalesce(revoked_at, now()) WHERE tenant_id = $1 AND id = $2"
        f" RETURNING {COLUMNS}",
        tenant,
        key,
    )


async def supersede(tx: Transaction, tenant: UUID, key: UUID, successor: UUID, overlap: int) -> Any:
    """The old key ends after ``overlap`` seconds, or before that if it would have anyhow."""
    return await tx.connection.fetchrow(
        "UPDATE confide.api_key SET replaced_by = $3, expires_at = least(expires_at, now() + $4 * interval '1 second')"
        f" WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}",
        tenant,
        key,
        successor,
        overlap,
    )


# ---------------------------------------------------------------- enrolment


async def insert_enrolment(tx: Transaction, tenant: UUID, token: UUID, digest: bytes, expires_at: datetime) -> None:
    await tx.connection.execute(
        "INSERT INTO confide.enrolment (tenant_id, id, digest, expires_at) VALUES ($1, $2, $3, $4)",
        tenant,
        token,
        digest,
        expires_at,
    )


async def find_enrolment(tx: Transaction, token: UUID) -> Any:
    """The token's row, whoever's it is, or None."""
    return await tx.connection.fetchrow(
        "SELECT tenant_id, digest FROM confide.enrolment_by_id($1) WHERE redeemed_at IS NULL AND expires_at > now()",
        token,
    )


async def redeem(tx: Transaction, tenant: UUID, token: UUID) -> bool:
    """Use the token up. The row's lock lets one of several concurrent callers through."""
    done = await tx.connection.fetchval(
        "UPDATE confide.enrolment SET redeemed_at = now()"
        " WHERE tenant_id = $1 AND id = $2 AND redeemed_at IS NULL AND expires_at > now() RETURNING true",
        tenant,
        token,
    )
    return bool(done)
