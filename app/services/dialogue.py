"""Sessions, subjects and apps: what a dialogue runtime does with them. Routes call this; it calls reading and
writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import orjson
from msgspec import Struct

from app.errors import InvalidRequest, NotFound, Unavailable
from app.identity import NO_UUID, Kind, new_id
from app.services.changes import (
    Applied,
    Call,
    Changes,
    Container,
    Delete,
    Found,
    Making,
    Opened,
    Put,
    Select,
    TurnRange,
    Where,
)
from app.services.deletion_journal import deletions_of
from app.services.reading import Reading
from app.services.sealing import Meta, collection_tag, external_tag, label_tag, object_id, object_tag, seal_meta
from app.services.tenant_keys import TenantKeys
from app.services.verdict import STALE, refusal
from app.services.writing import TRIES, Writing
from app.store.lane import Lanes
from app.store.statements import (
    WANT_KEYS,
    WANT_META,
    Operation,
    ReadTarget,
    Selector,
    TargetResult,
    Write,
    WriteTarget,
)

PAGE_BYTES: Final = 8 * 1024 * 1024
"""A page or a container's part of a load ends once it holds so much; at least one object is in it."""

MOST_OBJECTS: Final = 1000
"""Objects of one selector, where the caller sets no limit of its own."""


class Loading(Struct):
    """What to load of a container. ``hop``: ``where`` names a session; its subject is meant. ``names``: open its
    names.
    """

    where: Where
    action: str
    selects: Sequence[Select] = ()
    turns: TurnRange | None = None
    hop: bool = False
    names: bool = False


