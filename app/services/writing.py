"""One write: seal under what this worker believes of the containers, send the statement, and look again where it was
wrong.

What must hold when it is written (a version, a commit number, a turn's number, the container's key) is checked by the
statement, under the container's lock. So a wrong belief costs a round trip, never a lost update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID
from weakref import WeakValueDictionary

import orjson

from app.crypto.secret import SecretKey
from app.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, Tampered, Unavailable
from app.identity import NO_UUID, Kind, new_id
from app.services import content
from app.services.changes import Applied, Call, Changes, Delete, Found, Making, Merge, Put, Where
from app.services.deletion_journal import DeletionJournal, deletions_of
from app.services.reading import Reading
from app.services.sealing import (
    collection_tag,
    external_tag,
    fingerprint,
    idempotency_tag,
    label_tag,
    object_id,
    object_tag,
    open_answer,
    open_turn,
    seal_answer,
    seal_meta,
    seal_object,
    seal_turn,
)
from app.services.tenant_keys import Known, TenantKeys
from app.services.verdict import STALE, WIPES, refusal
from app.store.lane import Lanes
from app.store.statements import Operation, ReadTarget, Selector, TargetResult, Write, WriteTarget

TRIES: Final = 8


@dataclass(slots=True)
class Draft:
    """One container's part of a write: the changes, what is believed of the container, and what was drawn for it."""

    changes: Changes
    known: Known
    ck: SecretKey
    new_key: bytes | None = None
    trk: int | None = None
    created: bool = False
    puts: list[UUID] = field(default_factory=list)
    merges: list[UUID] = field(default_factory=list)
    first_turn: int | None = None
    last_turn: int | None = None


