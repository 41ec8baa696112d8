"""From changes to a write's targets: names become HMACs, contents are sealed, a new container gets its row's values."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import orjson
from msgspec import Struct

from app.crypto.secret import SecretKey
from app.errors import InvalidRequest
from app.identity import NO_UUID, Kind, new_id, new_version
from app.services.changes import Changes, Delete, Making, Put, Where
from app.services.sealing import (
    Meta,
    collection_tag,
    external_tag,
    fingerprint,
    label_tag,
    object_id,
    object_tag,
    seal_meta,
    seal_object,
    seal_turn,
)
from app.services.tenant_keys import Known, TenantKeys
from app.store.statements import Operation, WriteTarget


class Draft(Struct):
    """One container's part of a write: the changes, what is believed of the container, and what was drawn for it."""

    changes: Changes
    known: Known
    ck: SecretKey
    new_key: bytes | None = None
    trk: int | None = None
    created: bool = False
    puts: list[UUID] = []
    merges: list[UUID] = []
    first_turn: int | None = None
    last_turn: int | None = None


def made(keys: TenantKeys, changes: Changes, making: Making) -> Draft:
    """A container that doesn't exist yet, with its first key."""
    container = new_id()
    ck, sealed = keys.new_container_key(container, 1)
    known = Known(container, 1, keys.active, 0, 1, making.subject_id, complete=True)
    return Draft(changes, known, ck, new_key=sealed, trk=keys.active, created=True)


def subjects_of(parts: Sequence[Changes]) -> list[Changes]:
    """The subjects that sessions would be made with and that aren't parts of their own."""
    own = {part.where.external for part in parts if part.where.kind is Kind.SUBJECT}
    named = {part.make.subject for part in parts if part.make is not None and part.make.subject is not None}
    return [Changes(Where(Kind.SUBJECT, external=name), "container.create", make=Making()) for name in named - own]


def with_subjects(drafts: list[Draft], subjects: list[Draft]) -> list[Draft]:
    """Give new sessions their subjects' ids. A subject that has to be made is made with the session, behind it."""
    everybody = {each.changes.where.external: each for each in (*drafts, *subjects) if _is_subject(each)}
    new = set()
    for draft in drafts:
        name = draft.changes.make.subject if draft.created and draft.changes.make is not None else None
        if name is not None:
            draft.known.subject = everybody[name].known.id
            new.add(name)
    return [*drafts, *(each for each in subjects if each.created and each.changes.where.external in new)]


def _is_subject(draft: Draft) -> bool:
    return draft.changes.where.kind is Kind.SUBJECT


def moved_on(keys: TenantKeys, draft: Draft) -> Draft:
    """After a change of the root key, a container gets a new key at its next write."""
    known = draft.known
    if known.trk_generation == keys.active:
        return draft
    generation = known.ck_generation + 1
    ck, sealed = keys.new_container_key(known.id, generation)
    moved = Known(known.id, generation, keys.active, known.commit, known.head, known.subject, complete=known.complete)
    return Draft(draft.changes, moved, ck, new_key=sealed, trk=keys.active)


def caught_up(keys: TenantKeys, draft: Draft) -> Draft:
    """With what those who held the lock before have seen of the container."""
    now = keys.known(draft.known.id)
    if now is not None and now.ck_generation == draft.known.ck_generation and draft.new_key is None:
        draft.known.commit, draft.known.head = now.commit, now.head
    return draft


def target_of(keys: TenantKeys, draft: Draft, merged: Sequence[Put], facts: str) -> WriteTarget:
    changes, known = draft.changes, draft.known
    operations: list[Operation] = []
    draft.puts = [seal_put(keys, draft, put, operations) for put in changes.puts]
    draft.merges = [seal_put(keys, draft, put, operations) for put in merged]
    operations.extend(delete_of(keys, known.id, delete) for delete in changes.deletes)
    if changes.pop is not None:
        operations.append(Operation("pop", number=changes.pop))
    if changes.clear:
        operations.append(Operation("clear"))
    number = changes.expected_last + 1 if changes.expected_last is not None else known.head
    if changes.turns:
        draft.first_turn, draft.last_turn = number, number + len(changes.turns) - 1
    for ordinal, turn in enumerate(changes.turns, number):
        turn_id = new_version()
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
        fill_in(keys, draft, target)
    return target


def seal_put(keys: TenantKeys, draft: Draft, put: Put, operations: list[Operation]) -> UUID:
    container = draft.known.id
    item, version = object_id(keys, container, put.collection, put.key), new_version()
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


def delete_of(keys: TenantKeys, container: UUID, delete: Delete) -> Operation:
    if delete.key is not None and delete.collection is not None:
        item = object_id(keys, container, delete.collection, delete.key)
        wanted = NO_UUID if delete.if_version is None and delete.must_exist else delete.if_version
        return Operation("delete", item, if_version=wanted)
    collection = collection_tag(keys, container, delete.collection) if delete.collection is not None else None
    if delete.keep is not None:
        return Operation("prune", collection=collection, number=delete.keep)
    tags = object_tag(keys, container, delete.tag).bytes if delete.tag is not None else None
    return Operation("delete-many", collection=collection, tags=tags)


def fill_in(keys: TenantKeys, draft: Draft, target: WriteTarget) -> None:
    """Fill in what a new container's row needs."""
    where, making = draft.changes.where, draft.changes.make or Making()
    version = new_id()
    idle, absolute = lifetime(keys, where.kind, making)
    if where.external is not None:
        target.external = external_tag(keys, where.kind, where.external)
    target.make = orjson.dumps(
        {
            "subject": str(draft.known.subject) if draft.known.subject is not None else None,
            "meta_version": version,
            "ttl_idle": idle,
            "ttl_absolute": absolute,
            "labels": [str(label_tag(keys, label)) for label in dict.fromkeys(making.labels)],
        }
    ).decode()
    meta = Meta(where.kind, where.external, draft.known.subject, making.labels)
    target.meta = seal_meta(keys, draft.ck, draft.known.ck_generation, draft.known.id, version, meta)


def lifetime(keys: TenantKeys, kind: Kind, making: Making) -> tuple[int | None, int | None]:
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
