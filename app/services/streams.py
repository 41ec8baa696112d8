"""Audit streams: sealed events pushed to a tenant's receiver, in order, at least once, for as long as seven days.

A delivery is a POST of leaf entries, one a line, signed with the stream's own secret. Its id is the stream's and the
first leaf's, so that a receiver recognises a repeated one. The next one leaves only after this one was taken.
The secret is derived from the cell's secret and the stream's id: it is shown once and stored nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from base64 import b64encode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from app.audit.merkle import ProofError
from app.crypto.secret import SecretKey
from app.errors import ConfideError, Conflict, Forbidden, NotFound
from app.identity import Caller, new_id
from app.services.audit_receivers import NotDelivered, Receivers, check_url
from app.services.audit_signing import Signing
from app.services.auditing import Auditing, Trace
from app.services.control import ControlPlane
from app.store import audit_streams as rows
from app.store import audit_tree
from app.store.audit_pool import AuditPool
from app.store.ledger import Transaction
from app.store.privacy_records import consent_stands
from app.store.statements import Record

log = logging.getLogger("confide.streams")

BUFFER: Final = timedelta(days=7)
PER_TENANT: Final = 10
BATCH: Final = 200
AT_A_TIME: Final = 32
FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 300.0
FAILURES_ALARM: Final = 10


class Streams:
    """Settings for tenants, and ``push``, which the leader of the sealing calls every poll."""

    def __init__(
        self,
        region: str,
        control: ControlPlane,
        pool: AuditPool,
        signing: Signing,
        auditing: Auditing,
        receivers: Receivers,
        key: SecretKey,
    ) -> None:
        self._region = region
        self._control = control
        self._pool = pool
        self._signing = signing
        self._auditing = auditing
        self.receivers = receivers
        self._key = key
        self._busy: dict[UUID, asyncio.Task[None]] = {}

    def secret(self, tenant: UUID, stream: UUID) -> str:
        mac = self._key.hmac_sha256(b"stream" + tenant.bytes + stream.bytes)
        return "cfs_" + urlsafe_b64encode(mac).rstrip(b"=").decode()

    # ------------------------------------------------------------ settings

    async def create(self, caller: Caller, url: str, region: str, trace: Trace) -> tuple[Any, str]:
        """The stream's row and its secret. ``region``: where the receiver stands, as the tenant declares it."""
        check_url(url, private=self.receivers.private)
        ident = new_id()
        async with self._control.act(caller, trace, "audit.stream", step="create", stream=str(ident)) as act:
            if not await self._may_go(act.tx, caller.tenant, region):
                raise Forbidden("Events stay in the tenant's region: a receiver elsewhere needs a recorded consent.")
            if await rows.count(act.tx.connection, caller.tenant) >= PER_TENANT:
                raise Conflict(f"A tenant has at most {PER_TENANT} streams.")
            act.detail["region"] = region
            row = await rows.insert(act.tx.connection, caller.tenant, ident, url, region)
        return row, self.secret(caller.tenant, ident)

    async def _may_go(self, tx: Transaction, tenant: UUID, region: str) -> bool:
        """Events stay in the tenant's region, or go where a consent that stands lets them: asked at each delivery."""
        return region == self._region or await consent_stands(tx, tenant, "audit-stream", region)

    async def list(self, caller: Caller, trace: Trace) -> list[Any]:
        async with self._control.look(caller, trace) as tx:
            return await rows.every(tx.connection, caller.tenant)

    async def delete(self, caller: Caller, stream: UUID, trace: Trace) -> None:
        async with self._control.act(caller, trace, "audit.stream", step="delete", stream=str(stream)) as act:
            if not await rows.delete(act.tx.connection, caller.tenant, stream):
                raise NotFound

    async def test(self, caller: Caller, stream: UUID, trace: Trace) -> str | None:
        """Post a test delivery now. Answers None where the receiver took it, else why not, as a code."""
        async with self._control.act(caller, trace, "audit.stream", step="test", stream=str(stream)) as act:
            row = await rows.get(act.tx.connection, caller.tenant, stream)
            if row is None:
                raise NotFound
        body = orjson.dumps({"test": True, "stream": str(stream)}) + b"\n"
        try:
            await self._post(row, body, f"{stream}.test.{new_id()}", {"Confide-Test": "true"})
        except NotDelivered as error:
            return str(error)
        return None

    # ------------------------------------------------------------ pushing

    async def push(self) -> None:
        """Start a delivery for each stream that has something to deliver and isn't busy."""
        async with self._pool.transaction() as tx:
            due = await rows.due(tx.connection, datetime.now(UTC), AT_A_TIME)
        for stream in due:
            if stream["id"] not in self._busy and len(self._busy) < AT_A_TIME:
                task = asyncio.create_task(self._serve(stream), name="audit-stream")
                self._busy[stream["id"]] = task
                task.add_done_callback(lambda _, ident=stream["id"]: self._busy.pop(ident, None))  # type: ignore[misc]

    async def close(self) -> None:
        for task in list(self._busy.values()):
            task.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy.values()))
        await self.receivers.close()

    async def _serve(self, stream: Any) -> None:
        try:
            await self._deliver(stream)
        except NotDelivered as error:
            await self._failed(stream, str(error))
        except (ConfideError, ProofError) as error:
            log.error("a stream waits", extra={"fields": {"error": type(error).__name__}})

    async def _deliver(self, stream: Any) -> None:
        tenant = stream["tenant_id"]
        oldest = datetime.now(UTC) - BUFFER
        async with self._pool.transaction(tenant) as tx:
            if not await self._may_go(tx, tenant, stream["region"]):
                raise NotDelivered("no-consent")
            events = await rows.next_events(tx.connection, stream, BATCH)
            if events and events[0]["sealed_at"] < oldest:
                await self._skip(tx.connection, stream, oldest)
                return
            if not events:
                await self._next_epoch(tx.connection, stream)
                return
            checkpoint = await audit_tree.last_checkpoint(tx.connection, tenant, stream["epoch"])
        headers = {
            "Confide-First-Leaf": str(events[0]["leaf"]),
            "Confide-Next-Leaf": str(events[-1]["leaf"] + 1),
            "Confide-Origin": self._signing.names.origin(tenant, stream["epoch"]),
        }
        if checkpoint is not None:
            headers["Confide-Checkpoint"] = b64encode(checkpoint["note"]).decode()
        body = b"".join(bytes(event["entry"]) + b"\n" for event in events)
        await self._post(stream, body, f"{stream['id']}.{stream['epoch']}.{events[0]['leaf']}", headers)
        async with self._pool.transaction(tenant) as tx:
            await rows.delivered(tx.connection, stream, events[-1]["leaf"] + 1)

    async def _post(self, stream: Any, body: bytes, delivery: str, headers: dict[str, str]) -> None:
        moment = str(int(time.time()))
        secret = self.secret(stream["tenant_id"], stream["id"])
        signed = f"{moment}.{delivery}.".encode() + body
        signature = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        common = {
            "Content-Type": "application/x-ndjson",
            "User-Agent": "confide-audit-stream/1",
            "Confide-Delivery": delivery,
            "Confide-Tenant": str(stream["tenant_id"]),
            "Confide-Signature": f"t={moment},v1={signature}",
        }
        await self.receivers.post(stream["url"], body, common | headers)

    async def _skip(self, connection: Any, stream: Any, oldest: datetime) -> None:
        """What is older than the buffer is left out, and the tenant's log says how much."""
        first = await rows.first_since(connection, stream, oldest)
        head = await audit_tree.head(connection, stream["tenant_id"], stream["epoch"])
        goal = first if first is not None else head.size if head is not None else stream["next_leaf"]
        dropped = goal - stream["next_leaf"]
        await rows.move(connection, stream, stream["epoch"], goal, dropped)
        facts = orjson.dumps(
            {"detail": {"step": "behind", "stream": str(stream["id"]), "dropped": dropped, "next_leaf": goal}}
        )
        await self._auditing.append(Record(stream["tenant_id"], "audit.stream", "failed", facts.decode(), "buffer"))

    async def _next_epoch(self, connection: Any, stream: Any) -> None:
        newest = await audit_tree.head(connection, stream["tenant_id"])
        if newest is not None and newest.epoch > stream["epoch"]:
            await rows.move(connection, stream, stream["epoch"] + 1, 0)

    async def _failed(self, stream: Any, error: str) -> None:
        failures = stream["failures"] + 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - 1, 16))
        if failures == FAILURES_ALARM:
            self._auditing.alarm("audit-stream", tenant=str(stream["tenant_id"]), stream=str(stream["id"]))
        try:
            async with self._pool.transaction(stream["tenant_id"]) as tx:
                await rows.failed(tx.connection, stream, error, wait)
        except ConfideError as failure:
            log.error("a stream's failure isn't noted", extra={"fields": {"error": type(failure).__name__}})