class Writing:
    """Builds and sends writes. ``reading`` is shared."""

    def __init__(self, reading: Reading, lane: Lanes[Write], deletions: DeletionJournal) -> None:
        self.deletions = deletions
        self._reading = reading
        self._keyring = reading.keyring
        self._lane = lane
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    async def write(self, call: Call, parts: Sequence[Changes]) -> list[Applied]:
        """Apply all ``parts`` or none, in their order.

        Raises ``NotFound``, ``PreconditionFailed``, ``PreconditionRequired``, ``Conflict``, ``IdempotencyMismatch``,
        ``InvalidRequest``, the keyring's errors, ``Unavailable``, ``OutcomeUnknown``.
        """
        _check_distinct(parts)
        for _ in range(TRIES):
            keys = await self._reading.keys(call.caller.tenant)
            drafts = [await self._draft(call, keys, part) for part in parts]
            lock = self._lock(drafts)
            if lock is None:
                done = await self._attempt(call, keys, drafts)
            else:
                async with lock:
                    done = await self._attempt(call, keys, [_caught_up(keys, draft) for draft in drafts])
            if done is not None:
                return done
        raise Unavailable

    def _lock(self, drafts: Sequence[Draft]) -> asyncio.Lock | None:
        """Appends to one session go one after another in this worker, so that each knows its turns' numbers."""
        for draft in drafts:
            if draft.changes.turns and not draft.created:
                return self._locks.setdefault(draft.known.id, asyncio.Lock())
        return None

    async def _attempt(self, call: Call, keys: TenantKeys, drafts: list[Draft]) -> list[Applied] | None:
        merged = [await self._merged(call, draft) for draft in drafts]
        facts = await self._reading.facts(call, keys)
        keys.check()
        targets = [_target(keys, draft, puts, facts) for draft, puts in zip(drafts, merged, strict=True)]
        item = Write(
            call.caller.tenant,
            call.caller.api_key,
            keys.epoch,
            targets,
            guarded=all(_guarded(draft.changes) for draft in drafts),
            weight=sum(len(operation.body or b"") for target in targets for operation in target.operations),
        )
        tag = None
        if call.idempotency_key is not None:
            tag = idempotency_tag(keys, call.caller.principal, call.idempotency_key)
            item.idempotency_tag = tag
            item.fingerprint = fingerprint(keys, NO_UUID, call.fingerprint or b"")
            item.answer = seal_answer(keys, tag, [_remembered(draft) for draft in drafts])
        results: list[TargetResult] = await self._lane.submit(item)
        status = results[0].status
        if status == "ok":
            await self.deletions.append(deletions_of(keys.tenant, targets, results))
            return [
                await self._applied(call, keys, draft, target, result)
                for draft, target, result in zip(drafts, targets, results, strict=True)
            ]
        if status == "replay":
            async with self._reading.alarmed(call, NO_UUID):
                return _replayed(open_answer(keys, tag or b"", results[0].head["body"]), results[0].head)
        if status in STALE:
            await self._look_again(call, keys, drafts, results, status)
            return None
        if status in WIPES:
            self._keyring.discard(call.caller.tenant, at_once=True)
        if status == "absent" and _guessed(keys, drafts):
            return None
        if status == "precondition" and any(draft.changes.merges for draft in drafts) and not _asked(drafts):
            return None  # the object that was merged has moved on: merge again
        if status == "no-object" and any(draft.changes.puts or draft.changes.merges for draft in drafts):
            raise PreconditionFailed("Nothing is stored there, so If-Match can't hold.")
        raise refusal(status, _failed_head(drafts, results))

    async def _look_again(
        self, call: Call, keys: TenantKeys, drafts: list[Draft], results: list[TargetResult], status: str
    ) -> None:
        if status == "epoch":
            self._keyring.discard(call.caller.tenant, at_once=False)
            return
        for draft, result in zip(drafts, results, strict=True):
            if status == "head" and draft.changes.expected_last is not None:
                raise PreconditionFailed("The last turn is another one now. Read the turns, decide again.")
            keys.forget(draft.known.id)
            if status == "gone" and draft.created and result.head["id"] is not None:
                await self.expire(call, keys, draft.changes.where.kind, result.head["id"])

    async def expire(self, call: Call, keys: TenantKeys, kind: Kind, container: UUID) -> None:
        """Erase a container whose time to live has ended, so that its external id is free again."""
        facts = await self._reading.facts(call, keys)
        target = WriteTarget("retention.expire", facts, kind, container, [Operation("erase")])
        results = await self._lane.submit(Write(keys.tenant, call.caller.api_key, keys.epoch, [target]))
        if results[0].status == "ok":
            await self.deletions.append(deletions_of(keys.tenant, [target], results))
        keys.erase(container)

    async def ensure(self, call: Call, where: Where, make: Making | None = None) -> UUID:
        """The id of the container that ``where.external`` names, made if there is none."""
        keys = await self._reading.keys(call.caller.tenant)
        tag = external_tag(keys, where.kind, where.external or "")
        found = await self._reading.look_up(keys, where.kind, None, tag, call)
        if found is not None and not found[1]:
            return found[0].id
        own = Call(call.caller, call.purpose, call.trace)
        done = await self.write(own, [Changes(where, "container.create", make=make or Making())])
        return done[0].id

    # ------------------------------------------------------------ what is believed of a container

    async def _draft(self, call: Call, keys: TenantKeys, changes: Changes) -> Draft:
        where = changes.where
        tag = external_tag(keys, where.kind, where.external) if where.external is not None else None
        container = where.id if tag is None else keys.external(where.kind, tag)
        if container is not None:
            known = keys.known(container)
            ck = keys.container_key(container, known.ck_generation) if known is not None else None
            if known is not None and ck is not None and not changes.only_new:
                return _moved_on(keys, Draft(changes, known, ck))
        found = await self._reading.look_up(keys, where.kind, where.id, tag, call)
        if found is None or found[1]:
            if changes.make is None:
                raise NotFound
            if found is not None:
                await self.expire(call, keys, where.kind, found[0].id)
            draft = _made(keys, changes)
            draft.known.subject = changes.make.subject_id
            if changes.make.subject is not None:
                draft.known.subject = await self.ensure(call, Where(Kind.SUBJECT, external=changes.make.subject))
            draft.known.complete = True
            return draft
        if changes.only_new:
            raise Conflict("A session with this external_id exists. Choose another.")
        known = found[0]
        ck = keys.container_key(known.id, known.ck_generation)
        if ck is None:
            raise Tampered
        return _moved_on(keys, Draft(changes, known, ck))

    # ------------------------------------------------------------ merges

    async def _merged(self, call: Call, draft: Draft) -> list[Put]:
        """RFC 7396 patches applied to what is stored, as puts that hold only if nothing has moved meanwhile."""
        if not draft.changes.merges:
            return []
        known, kind = draft.known, draft.changes.where.kind
        if draft.created:
            return [_merge_into(None, merge) for merge in draft.changes.merges]

        def plan(keys: TenantKeys, facts: str) -> list[ReadTarget]:
            wanted = [
                Selector("object", id=object_id(keys, known.id, merge.collection, merge.key))
                for merge in draft.changes.merges
            ]
            return [ReadTarget("context.read", facts, kind, known.id, wanted)]

        keys, results = await self._reading.read(call, plan)
        opened = await self._reading.open_result(call, keys, kind, results[0])
        stored = {(found.collection, found.key): found for found in opened.objects}
        puts = []
        for merge in draft.changes.merges:
            found = stored.get((merge.collection, merge.key))
            puts.append(_merge_into(found, merge))
        return puts

    # ------------------------------------------------------------ what came of it

    async def _applied(
        self, call: Call, keys: TenantKeys, draft: Draft, target: WriteTarget, result: TargetResult
    ) -> Applied:
        head, known = result.head, draft.known
        if any(operation.type == "erase" for operation in target.operations):
            keys.erase(known.id)
        else:
            if draft.new_key is not None:
                keys.keep_key(known.id, known.ck_generation, draft.ck)
            where = draft.changes.where
            if draft.created and where.external is not None:
                keys.learn_external(where.kind, external_tag(keys, where.kind, where.external), known.id)
            known.commit, known.head = head["commit_number"], head["number"]
            keys.learn(known)
        unchanged = {row["selector"]: row["version"] for row in result.objects}
        puts = list(draft.puts)
        if unchanged:
            same = {row["id"]: row["version"] for row in result.objects}
            placed = [operation for operation in target.operations if operation.type == "put"][: len(puts)]
            puts = [same.get(op.id, version) for op, version in zip(placed, puts, strict=True)]
        popped = []
        async with self._reading.alarmed(call, known.id):
            for row in result.turns:
                ck = await self._reading.container_key(keys, Kind.SESSION, known.id, row["ck_generation"])
                popped.append(open_turn(keys, ck, known.id, row))
        return Applied(
            known.id,
            head["commit_number"],
            head["number"],
            draft.created,
            puts,
            draft.merges,
            draft.first_turn,
            draft.last_turn,
            removed=len(result.removed) + (orjson.loads(head["extra"])["cleared"] if head["extra"] else 0),
            unchanged=len(unchanged),
            inserted=head["selector"] or 0,
            popped=sorted(popped, key=lambda turn: -turn.number),
        )


