"""One read: the statement, again while this worker's keys are stale, and the opening of what it released."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.crypto.secret import SecretKey
from app.errors import NotFound, Tampered, Unavailable
from app.identity import Kind
from app.services.auditing import Auditing
from app.services.changes import Call, Container, Found, Opened, Turn, Where
from app.services.keyring import Keyring
from app.services.sealing import external_tag, hold_against, open_meta, open_object, open_turn
from app.services.tenant_keys import Known, TenantKeys
from app.services.verdict import WIPES, refusal
from app.store.lane import Lanes
from app.store.pool import Pool
from app.store.statements import Read, ReadTarget, TargetResult

TRIES: Final = 5

Plan = Callable[[TenantKeys, str], Sequence[ReadTarget]]
"""The targets of a read, given the keys that names go through and the facts of its events."""


class Reading:
    """What reads and writes share: keys, facts, the read lane, and the opening of rows."""

    def __init__(self, region: str, keyring: Keyring, lane: Lanes[Read], pool: Pool, auditing: Auditing) -> None:
        self.region = region
        self.keyring = keyring
        self.auditing = auditing
        self._lane = lane
        self._pool = pool

    async def keys(self, tenant: UUID) -> TenantKeys:
        return self.keyring.get(tenant) or await self.keyring.acquire(tenant)

    async def facts(self, call: Call, keys: TenantKeys) -> str:
        tenant, address = call.caller.tenant, call.trace.source
        source = self.auditing.known_source(tenant, address) or await self.auditing.source(tenant, address)
        return self.auditing.facts(call.caller, call.purpose, keys.facts(), call.trace, source)

    async def read(self, call: Call, plan: Plan) -> tuple[TenantKeys, list[TargetResult]]:
        """Run ``plan`` until the keys that it used are current. Raises what stands against the request as a whole."""
        tenant = call.caller.tenant
        for _ in range(TRIES):
            keys = self.keyring.get(tenant) or await self.keyring.acquire(tenant)
            targets = plan(keys, await self.facts(call, keys))
            results: list[TargetResult] = await self._lane.submit(
                Read(tenant, call.caller.api_key, keys.epoch, targets)
            )
            status = results[0].status
            if status == "epoch":
                self.keyring.discard(tenant, at_once=False)
                continue
            if status in WIPES:
                self.keyring.discard(tenant, at_once=True)
            if status not in {"ok", "absent"}:
                raise refusal(status, results[0].head)
            if not keys.valid:
                # Authorised and recorded, but the lease ended on the way: prove it again before anything is opened.
                keys = await self.keyring.acquire(tenant)
            return keys, results
        raise Unavailable

    # ------------------------------------------------------------ opening

    async def container_key(
        self, keys: TenantKeys, kind: Kind, container: UUID, generation: int, rows: Sequence[Any] = ()
    ) -> SecretKey:
        """The container's key of that generation: held, or among ``rows``, or looked up. Raises ``Tampered``."""
        held = keys.container_key(container, generation)
        if held is not None:
            return held
        for row in rows:
            if row["number"] == generation:
                return keys.open_container_key(container, generation, row["ck_generation"], row["body"])
        for row in await self._pool.resolve(keys.tenant, kind, container, None):
            if row["key_generation"] == generation:
                return keys.open_container_key(container, generation, row["trk_generation"], row["sealed"])
        raise Tampered

    @asynccontextmanager
    async def alarmed(self, call: Call | None, container: UUID) -> AsyncIterator[None]:
        """What is refused as tampered in here is an event and an alarm."""
        try:
            yield
        except Tampered:
            await self._alarm(call, container)
            raise

    async def _alarm(self, call: Call | None, container: UUID) -> None:
        if call is not None:
            await self.auditing.tampered(call.caller, call.trace, container)

    async def look_up(
        self,
        keys: TenantKeys,
        kind: Kind,
        container: UUID | None,
        external: UUID | None,
        call: Call | None = None,
    ) -> tuple[Known, bool] | None:
        """What a write must know of a container, with its current key opened; and whether it has expired."""
        rows = await self._pool.resolve(keys.tenant, kind, container, external)
        if not rows:
            return None
        row = rows[0]
        async with self.alarmed(call, row["id"]):
            current = next((key for key in rows if key["key_generation"] == row["ck_generation"]), None)
            if current is None:
                raise Tampered
            if keys.container_key(row["id"], row["ck_generation"]) is None:
                keys.open_container_key(row["id"], row["ck_generation"], current["trk_generation"], current["sealed"])
            ck = keys.container_key(row["id"], row["meta_ck"])
            for key in rows if ck is None else ():
                if key["key_generation"] == row["meta_ck"]:
                    ck = keys.open_container_key(row["id"], row["meta_ck"], key["trk_generation"], key["sealed"])
            if ck is None:
                raise Tampered
            meta = open_meta(keys, ck, row["meta_ck"], row["id"], row["meta_version"], row["meta"])
            hold_against(keys, meta, kind=kind, external=external, subject=row["subject_id"])
        known = Known(
            row["id"], row["ck_generation"], current["trk_generation"], row["commit_number"], row["turn_head"],
            row["subject_id"], complete=True,
        )  # fmt: skip
        keys.learn(known)
        if external is not None:
            keys.learn_external(kind, external, known.id)
        return known, bool(row["expired"])

    async def subject_of(self, call: Call, keys: TenantKeys, session: Where) -> UUID | None:
        """The id of a session's subject, if it has one. Raises ``NotFound``."""
        tag = external_tag(keys, session.kind, session.external) if session.external is not None else None
        found = await self.look_up(keys, session.kind, session.id, tag, call)
        if found is None or found[1]:
            raise NotFound
        return found[0].subject

    async def find(
        self,
        keys: TenantKeys,
        *,
        subject: UUID | None = None,
        label: UUID | None = None,
        after: UUID | None,
        limit: int,
    ) -> list[UUID]:
        """Ids of living sessions by subject's id or label's tag."""
        return await self._pool.find_sessions(keys.tenant, subject, label, after, limit)

    async def open_objects(self, keys: TenantKeys, kind: Kind, result: TargetResult) -> list[Found]:
        """Newest first. One that doesn't authenticate refuses them all (``Tampered``): never skipped."""
        container = result.head["id"]
        found = []
        for row in result.objects:
            ck = await self.container_key(keys, kind, container, row["ck_generation"], result.keys)
            found.append(open_object(keys, ck, container, row))
        if len(found) > 1:
            found.sort(key=_version, reverse=True)
        return found

    async def open_turns(self, keys: TenantKeys, result: TargetResult) -> list[Turn]:
        """By number."""
        container = result.head["id"]
        turns = []
        for row in result.turns:
            ck = await self.container_key(keys, Kind.SESSION, container, row["ck_generation"], result.keys)
            turns.append(open_turn(keys, ck, container, row))
        turns.sort(key=_number)
        return turns

    async def open_result(self, call: Call, keys: TenantKeys, kind: Kind, result: TargetResult) -> Opened:
        """Everything that a target found. Raises ``NotFound``, ``Tampered``."""
        if result.status != "ok":
            raise NotFound
        self.learn(keys, result)
        try:
            objects = await self.open_objects(keys, kind, result) if result.objects else []
            turns = await self.open_turns(keys, result) if result.turns else []
            return Opened(await self.record(keys, kind, result), objects, turns)
        except Tampered:
            await self._alarm(call, result.head["id"])
            raise

    async def record(self, keys: TenantKeys, kind: Kind, result: TargetResult) -> Container:
        """The container's record; its names where the statement was asked for them."""
        head = result.head
        container = Container(
            head["id"], kind, head["commit_number"], head["number"], head["created_at"], head["updated_at"],
            meta_version=head["version"],
        )  # fmt: skip
        if head["body"] is None:
            return container
        ck = await self.container_key(keys, kind, head["id"], head["selector"], result.keys)
        meta = open_meta(keys, ck, head["selector"], head["id"], head["version"], head["body"])
        extra = orjson.loads(head["extra"])
        stands = UUID(extra["subject"]) if extra["subject"] else None
        hold_against(keys, meta, kind=Kind(extra["kind"]), external=None, subject=stands)
        container.kind, container.external_id, container.labels = meta.kind, meta.external_id, list(meta.labels)
        container.subject_id = meta.subject
        container.ttl_idle, container.ttl_absolute = extra["ttl_idle"], extra["ttl_absolute"]
        container.hold = extra["hold"]
        if extra["expires"] is not None:
            container.expires_at = datetime.fromtimestamp(float(extra["expires"]), UTC)
        return container

    def learn(self, keys: TenantKeys, result: TargetResult) -> None:
        """Keep what a read has shown of a container, for the write that usually follows."""
        head = result.head
        generation = head["ck_generation"]
        old = keys.known(head["id"])
        if old is not None and old.ck_generation == generation:
            old.commit, old.head = head["commit_number"], head["number"]
            return
        for row in result.keys:
            if row["number"] == generation:
                keys.learn(Known(head["id"], generation, row["ck_generation"], head["commit_number"], head["number"]))


def _version(found: Found) -> int:
    return found.version.int


def _number(turn: Turn) -> int:
    return turn.number
