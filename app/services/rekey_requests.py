"""What a request meets while its tenant has older index keys: nothing but a moment's wait.

While an index key is exchanged a container stands under the old one or the new one. A request's names go through the
new one, so a container that it touches is moved first (``MovingLane``), or of a large one what it touches; its own name
is looked for under both (``Lookups``). A repeated request finds the answer that was kept under an older key for as long
as answers are kept.

Where a tenant has one index key, all of this is one look into an empty dictionary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, cast
from uuid import UUID

from typing_extensions import override

from app.identity import NO_UUID
from app.services.keyring import Keyring
from app.services.rekey_containers import Mover, Stale
from app.services.sealing import answer_again
from app.services.tenant_keys import Former, TenantKeys
from app.store import rekey as rows
from app.store.connection import Connect
from app.store.lane import Lanes
from app.store.ledger import Ledger
from app.store.pool import Pool
from app.store.statements import Read, ReadTarget, Selector, TargetResult, Write

Item = TypeVar("Item", Read, Write)

AT_FIRST: Final = 1
"""Pieces of a container that a request moves. If that isn't all, it and all that follow move what they touch."""
TRIES: Final = 3
"""Reads of a list while others change the container; then all of it is moved."""
WIDE: Final = frozenset({"delete-many", "prune"})
"""Operations that may touch all of a container."""


class Lookups(Pool):
    """Finds containers by tags of the present index key, and by those of the one before while not all have moved.

    Containers move one way only, so looking under the older tag first and under the newer one then finds each.
    """

    former: dict[UUID, Former]
    """By tenant; the keyring's own."""

    def __init__(self, connect: Connect, size: int = 4) -> None:
        super().__init__(connect, size)
        self.former = {}

    def _older(self, tenant: UUID, tag: UUID | None) -> UUID | None:
        former = self.former.get(tenant)
        if former is None or former.bound is None or tag is None:
            return None
        older = former.seen.tags.get(tag.bytes)
        return UUID(bytes=older[0]) if older else None

    @override
    async def resolve(self, tenant: UUID, kind: str, container: UUID | None, external: UUID | None) -> list[Any]:
        older = self._older(tenant, external) if container is None else None
        if older is not None:
            found = await super().resolve(tenant, kind, None, older)
            if found:
                return found
        return await super().resolve(tenant, kind, container, external)

    @override
    async def find_sessions(
        self, tenant: UUID, subject: UUID | None, label: UUID | None, after: UUID | None, limit: int
    ) -> list[UUID]:
        older = self._older(tenant, label)
        found = await super().find_sessions(tenant, None, older, after, limit) if older is not None else []
        found += await super().find_sessions(tenant, subject, label, after, limit)
        return sorted(set(found))[:limit] if older is not None else found