# ---------------------------------------------------------------- drafts


def _made(keys: TenantKeys, changes: Changes) -> Draft:
    """A container that doesn't exist yet, with its first key."""
    container = new_id()
    ck, sealed = keys.new_container_key(container, 1)
    known = Known(container, 1, keys.active, 0, 1)
    return Draft(changes, known, ck, new_key=sealed, trk=keys.active, created=True)


def _moved_on(keys: TenantKeys, draft: Draft) -> Draft:
    """After a change of the root key, a container gets a new key at its next write."""
    known = draft.known
    if known.trk_generation == keys.active:
        return draft
    generation = known.ck_generation + 1
    ck, sealed = keys.new_container_key(known.id, generation)
    moved = Known(known.id, generation, keys.active, known.commit, known.head, known.subject, complete=known.complete)
    return Draft(draft.changes, moved, ck, new_key=sealed, trk=keys.active)


def _caught_up(keys: TenantKeys, draft: Draft) -> Draft:
    """With what those who held the lock before have seen of the container."""
    now = keys.known(draft.known.id)
    if now is not None and now.ck_generation == draft.known.ck_generation and draft.new_key is None:
        draft.known.commit, draft.known.head = now.commit, now.head
    return draft


def _target(keys: TenantKeys, draft: Draft, merged: Sequence[Put], facts: str) -> WriteTarget:
    changes, known = draft.changes, draft.known
    operations: list[Operation] = []
    draft.puts = [_seal_put(keys, draft, put, operations) for put in changes.puts]
    draft.merges = [_seal_put(keys, draft, put, operations) for put in merged]
    operations.extend(_delete(keys, known.id, delete) for delete in changes.deletes)
    if changes.pop is not None:
        operations.append(Operation("pop", number=changes.pop))
    if changes.clear:
        operations.append(Operation("clear"))
    number = changes.expected_last + 1 if changes.expected_last is not None else known.head
    if changes.turns:
        draft.first_turn, draft.last_turn = number, number + len(changes.turns) - 1
    for ordinal, turn in enumerate(changes.turns, number):
        turn_id = new_id()
        body = seal_turn(keys, draft.ck, known.ck_generation, known.id, turn_id, ordinal, turn)
        operations.append(
            Operation("turn", turn_id, content_type=turn.content_type, size=len(turn.body), number=ordinal, body=body)
        )
    target = WriteTarget(
        changes.action,
        facts,
        changes.where.kind,
        known.id,
        operations,
        ck=known.ck_generation,
        new_key=draft.new_key,
        trk=draft.trk,
        expected_commit=changes.expected_commit,
        expected_head=number if changes.turns else None,
    )
    if draft.created:
        _make(keys, draft, target)
    return target