class Dialogue:
    """The main job."""

    def __init__(self, reading: Reading, writing: Writing, writes: Lanes[Write]) -> None:
        self._reading = reading
        self._writing = writing
        self._writes = writes

    # ------------------------------------------------------------ reading

    async def load(self, call: Call, parts: Sequence[Loading], *, all_optional: bool = False) -> list[Opened | None]:
        """What each part names, in one statement. The first must exist, unless ``all_optional``; of the others, what
        doesn't is None.

        Raises ``NotFound``, the keyring's errors, ``Tampered``, ``Unavailable``.
        """

        keys = await self._reading.keys(call.caller.tenant)
        places = [await self._place(call, keys, part) for part in parts]
        keys, present, results = await self._read(call, parts, places)
        gone = [place for (_, place), result in zip(present, results, strict=True) if result.status != "ok"]
        if gone and any(keys.known(place) is not None for place in gone):
            # Removed by another worker. Under its name there may be a new one.
            for place in gone:
                keys.forget(place)
            anew = [await self._place(call, keys, part) for part in parts]
            if any(place is not None and place != old for place, old in zip(anew, places, strict=True)):
                places = anew
                keys, present, results = await self._read(call, parts, places)
        found = iter(zip(present, results, strict=True))
        opened: list[Opened | None] = []
        for i, known in enumerate(places):
            first = i == 0 and not all_optional
            opened.append(await self._opened(call, keys, next(found), first=first) if known is not None else None)
        return opened

    async def _read(
        self, call: Call, parts: Sequence[Loading], places: list[UUID | None]
    ) -> tuple[TenantKeys, list[tuple[Loading, UUID]], list[TargetResult]]:
        """One statement over the parts that have a place; the first is asked for in any case."""
        if places[0] is None:
            # Nothing is there to read. The statement still judges the caller and records the refusal.
            places[0] = NO_UUID
        present = [(part, place) for part, place in zip(parts, places, strict=True) if place is not None]

        def plan(keys: TenantKeys, facts: str) -> list[ReadTarget]:
            return [_read_target(keys, facts, part, place) for part, place in present]

        keys, results = await self._reading.read(call, plan)
        return keys, present, results

    async def _opened(
        self, call: Call, keys: TenantKeys, found: tuple[tuple[Loading, UUID], TargetResult], *, first: bool
    ) -> Opened | None:
        (part, _), result = found
        if result.status != "ok" and not first:
            return None
        kind = Kind.SUBJECT if part.hop else part.where.kind
        opened = await self._reading.open_result(call, keys, kind, result)
        opened.truncated = _cut(part, opened)
        return opened

    async def _place(self, call: Call, keys: TenantKeys, part: Loading) -> UUID | None:
        """The id of the container that ``part`` means: names inside it are HMACs that go through its id.

        A container that this worker has met before costs nothing; a new one costs a look-up, which also brings its
        keys.
        """
        where = part.where
        place, tag = where.id, None
        if where.external is not None:
            tag = external_tag(keys, where.kind, where.external)
            place = keys.external(where.kind, tag)
        known = keys.known(place) if place is not None else None
        if place is not None and (not part.hop or (known is not None and known.complete)):
            return known.subject if part.hop and known is not None else place
        looked_up = await self._reading.look_up(keys, where.kind, place, tag, call)
        if looked_up is None:
            if tag is not None:
                keys.miss(where.kind, tag)
            return None
        return looked_up[0].subject if part.hop else looked_up[0].id

    async def read_object(self, call: Call, where: Where, collection: str, key: str) -> Found:
        """One object. Raises ``NotFound`` where the container or the object is absent."""
        loading = Loading(where, "context.read", [Select(collection, key)])
        opened = (await self.load(call, [loading]))[0]
        if opened is None or not opened.objects:
            raise NotFound
        return opened.objects[0]

    async def record(self, call: Call, where: Where, action: str = "session.read") -> Container:
        """A container's record with its names opened."""
        opened = (await self.load(call, [Loading(where, action, names=True)]))[0]
        if opened is None:
            raise NotFound
        return opened.container

    async def find_sessions(
        self,
        call: Call,
        *,
        external: str | None = None,
        subject: str | None = None,
        label: str | None = None,
        after: UUID | None = None,
        limit: int,
    ) -> list[Container]:
        """Sessions by exactly one of the three names, oldest first; none where the name is unknown."""
        keys = await self._reading.keys(call.caller.tenant)
        if external is not None:
            found = await self._reading.look_up(
                keys, Kind.SESSION, None, external_tag(keys, Kind.SESSION, external), call
            )
            ids = [found[0].id] if found is not None and not found[1] else []
        elif subject is not None:
            owner = await self._reading.look_up(
                keys, Kind.SUBJECT, None, external_tag(keys, Kind.SUBJECT, subject), call
            )
            ids = await self._reading.find(keys, subject=owner[0].id, after=after, limit=limit) if owner else []
        else:
            ids = await self._reading.find(keys, label=label_tag(keys, label or ""), after=after, limit=limit)
        if not ids:
            await self._reading.auditing.looked_up(call.caller, call.purpose, call.trace)
            return []
        parts = [Loading(Where(Kind.SESSION, each), "session.lookup", names=True) for each in ids]
        opened = await self.load(call, parts, all_optional=True)
        return [each.container for each in opened if each is not None]

    # ------------------------------------------------------------ writing

    async def commit(self, call: Call, parts: Sequence[Changes]) -> list[Applied]:
        """All parts or none."""
        return await self._writing.write(call, parts)

    async def put(self, call: Call, where: Where, put: Put) -> Applied:
        return (await self._writing.write(call, [Changes(where, "context.write", puts=[put])]))[0]

    async def delete_object(
        self, call: Call, where: Where, collection: str, key: str, if_version: UUID | None
    ) -> Applied:
        """Raises ``NotFound`` where nothing is stored."""
        delete = Delete(collection, key, if_version=if_version, must_exist=True)
        return (await self._writing.write(call, [Changes(where, "context.delete", deletes=[delete])]))[0]

    async def subject_id(self, call: Call, session: Where) -> UUID | None:
        """The id of a session's subject, if it has one. Raises ``NotFound``."""
        return await self._reading.subject_of(call, await self._reading.keys(call.caller.tenant), session)

    # ------------------------------------------------------------ containers

    async def get_or_create(self, call: Call, where: Where, making: Making) -> tuple[Container, bool]:
        """The container that the external id names, made if there is none; and whether it was made."""
        keys = await self._reading.keys(call.caller.tenant)
        if where.external is not None:
            tag = external_tag(keys, where.kind, where.external)
            found = await self._reading.look_up(keys, where.kind, None, tag, call)
            if found is None:
                keys.miss(where.kind, tag)
            elif not found[1]:
                return await self.record(call, Where(where.kind, found[0].id), _CREATE[where.kind]), False
        action = _CREATE[where.kind]
        done = (await self._writing.write(call, [Changes(where, action, make=making)]))[0]
        return await self.record(call, Where(where.kind, done.id)), done.created

    async def delete_container(self, call: Call, where: Where) -> None:
        """Remove a container with all its rows and keys. Raises ``Conflict`` under a legal hold."""
        for _ in range(TRIES):
            keys = await self._reading.keys(call.caller.tenant)
            facts = await self._reading.facts(call, keys)
            target = WriteTarget(_DELETE[where.kind], facts, where.kind, where.id or NO_UUID, [Operation("erase")])
            results = await self._writes.submit(Write(keys.tenant, call.caller.api_key, keys.epoch, [target]))
            status = results[0].status
            if status == "ok":
                keys.forget(where.id or NO_UUID)
                await self._writing.deletions.append(deletions_of(keys.tenant, [target], results))
                return
            if status != "epoch":
                raise refusal(status, results[0].head)
            self._reading.keyring.discard(keys.tenant, at_once=False)
        raise Unavailable

    async def update(
        self,
        call: Call,
        where: Where,
        *,
        labels: Sequence[str] | None = None,
        ttl: tuple[int | None, int | None] | None = None,
        hold: bool | None = None,
    ) -> Container:
        """Change a session's labels, time to live (idle, absolute) or legal hold."""
        for _ in range(TRIES):
            before = await self.record(call, where, "session.update")
            keys = await self._reading.keys(call.caller.tenant)
            target = await self._update_target(call, keys, before, labels, ttl, hold)
            results = await self._writes.submit(Write(keys.tenant, call.caller.api_key, keys.epoch, [target]))
            status = results[0].status
            if status == "ok":
                return await self.record(call, where, "session.update")
            keys.forget(before.id)
            if status == "epoch":
                self._reading.keyring.discard(keys.tenant, at_once=False)
            elif status not in STALE:
                raise refusal(status, results[0].head)
        raise Unavailable

    async def _update_target(
        self,
        call: Call,
        keys: TenantKeys,
        before: Container,
        labels: Sequence[str] | None,
        ttl: tuple[int | None, int | None] | None,
        hold: bool | None,
    ) -> WriteTarget:
        change: dict[str, object] = {}
        facts = await self._reading.facts(call, keys)
        target = WriteTarget("session.update", facts, before.kind, before.id, [])
        if ttl is not None:
            for asked in ttl:
                if asked is not None and asked > keys.policy.ttl_max:
                    raise InvalidRequest(f"The tenant's longest time to live is {keys.policy.ttl_max} seconds.", "/ttl")
            change["ttl_idle"], change["ttl_absolute"] = ttl
        if hold is not None:
            change["hold"] = hold
        if labels is not None:
            known = keys.known(before.id)
            ck = keys.container_key(before.id, known.ck_generation) if known is not None else None
            if known is None or ck is None:
                found = await self._reading.look_up(keys, before.kind, before.id, None, call)
                if found is None:
                    raise NotFound
                known = found[0]
                ck = await self._reading.container_key(keys, before.kind, before.id, known.ck_generation)
            version = new_id()
            labels = list(dict.fromkeys(labels))
            change |= {
                "labels": [str(label_tag(keys, label)) for label in labels],
                "meta_version": version,
                "if_meta_version": str(before.meta_version),
            }
            target.ck = known.ck_generation
            meta = Meta(before.kind, before.external_id, before.subject_id, labels)
            target.meta = seal_meta(keys, ck, known.ck_generation, before.id, version, meta)
        target.change = orjson.dumps(change).decode()
        return target


