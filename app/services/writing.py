"""One write: seal under what this worker believes of the containers, send the statement, and look again where it was
wrong.

What must hold when it is written (a version, a commit number, a turn's number, the container's key) is checked by the
statement, under the container's lock. So a wrong belief costs a round trip, never a lost update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID
from weakref import WeakValueDictionary

import orjson

from app.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, Tampered, Unavailable
from app.identity import NO_UUID, Kind
from app.services import content
from app.services.changes import Applied, Call, Changes, Found, Merge, Put, Turn, Where
from app.services.deletion_journal import DeletionJournal, deletions_of
from app.services.drafting import Draft, caught_up, made, moved_on, subjects_of, target_of, with_subjects
from app.services.reading import Reading
from app.services.sealing import (
    external_tag,
    fingerprint,
    idempotency_tag,
    object_id,
    open_answer,
    open_turn,
    seal_answer,
)
from app.services.tenant_keys import TenantKeys
from app.services.verdict import STALE, WIPES, refusal
from app.store.lane import Lanes
from app.store.statements import Operation, ReadTarget, Selector, TargetResult, Write, WriteTarget

TRIES: Final = 8


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
            drafts = await self._drafts(call, keys, parts)
            lock = self._lock(drafts)
            if lock is None:
                done = await self._attempt(call, keys, drafts)
            else:
                async with lock:
                    done = await self._attempt(call, keys, [caught_up(keys, draft) for draft in drafts])
            if done is not None:
                return done[: len(parts)]
        raise Unavailable

    def _lock(self, drafts: Sequence[Draft]) -> asyncio.Lock | None:
        """Appends to one session go one after another in this worker, so that each knows its turns' numbers."""
        for draft in drafts:
            if draft.changes.turns and not draft.created:
                return self._locks.setdefault(draft.known.id, asyncio.Lock())
        return None

    async def _attempt(self, call: Call, keys: TenantKeys, drafts: list[Draft]) -> list[Applied] | None:
        merged = [await self._merged(call, draft) if draft.changes.merges else () for draft in drafts]
        facts = await self._reading.facts(call, keys)
        keys.check()
        targets = [target_of(keys, draft, puts, facts) for draft, puts in zip(drafts, merged, strict=True)]
        item = Write(
            call.caller.tenant,
            call.caller.api_key,
            keys.epoch,
            targets,
            guarded=all(_guarded(draft.changes) for draft in drafts),
            weight=sum([len(operation.body or b"") for target in targets for operation in target.operations]),
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
            gone = deletions_of(keys.tenant, targets, results)
            if gone:
                await self.deletions.append(gone)
            return [
                self._applied(
                    keys,
                    draft,
                    target,
                    result,
                    await self._popped(call, keys, draft.known.id, result.turns) if result.turns else [],
                )
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

    # ------------------------------------------------------------ what is believed of a container

    async def _drafts(self, call: Call, keys: TenantKeys, parts: Sequence[Changes]) -> list[Draft]:
        """A draft for each part, and behind them one for the subject that a new session needs and that doesn't exist.

        What this worker hasn't met is looked up all at once, but for a subject that is known by its session only. So a
        session's first commit waits for one look-up and one write, and its subject is made with it or not at all.
        """
        drafts = [draft for part in parts if (draft := self._held(keys, part)) is not None]
        if len(drafts) == len(parts):
            return drafts
        direct = [self._met(call, keys, part) for part in parts if part.where.session is None]
        subjects = [self._draft(call, keys, subject) for subject in subjects_of(parts)]
        found = iter(await asyncio.gather(*direct, *subjects))
        drafts = [next(found) if part.where.session is None else await self._met(call, keys, part) for part in parts]
        return with_subjects(drafts, list(found))

    async def _met(self, call: Call, keys: TenantKeys, changes: Changes) -> Draft:
        return self._held(keys, changes) or await self._draft(call, keys, changes)

    def _place(self, keys: TenantKeys, where: Where) -> UUID | None:
        """The id of a container that this worker has met."""
        if where.external is not None:
            return keys.external(where.kind, external_tag(keys, where.kind, where.external))
        if where.session is None:
            return where.id
        place = self._place(keys, where.session)
        session = keys.known(place) if place is not None else None
        return session.subject if session is not None and session.complete else None

    def _held(self, keys: TenantKeys, changes: Changes) -> Draft | None:
        """A draft for a container that this worker has met."""
        container = self._place(keys, changes.where)
        known = keys.known(container) if container is not None and not changes.only_new else None
        ck = keys.container_key(known.id, known.ck_generation) if known is not None else None
        if known is None or ck is None:
            return None
        return moved_on(keys, Draft(changes, known, ck))

    async def _draft(self, call: Call, keys: TenantKeys, changes: Changes) -> Draft:
        where = changes.where
        place = await self._subject_of(call, keys, where.session) if where.session is not None else where.id
        tag = external_tag(keys, where.kind, where.external) if where.external is not None else None
        if tag is not None and changes.make is not None and keys.take_missed(where.kind, tag):
            return made(keys, changes, changes.make)  # a load has just looked; if somebody was faster, it "exists"
        found = await self._reading.look_up(keys, where.kind, place, tag, call)
        if found is None or found[1]:
            if changes.make is None:
                raise NotFound
            if found is not None:
                await self.expire(call, keys, where.kind, found[0].id)
            return made(keys, changes, changes.make)
        if changes.only_new:
            raise Conflict("A session with this external_id exists. Choose another.")
        known = found[0]
        ck = keys.container_key(known.id, known.ck_generation)
        if ck is None:
            raise Tampered
        return moved_on(keys, Draft(changes, known, ck))

    async def _subject_of(self, call: Call, keys: TenantKeys, session: Where) -> UUID:
        """The id of a session's subject. Raises ``NotFound``; ``InvalidRequest`` where the session has none."""
        known = self._place(keys, Where(Kind.SUBJECT, session=session))
        found = known or await self._reading.subject_of(call, keys, session)
        if found is None:
            raise InvalidRequest("The session has no subject.", "/subject")
        return found

    # ------------------------------------------------------------ merges

    async def _merged(self, call: Call, draft: Draft) -> list[Put]:
        """RFC 7396 patches applied to what is stored, as puts that hold only if nothing has moved meanwhile."""
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

    @staticmethod
    def _applied(
        keys: TenantKeys, draft: Draft, target: WriteTarget, result: TargetResult, popped: list[Turn]
    ) -> Applied:
        head, known = result.head, draft.known
        if draft.new_key is not None:
            keys.keep_key(known.id, known.ck_generation, draft.ck)
        where = draft.changes.where
        if draft.created and where.external is not None:
            keys.learn_external(where.kind, external_tag(keys, where.kind, where.external), known.id)
        known.commit, known.head = head["commit_number"], head["number"]
        keys.learn(known)
        puts = draft.puts
        if result.objects:
            same = {row["id"]: row["version"] for row in result.objects}
            placed = [operation for operation in target.operations if operation.type == "put"][: len(puts)]
            puts = [same.get(op.id, version) for op, version in zip(placed, puts, strict=True)]
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
            unchanged=len(result.objects),
            inserted=head["selector"] or 0,
            popped=popped,
        )

    async def _popped(self, call: Call, keys: TenantKeys, container: UUID, rows: Sequence[Any]) -> list[Turn]:
        """Newest first."""
        popped = []
        async with self._reading.alarmed(call, container):
            for row in rows:
                ck = await self._reading.container_key(keys, Kind.SESSION, container, row["ck_generation"])
                popped.append(open_turn(keys, ck, container, row))
        popped.sort(key=lambda turn: -turn.number)
        return popped


# ---------------------------------------------------------------- checks and answers


def _check_distinct(parts: Sequence[Changes]) -> None:
    for part in parts:
        if len(part.puts) + len(part.merges) + len(part.deletes) < 2:
            continue
        names = [(put.collection, put.key) for put in part.puts]
        names += [(merge.collection, merge.key) for merge in part.merges]
        names += [(delete.collection or "", delete.key) for delete in part.deletes if delete.key is not None]
        if len(set(names)) != len(names):
            raise InvalidRequest("An object may stand once in a commit.")


def _guarded(changes: Changes) -> bool:
    """Whether every change of an object states what must hold."""
    if changes.expected_commit is not None:
        return True
    for put in changes.puts:
        if put.if_version is None and not put.if_none:
            return False
    return all(merge.if_version is not None for merge in changes.merges) and all(
        delete.if_version is not None for delete in changes.deletes
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
                inserted=numbers[2],
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