def _seal_put(keys: TenantKeys, draft: Draft, put: Put, operations: list[Operation]) -> UUID:
    container = draft.known.id
    item, version = object_id(keys, container, put.collection, put.key), new_id()
    operations.append(
        Operation(
            "put",
            item,
            version,
            collection_tag(keys, container, put.collection),
            b"".join(object_tag(keys, container, tag).bytes for tag in put.tags) if put.tags else None,
            put.if_version,
            put.if_none,
            fingerprint(keys, container, put.content_type.encode(), put.body) if put.if_none else None,
            put.content_type,
            len(put.body),
            None,
            seal_object(keys, draft.ck, draft.known.ck_generation, container, item, version, put),
        )
    )
    return version


def _delete(keys: TenantKeys, container: UUID, delete: Delete) -> Operation:
    if delete.key is not None and delete.collection is not None:
        item = object_id(keys, container, delete.collection, delete.key)
        wanted = NO_UUID if delete.if_version is None and delete.must_exist else delete.if_version
        return Operation("delete", item, if_version=wanted)
    collection = collection_tag(keys, container, delete.collection) if delete.collection is not None else None
    if delete.keep is not None:
        return Operation("prune", collection=collection, number=delete.keep)
    tags = object_tag(keys, container, delete.tag).bytes if delete.tag is not None else None
    return Operation("delete-many", collection=collection, tags=tags)


def _make(keys: TenantKeys, draft: Draft, target: WriteTarget) -> None:
    """Fill in what a new container's row needs."""
    where, making = draft.changes.where, draft.changes.make or Making()
    version = new_id()
    idle, absolute = _lifetime(keys, where.kind, making)
    if where.external is not None:
        target.external = external_tag(keys, where.kind, where.external)
    target.make = orjson.dumps(
        {
            "subject": str(draft.known.subject) if draft.known.subject is not None else None,
            "meta_version": version,
            "ttl_idle": idle,
            "ttl_absolute": absolute,
            "labels": [label_tag(keys, label) for label in dict.fromkeys(making.labels)],
        }
    ).decode()
    target.meta = seal_meta(
        keys, draft.ck, draft.known.ck_generation, draft.known.id, version, where.external, making.labels
    )


def _lifetime(keys: TenantKeys, kind: Kind, making: Making) -> tuple[int | None, int | None]:
    """Idle and absolute seconds: as asked, within the tenant's maximum; the tenant's default where nothing is asked.

    What belongs to a subject lasts for the tenant's maximum after its last write; an app's context isn't a person's.
    """
    policy = keys.policy
    for asked in (making.ttl_idle, making.ttl_absolute):
        if asked is not None and asked > policy.ttl_max:
            raise InvalidRequest(f"The tenant's longest time to live is {policy.ttl_max} seconds.", "/ttl")
    if kind is Kind.APP:
        return making.ttl_idle, making.ttl_absolute
    if kind is Kind.SUBJECT:
        return policy.ttl_max, None
    if making.ttl_idle is None and making.ttl_absolute is None:
        return policy.ttl_idle, None
    return making.ttl_idle, making.ttl_absolute


