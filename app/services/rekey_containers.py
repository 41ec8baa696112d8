"""Moving one container to another index key and a fresh container key, in bounded pieces, while it is in use.

Whoever comes first moves it: the rekey's job, or a request that is about to touch it (``rekey_requests.py``). Each
piece is one short transaction under the container's lock, together with its event, which names everything that was
opened. So several workers may be at it, and a worker's death costs one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from app.crypto.keys import open_container_key, wipe
from app.crypto.secret import SecretKey
from app.errors import Tampered
from app.identity import Kind, Purpose, new_id
from app.services import sealing
from app.services.auditing import Auditing
from app.services.changes import NewTurn, Put
from app.services.deletion_journal import Deletion, DeletionJournal
from app.services.tenant_keys import TenantKeys
from app.store import rekey as rows
from app.store.ledger import Ledger, Transaction
from app.store.statements import Record

Facts = Callable[..., str]
"""Makes an event's facts from ``detail`` and known fields: in whose name a piece is moved."""


class Stale(Exception):
    """The tenant's keys have changed, or may not be used now: get keys anew and decide again."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a container's move took: for the job's progress. ``all``: nothing is left to be moved."""

    objects: int = 0
    turns: int = 0
    all: bool = True


@dataclass(slots=True)
class _Hand:
    """One piece's keys: those that it opens with by generation, and the one that it seals with."""

    keys: TenantKeys
    held: dict[int, SecretKey]
    ck: SecretKey
    generation: int
    container: UUID
    opened: list[tuple[str, str]] = field(default_factory=list)

    def key(self, generation: int) -> SecretKey:
        found = self.held.get(generation)
        if found is None:
            raise Tampered
        return found


class Mover:
    """Moves containers. ``ledgers`` are its own: a piece waits for no other work of the control plane, and seldom for
    that of another container, since most of its time is two waits for a disk.
    """

    def __init__(self, ledgers: Sequence[Ledger], auditing: Auditing, journal: DeletionJournal) -> None:
        self._ledgers = ledgers
        self._auditing = auditing
        self._journal = journal

    async def bring(
        self, keys: TenantKeys, container: UUID, facts: Facts | None = None, most: int | None = None
    ) -> Moved:
        """Have a container stand under the present index key when this returns, or ``most`` pieces more of it.

        Raises ``Stale``, ``Tampered`` (the container stays as it is, with an event and an alarm), ``KeyUnavailable``,
        ``Unavailable``.
        """
        objects = turns = pieces = 0
        after = rows.START
        while True:
            if pieces == most:
                return Moved(objects, turns, all=False)
            piece = await self._moved(keys, container, facts or _for_a_request, after)
            if piece is None:
                break
            after = piece.end if piece.objects or piece.turns else rows.START
            pieces += 1
            objects, turns = objects + len(piece.objects), turns + len(piece.turns)
            if piece.last:
                break
        _note_moved(keys, container)
        return Moved(objects, turns)

    async def bring_part(self, keys: TenantKeys, container: UUID, part: rows.Part) -> rows.Reach | None:
        """Have what a request touches stand under the present index key, of a container that is too large to wait for.

        Answers how far that reaches; None where there is nothing left to be moved. Raises as ``bring``.
        """
        piece = await self._moved(keys, container, _for_a_request, part)
        if piece is None:
            _note_moved(keys, container)
            return None
        return piece.reach

    async def _moved(
        self, keys: TenantKeys, container: UUID, facts: Facts, what: rows.Place | rows.Part
    ) -> rows.Piece | None:
        try:
            async with self._ledgers[container.int % len(self._ledgers)].transaction(keys.tenant) as tx:
                return await self._piece(tx, keys, container, facts, what)
        except Tampered:
            known = orjson.dumps({"purpose": Purpose.MAINTENANCE.value, "detail": {"kind": "rekey"}}).decode()
            await self._auditing.append(Record(keys.tenant, "tamper.refused", "denied", known, "tampered", container))
            self._auditing.alarm("tampered", tenant=str(keys.tenant), container=str(container))
            raise

    async def _piece(
        self, tx: Transaction, keys: TenantKeys, container: UUID, facts: Facts, what: rows.Place | rows.Part
    ) -> rows.Piece | None:
        number = keys.index_number
        if isinstance(what, rows.Place):
            piece = await rows.piece(tx, keys.tenant, container, number, what)
        else:
            piece = await rows.part(tx, keys.tenant, container, number, what)
        if piece is None:
            return None
        standing = piece.tenant
        if standing["epoch"] != keys.epoch or standing["key_state"] not in {"active", "unavailable"}:
            raise Stale
        keys.check()
        if not (piece.objects or piece.turns or piece.last):
            return piece
        hand = await self._hand(tx, keys, piece)
        try:
            objects = [_object(hand, row) for row in piece.objects]
            turns = [_turn(hand, row) for row in piece.turns]
            # Before the commit: no later deletion may name an id that a backup from before can't be told of. Should the
            # commit fail, the entry is still true: the next try gives the same ids.
            await self._journal.append(
                [Deletion(keys.tenant, "key.rekey", container, new, former=old) for old, new, *_ in objects]
            )
            await rows.replace(tx, keys.tenant, container, hand.generation, objects, turns)
            if piece.last:
                await rows.complete(tx, keys.tenant, container, number, hand.generation, _meta(hand, piece.row))
        finally:
            wipe(hand.ck, *hand.held.values())
        known = facts(
            {"index_key": number, "last": int(piece.last)},
            purpose=Purpose.MAINTENANCE.value,
            objects=hand.opened or None,
            turns=_ranges([number for number, _ in turns]) or None,
            commit=piece.row["commit_number"],
            ck=hand.generation,
        )
        tx.event(keys.tenant, "key.rekey", f"{known[:-1]}{keys.facts()}}}", container=container)
        return piece

    async def _hand(self, tx: Transaction, keys: TenantKeys, piece: rows.Piece) -> _Hand:
        """Open the container's keys; with the first piece, give it a new one. None of them goes into a cache."""
        container: UUID = piece.row["id"]
        current = piece.row["ck_generation"]
        held: dict[int, SecretKey] = {}
        try:
            for row in piece.keys:
                root = keys.roots.get(row["trk_generation"])
                if root is None:
                    raise Stale
                held[row["generation"]] = open_container_key(
                    row["sealed"],
                    root,
                    region=keys.region,
                    tenant=keys.tenant,
                    container=container,
                    trk_generation=row["trk_generation"],
                    ck_generation=row["generation"],
                )
            if piece.row["index_number"] == -keys.index_number:
                ck = held.pop(current, None)
                if ck is None:
                    raise Tampered
                return _Hand(keys, held, ck, current, container)
            generation = max([current, *held]) + 1
            ck, sealed = keys.new_container_key(container, generation)
            await rows.begin(tx, keys.tenant, container, keys.index_number, generation, keys.active, sealed)
            return _Hand(keys, held, ck, generation, container)
        except BaseException:
            wipe(*held.values())
            raise