class MovingLane(Generic[Item]):
    """A lane that moves what an item touches before the item goes. ``under`` wraps a lane for those who take lanes."""

    def __init__(self, lane: Lanes[Item], keyring: Keyring, mover: Mover, pool: Pool, ledger: Ledger) -> None:
        self._lane: Lanes[Item] = lane
        self._keyring = keyring
        self._mover = mover
        self._pool = pool
        self._ledger = ledger

    @classmethod
    def under(cls, lane: Lanes[Item], keyring: Keyring, mover: Mover, pool: Pool, ledger: Ledger) -> Lanes[Item]:
        return cast("Lanes[Item]", cls(lane, keyring, mover, pool, ledger))

    def submit(self, item: Item) -> Awaitable[Any]:
        """As ``Lanes.submit``."""
        going: Awaitable[Any] = self._prepared(item) if item.tenant in self._keyring.former else self._lane.submit(item)
        return going

    async def _prepared(self, item: Item) -> Any:
        results: Any = None
        for again in range(TRIES + 1):
            keys = await self._keyring.acquire(item.tenant)
            former = keys.former
            reached: dict[UUID, rows.Reach | None] = {}
            if former is not None and keys.epoch == item.epoch:
                try:
                    for container in _touched(item):
                        if not former.stands(container):
                            reached[container] = await self._bring(keys, former, item, container, whole=again == TRIES)
                    if isinstance(item, Write):
                        await self._recall(keys, former, item)
                except Stale:
                    pass  # the statement finds the same, and says what it is
            results = await self._lane.submit(item)
            if not _outdated(item, results, reached):
                break
        return results

    async def _bring(
        self, keys: TenantKeys, former: Former, item: Read | Write, container: UUID, *, whole: bool
    ) -> rows.Reach | None:
        """How far its lists reach where only what the item touches was moved, else None."""
        part = None if whole else _part(item, container, former)
        if part is None:
            await self._mover.bring(keys, container)
            return None
        large = former.seen.large
        if container not in large:
            if (await self._mover.bring(keys, container, most=AT_FIRST)).all:
                return None
            large[container] = set()
        if not part.lists and part.objects <= large[container]:
            return None
        reach = await self._mover.bring_part(keys, container, part)
        if container in large:
            large[container] |= part.objects
        return reach

    async def _recall(self, keys: TenantKeys, former: Former, item: Write) -> None:
        """Keep an answer that only an older index key finds under the present one too, if this is its request again."""
        tag, mark = item.idempotency_tag, item.fingerprint
        if tag is None or mark is None:
            return
        older, marks = former.seen.tags.get(tag), former.seen.tags.get(mark)
        if not older or not marks:
            return
        for row in await rows.former_answers(self._pool, keys.tenant, older):
            place = older.index(row["key_tag"])
            number, index = former.keys[place]
            answer = answer_again(keys, number, index, row["key_tag"], tag, row["answer"])
            # Another request under the same key is a mismatch: a fingerprint that fits no request says so.
            print_ = mark if row["fingerprint"] == marks[place] else bytes(len(mark))
            async with self._ledger.transaction(keys.tenant) as tx:
                await rows.keep_answer(tx, keys.tenant, tag, print_, answer, row)


def _touched(item: Read | Write) -> Iterable[UUID]:
    """Containers whose contents an item names. One that is made or erased needs no move."""
    if isinstance(item, Read):
        return {target.container for target in item.targets if target.container != NO_UUID}
    return {
        target.container
        for target in item.targets
        if target.make is None and any(operation.type != "erase" for operation in target.operations)
    } | {target.container for target in item.targets if target.make is None and target.change is not None}


def _part(item: Read | Write, container: UUID, former: Former) -> rows.Part | None:
    """What an item touches of a container. None: that can't be told, or may be all of it."""
    objects: set[UUID] = set()
    lists: list[rows.Listing] = []
    try:
        for target in item.targets:
            if target.container != container:
                continue
            if isinstance(target, ReadTarget):
                objects |= {_older(former, each.id) for each in target.selectors if each.type == "object"}
                lists += [_listing(former, each) for each in target.selectors if each.type == "list"]
            elif target.change is not None or any(each.type in WIDE for each in target.operations):
                return None
            else:
                objects |= {_older(former, each.id) for each in target.operations if each.type in {"put", "delete"}}
    except LookupError:
        return None
    return rows.Part(frozenset(objects), tuple(lists))


def _older(former: Former, tag: UUID | None) -> UUID:
    """What a tag was under the index key before. Raises ``LookupError`` where it isn't remembered."""
    if tag is None:
        raise LookupError
    return UUID(bytes=former.seen.tags[tag.bytes][0])


def _listing(former: Former, selector: Selector) -> rows.Listing:
    collection = (selector.id, _older(former, selector.id)) if selector.id is not None else None
    tag = (selector.tag, _older(former, selector.tag)) if selector.tag is not None else None
    return rows.Listing(collection, tag, selector.version, selector.limit, selector.bytes)


def _outdated(item: Read | Write, results: Sequence[TargetResult], reached: Mapping[UUID, rows.Reach | None]) -> bool:
    """Whether a list was read further down than it had been moved, since others removed what it began with."""
    if isinstance(item, Write):
        return False
    for target, result in zip(item.targets, results, strict=True):
        reach = reached.get(target.container)
        if reach is None or not reach.floors or result.status != "ok" or result.head["commit_number"] == reach.commit:
            continue
        lists = [each for each in target.selectors if each.type == "list"]
        single = {each.id for each in target.selectors if each.type == "object"}
        found = [row["version"] for row in result.objects if row["id"] not in single]
        if len(lists) > 1 or len(found) < lists[0].limit or min(found) < reach.floors[0]:
            return True
    return False