# ---------------------------------------------------------------- checks and answers


def _check_distinct(parts: Sequence[Changes]) -> None:
    for part in parts:
        names = [(put.collection, put.key) for put in part.puts]
        names += [(merge.collection, merge.key) for merge in part.merges]
        names += [(delete.collection or "", delete.key) for delete in part.deletes if delete.key is not None]
        if len(set(names)) != len(names):
            raise InvalidRequest("An object may stand once in a commit.")


def _guarded(changes: Changes) -> bool:
    """Whether every change of an object states what must hold."""
    if changes.expected_commit is not None:
        return True
    return (
        all(put.if_version is not None or put.if_none for put in changes.puts)
        and all(merge.if_version is not None for merge in changes.merges)
        and all(delete.if_version is not None for delete in changes.deletes)
    )


def _asked(drafts: Sequence[Draft]) -> bool:
    """Whether the caller stated a precondition of its own."""
    for changes in (draft.changes for draft in drafts):
        if any(put.if_version is not None or put.if_none for put in changes.puts):
            return True
        if any(merge.if_version not in {None, NO_UUID} for merge in changes.merges):
            return True
        if any(delete.if_version is not None for delete in changes.deletes):
            return True
    return False


def _guessed(keys: TenantKeys, drafts: Sequence[Draft]) -> bool:
    """Forget containers that another worker may have removed. Whether one was found by its name: it may exist anew."""
    for draft in drafts:
        keys.forget(draft.known.id)
    return any(draft.changes.where.external is not None and not draft.created for draft in drafts)


def _merge_into(found: Found | None, merge: Merge) -> Put:
    """A put that holds only if the object is still ``found`` (or still absent)."""
    before = content.parse(found.body) if found is not None else None
    body = content.dump(content.merge(before, merge.patch))
    if merge.largest is not None and len(body) > merge.largest:
        raise InvalidRequest(f"The merged object would be larger than {merge.largest} bytes.")
    if merge.if_version is not None and (found is None or merge.if_version not in {NO_UUID, found.version}):
        # It can't hold, but a repeated request must still get its first answer: the statement knows.
        return Put(merge.collection, merge.key, "application/json", body, inline=True, if_version=merge.if_version)
    return Put(
        merge.collection,
        merge.key,
        found.content_type if found is not None else "application/json",
        body,
        tuple(found.tags) if found is not None else (),
        inline=True,
        if_version=found.version if found is not None else None,
        if_none=found is None,
    )


def _remembered(draft: Draft) -> dict[str, Any]:
    return {
        "id": str(draft.known.id),
        "created": draft.created,
        "puts": [str(version) for version in draft.puts],
        "merges": [str(version) for version in draft.merges],
        "first": draft.first_turn,
        "last": draft.last_turn,
    }


def _replayed(answer: list[dict[str, Any]], head: Any) -> list[Applied]:
    """The first answer again. Versions that turned out to be stored already stand in the row's facts."""
    facts = orjson.loads(head["extra"])
    same = {position: UUID(version) for position, version in facts["same"] or ()}
    position = 0
    applied = []
    for part, numbers in zip(answer, facts["heads"], strict=True):
        puts = [same.get(position + index, UUID(version)) for index, version in enumerate(part["puts"])]
        position += len(part["puts"]) + len(part["merges"])
        applied.append(
            Applied(
                UUID(part["id"]),
                numbers[0] or 0,
                numbers[1] or 1,
                part["created"],
                puts,
                [UUID(version) for version in part["merges"]],
                part["first"],
                part["last"],
            )
        )
    return applied


def _failed_head(drafts: Sequence[Draft], results: Sequence[TargetResult]) -> Any:
    """The target that a refusal is about: for a commit number, the one that has another."""
    for draft, result in zip(drafts, results, strict=True):
        expected = draft.changes.expected_commit
        if expected is not None and (result.head["commit_number"] or 0) != expected:
            return result.head
    return results[0].head