def _note_moved(keys: TenantKeys, container: UUID) -> None:
    if keys.former is not None:
        keys.former.seen.learn_moved(container)


def _for_a_request(detail: dict[str, Any], **known: Any) -> str:
    known["detail"] = {"kind": "rekey", "by": "request", **detail}
    return orjson.dumps(known).decode()


def _object(hand: _Hand, row: Any) -> tuple[Any, ...]:
    """Old id, new id, collection tag, tags, fingerprint, body. The version stays: its ETag means the same content."""
    keys, container, version = hand.keys, hand.container, row["version"]
    found = sealing.open_object(keys, hand.key(row["ck_generation"]), container, row)
    item = sealing.object_id(keys, container, found.collection, found.key)
    put = Put(found.collection, found.key, found.content_type, found.body, tuple(found.tags), found.inline)
    tags = b"".join(sealing.object_tag(keys, container, tag).bytes for tag in found.tags)
    mark = None
    if row["fingerprint"] is not None:
        mark = sealing.fingerprint(keys, container, found.content_type.encode(), found.body)
    body = sealing.seal_object(keys, hand.ck, hand.generation, container, item, version, put)
    hand.opened += [(str(row["id"]), str(version)), (str(item), str(version))]
    return row["id"], item, sealing.collection_tag(keys, container, found.collection), tags, mark, body


def _turn(hand: _Hand, row: Any) -> tuple[int, bytes]:
    """Number and body."""
    turn = sealing.open_turn(hand.keys, hand.key(row["ck_generation"]), hand.container, row)
    new = NewTurn(turn.content_type, turn.body, turn.inline)
    return turn.number, sealing.seal_turn(
        hand.keys, hand.ck, hand.generation, hand.container, turn.id, turn.number, new
    )


def _meta(hand: _Hand, row: Any) -> tuple[UUID, bytes, UUID | None, list[UUID]]:
    """Version, sealed names, external tag, label tags."""
    keys, container = hand.keys, hand.container
    meta = sealing.open_meta(
        keys, hand.key(row["meta_ck"]), row["meta_ck"], container, row["meta_version"], row["meta"]
    )
    sealing.hold_against(keys, meta, kind=Kind(row["kind"]), external=None, subject=row["subject_id"])
    version = new_id()
    tag = sealing.external_tag(keys, meta.kind, meta.external_id) if meta.external_id is not None else None
    label_tags = [sealing.label_tag(keys, label) for label in dict.fromkeys(meta.labels)]
    return version, sealing.seal_meta(keys, hand.ck, hand.generation, container, version, meta), tag, label_tags


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