_CREATE: Final = {Kind.SESSION: "session.create", Kind.SUBJECT: "container.create", Kind.APP: "container.create"}
_DELETE: Final = {Kind.SESSION: "session.delete", Kind.SUBJECT: "context.delete", Kind.APP: "context.delete"}


def _read_target(keys: TenantKeys, facts: str, part: Loading, place: UUID) -> ReadTarget:
    known = keys.known(place)
    warm = known is not None and keys.container_key(place, known.ck_generation) is not None
    selectors = [_selector(keys, place, select) for select in part.selects]
    if part.turns is not None:
        selectors.append(_turn_selector(part.turns))
    want = (0 if warm else WANT_KEYS) | (WANT_META if part.names else 0)
    return ReadTarget(part.action, facts, Kind.SUBJECT if part.hop else part.where.kind, place, selectors, want)


def _selector(keys: TenantKeys, container: UUID, select: Select) -> Selector:
    if select.key is not None:
        return Selector("object", object_id(keys, container, select.collection or "", select.key))
    return Selector(
        "list",
        collection_tag(keys, container, select.collection) if select.collection is not None else None,
        object_tag(keys, container, select.tag) if select.tag is not None else None,
        version=select.before,
        limit=MOST_OBJECTS if select.limit is None else select.limit,
        bytes=PAGE_BYTES,
    )


def _cut(part: Loading, opened: Opened) -> bool:
    """Whether there may be more of what was asked for than one answer holds."""
    if len(opened.objects) >= MOST_OBJECTS and any(select.limit is None for select in part.selects):
        return True
    objects = sum([len(each.body) for each in opened.objects])
    return objects > PAGE_BYTES or sum([len(each.body) for each in opened.turns]) > PAGE_BYTES


def _turn_selector(turns: TurnRange) -> Selector:
    if turns.after is not None:
        return Selector("turns-after", after=turns.after, limit=turns.limit, bytes=PAGE_BYTES)
    return Selector("turns-before", before=turns.before or (1 << 62), limit=turns.limit, bytes=PAGE_BYTES)
