"""Exports: a range of a log as a stream, with what the offline verifier needs. Memory is flat: one page at a time."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.audit.event import MAX_ENTRY_BYTES, EventError, decode, format_time, to_ocsf
from app.audit.export import ALTERED, ExportHead, ExportWriter
from app.audit.merkle import NodeSource, consistency_proof, range_proof
from app.errors import InvalidRequest, NotFound, Tampered, Unavailable
from app.identity import Caller, new_id
from app.services.audit_log import AuditReading
from app.services.audit_signing import Signing
from app.services.auditing import Trace
from app.services.control import check
from app.store import audit_query, audit_tree
from app.store.audit_retention import dropped
from app.store.audit_tree import NO_HASH, Connection

PAGE: Final = 2048
MARKS: Final = 1024
SURPLUS: Final = 1000
_NUMBER: Final = re.compile(rb"\nnumber ([1-9][0-9]{0,18})\n")
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
    marks: dict[int, list[bytes]]
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
        stored = await audit_tree.span(connection, tenant, epoch, wanted.since, wanted.until, size)
        if stored is None and await dropped(connection, tenant, wanted.since, wanted.until):
            raise NotFound("The events of that period were dropped at the end of their retention.")
        if stored is None:
            raise NotFound("The log has no stored event of that period.")
        first, end = stored
        if wanted.first is not None:
            if not first <= wanted.first <= end:
                raise InvalidRequest("first must be a leaf of the range.", "first")
            first = wanted.first
        known = [old for old in wanted.known if 0 < old <= size]

        def build(get: NodeSource) -> tuple[tuple[list[bytes], list[bytes]], dict[int, list[bytes]]]:
            return range_proof(first, end, size, get), {old: consistency_proof(old, size, get) for old in known}

        # What is lost or altered goes out as it is: the verifier is who says what is wrong with it.
        (left, right), proofs = await audit_tree.with_nodes(connection, tenant, epoch, build, NO_HASH)
        marks = _marks(await audit_tree.marks(connection, tenant, epoch, first, end, row, MARKS), first, end, row)
        return _Range(tenant, epoch, ExportHead(first, end, bytes(row["note"]), left, right, proofs), marks, event)

    async def _chunks(self, caller: Caller, found: _Range, form: str) -> AsyncIterator[bytes]:
        """A page is a transaction of its own: rows never change, and a slow reader holds up nothing."""
        chunks: list[bytes] = []
        head = found.head
        writer = ExportWriter(chunks.append, head) if form == "ndjson" else None
        for start in range(head.first, head.end, PAGE):
            end, nodes, at = min(start + PAGE, head.end), b"", 0
            async with self._reading.pool.transaction(found.tenant) as tx:
                await check(tx, caller)
                stored = await audit_tree.leaves(tx.connection, found.tenant, found.epoch, start, end)
                if writer is not None:
                    nodes = await audit_tree.inner_nodes(tx.connection, found.tenant, found.epoch, start, end)
            for leaf, (entry, hash_) in enumerate(_entries(stored, start, end), start):
                if writer is None:
                    chunks.append(_ocsf(entry))
                    continue
                completed = 32 * (((leaf + 1) & -(leaf + 1)).bit_length() - 1)
                writer.add(entry, hash_, nodes[at : at + completed])
                at += completed
                for note in found.marks.get(leaf + 1, ()):
                    writer.mark(note)
            yield b"".join(chunks)
            chunks.clear()
        if writer is not None:
            await self._surplus(found, writer)
            writer.end()
        async with self._reading.pool.transaction(found.tenant) as tx:
            if head.end > head.first:
                await audit_tree.record_export(
                    tx.connection, found.tenant, found.epoch, head.first, head.end, found.event
                )
        yield b"".join(chunks)

    async def _surplus(self, found: _Range, writer: ExportWriter) -> None:
        """What stands in the tables and has no place in the tree."""
        async with self._reading.pool.transaction(found.tenant) as tx:
            events, nodes = await audit_tree.surplus(tx.connection, found.tenant, found.epoch, SURPLUS)
        for entry in events:
            writer.surplus(entry if _is_a_line(entry) else ALTERED)
        if nodes:
            writer.nodes(b"".join(nodes))


def _entries(stored: list[Any], start: int, end: int) -> Iterator[tuple[bytes | None, bytes]]:
    """Entry and hash of each leaf, as the tables have them. None: no row, or two."""
    at, last = 0, len(stored)
    for leaf in range(start, end):
        row = stored[at] if at < last else None
        if row is None or row["leaf"] != leaf:
            yield None, NO_HASH
            continue
        at += 1
        entry, hash_ = row["entry"], row["hash"] or NO_HASH
        if at < last and stored[at]["leaf"] == leaf:
            entry = None
            while at < last and stored[at]["leaf"] == leaf:
                at += 1
        yield (entry if entry is None or _agrees(row) else ALTERED), hash_


def _is_a_line(entry: bytes) -> bool:
    """Whether it can stand in an export: anything else would be taken for a control line, or for two lines."""
    return entry[:1] == b"{" and b"\n" not in entry and len(entry) <= MAX_ENTRY_BYTES


_COLUMNS: Final = ("id", "action", "outcome", "principal", "api_key", "container", "kek", "kms_request_id", "purpose")
"""In the order of ``audit_tree.leaves``."""


def _agrees(row: Any) -> bool:
    """Whether the columns, which filters use, say what the entry says. An entry that is no JSON is the verifier's."""
    entry = row["entry"]
    if not _is_a_line(entry):
        return False
    try:
        get = orjson.loads(entry).get
        same: bool = tuple(map(get, _COLUMNS)) == row[4:13] and get("time") == format_time(row["time"])
        return same
    except (orjson.JSONDecodeError, AttributeError):
        return True


def _marks(stored: list[Any], first: int, end: int, last: Any) -> dict[int, list[bytes]]:
    """Notes by the leaf behind which they stand. An empty one stands for a row whose columns contradict its note, and
    where the signed numbers say that rows are missing. ``last``: the export's own checkpoint.
    """
    marks: dict[int, list[bytes]] = {}
    ahead = 0 if first == 0 else None  # the same along the whole log: a number less its place among the rows
    place, size = 0, 0
    for row in [*stored, last]:
        here = marks.setdefault(row["size"] if first < row["size"] <= end else end, [])
        if row is not last:
            here.append(bytes(row["note"]) if _is_its_note(row) else b"")
        if row["size"] != end if row is last else row["place"] is None:
            continue
        place, size = place + (row["size"] != size) if row is last else row["place"], row["size"]
        said = _NUMBER.search(bytes(row["note"]).partition(b"\n\n")[0] + b"\n")
        now = int(said[1]) - place if said else None
        if None not in {ahead, now} and ahead != now:
            here.append(b"")
        ahead = now
    return marks


def _is_its_note(row: Any) -> bool:
    """Whether a checkpoint's columns are those of its note."""
    try:
        text, _, signatures = bytes(row["note"]).partition(b"\n\n")
        _, size, root = text.split(b"\n")[:3]
        ids = {b64decode(line.rpartition(b" ")[2])[:4] for line in signatures.splitlines()}
        return int(size) == row["size"] and b64decode(root) == row["root"] and row["key_id"] in ids
    except ValueError:
        return False


def _ocsf(entry: bytes | None) -> bytes:
    """An event as a line of OCSF. A row that was lost or altered can't be converted: the verifier's format names it."""
    try:
        return orjson.dumps(to_ocsf(decode(entry or b""))) + b"\n"
    except EventError:
        raise Tampered("A stored event is not what was sealed. Export as ndjson and verify.") from None
