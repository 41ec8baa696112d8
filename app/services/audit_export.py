"""Exports: a range of a log as a stream, with what the offline verifier needs. Memory is flat: one page at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.audit.event import EventError, decode, to_ocsf
from app.audit.export import ExportHead, ExportWriter
from app.audit.merkle import NodeSource, ProofError, consistency_proof, range_proof
from app.errors import InvalidRequest, NotFound, Tampered, Unavailable
from app.identity import Caller, new_id
from app.services.audit_log import AuditReading
from app.services.audit_signing import Signing
from app.services.auditing import Trace
from app.services.control import check
from app.store import audit_query, audit_tree
from app.store.audit_tree import Connection

PAGE: Final = 2048
MARKS: Final = 64
SETTLE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export. A period gives the smallest range of leaves with all its events; ``first`` resumes. ``known``:
    sizes of checkpoints that the reader kept, each of which gets its proof of consistency.
    """

    form: str
    since: datetime | None = None
    until: datetime | None = None
    first: int | None = None
    epoch: int | None = None
    known: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Range:
    tenant: UUID
    epoch: int
    head: ExportHead
    marks: dict[int, bytes]
    event: UUID
    """Of the audit.export event."""


class AuditExports:
    """``open`` answers once everything of the period is sealed, signed and in the log as exported."""

    def __init__(self, reading: AuditReading, signing: Signing) -> None:
        self._reading = reading
        self._signing = signing

    async def open(self, caller: Caller, wanted: Wanted, trace: Trace) -> AsyncIterator[bytes]:
        """The chunks. Raises NotFound where there is nothing to export, InvalidRequest, Unavailable."""
        await self._settle(caller.tenant, wanted.until)
        row = await self._signing.checkpoint(caller.tenant, wanted.epoch)
        event = new_id()
        async with self._reading.act(caller, trace, "audit.export", event, format=wanted.form) as (connection, detail):
            if row is None:
                raise NotFound
            found = await self._range(connection, caller.tenant, row, wanted, event)
            detail |= {"first": found.head.first, "end": found.head.end, "epoch": found.epoch}
        return self._chunks(caller, found, wanted.form)

    async def _settle(self, tenant: UUID, until: datetime | None) -> None:
        """Wait until every event that was committed before now and belongs to the period is in the tree."""
        until = min(until or datetime.now(UTC), datetime.now(UTC))
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            async with self._reading.pool.transaction(tenant) as tx:
                if not await audit_query.any_unsealed(tx.connection, tenant, until):
                    return
            if time.monotonic() > deadline:
                raise Unavailable("Events of that period are not sealed yet. Try again.", 5)
            await asyncio.sleep(0.2)

    async def _range(self, connection: Connection, tenant: UUID, row: Any, wanted: Wanted, event: UUID) -> _Range:
        epoch, size = row["epoch"], row["size"]
        stored = await audit_tree.span(connection, tenant, epoch, wanted.since, wanted.until)
        if stored is None:
            raise NotFound("The log has no stored event of that period.")
        first, end = stored[0], min(stored[1], size)
        if wanted.first is not None:
            if not first <= wanted.first <= end:
                raise InvalidRequest("first must be a leaf of the range.", "first")
            first = wanted.first
        known = [old for old in wanted.known if 0 < old <= size]

        def build(get: NodeSource) -> tuple[tuple[list[bytes], list[bytes]], dict[int, list[bytes]]]:
            return range_proof(first, end, size, get), {old: consistency_proof(old, size, get) for old in known}

        try:
            (left, right), proofs = await audit_tree.with_nodes(connection, tenant, epoch, build)
        except ProofError:
            raise Tampered("The stored tree has lost nodes. The operator has been alarmed.") from None
        marks = await audit_tree.marks(connection, tenant, epoch, first, end, MARKS)
        head = ExportHead(first, end, bytes(row["note"]), left, right, proofs)
        return _Range(tenant, epoch, head, {mark["size"]: bytes(mark["note"]) for mark in marks}, event)

    async def _chunks(self, caller: Caller, found: _Range, form: str) -> AsyncIterator[bytes]:
        """A page is a transaction of its own: rows never change, and a slow reader holds up nothing."""
        chunks: list[bytes] = []
        head = found.head
        writer = ExportWriter(chunks.append, head) if form == "ndjson" else None
        for start in range(head.first, head.end, PAGE):
            end = min(start + PAGE, head.end)
            async with self._reading.pool.transaction(found.tenant) as tx:
                await check(tx, caller)
                rows = await audit_tree.leaves(tx.connection, found.tenant, found.epoch, start, end)
            if len(rows) != end - start:
                raise Tampered("The stored tree has lost nodes. The operator has been alarmed.")
            for row in rows:
                if writer is None:
                    chunks.append(_ocsf(row["entry"]))
                    continue
                writer.add(bytes(row["entry"]) if row["entry"] is not None else None, bytes(row["hash"]))
                mark = found.marks.get(row["leaf"] + 1)
                if mark is not None:
                    writer.mark(mark)
            yield b"".join(chunks)
            chunks.clear()
        if writer is not None:
            writer.end()
        async with self._reading.pool.transaction(found.tenant) as tx:
            if head.end > head.first:
                await audit_tree.record_export(
                    tx.connection, found.tenant, found.epoch, head.first, head.end, found.event
                )
        yield b"".join(chunks)


def _ocsf(entry: bytes | None) -> bytes:
    """An event as a line of OCSF. A row that was lost or altered can't be converted: the verifier's format names it."""
    try:
        return orjson.dumps(to_ocsf(decode(entry or b""))) + b"\n"
    except EventError:
        raise Tampered("A stored event is not what was sealed. Export as ndjson and verify.") from None
