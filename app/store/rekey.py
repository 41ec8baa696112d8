"""SQL of exchanging a tenant's index key: containers under another key, piece by piece, while they are in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.identity import NO_UUID
from app.store.ledger import Transaction
from app.store.pool import Pool

OBJECTS: Final = 100
TURNS: Final = 400
BYTES: Final = 2 * 1024 * 1024
"""What one piece holds at most (one object may be larger): a container's writers wait for no more than that."""

MARGIN: Final = 32
"""Objects that are moved beyond a list's end: if others remove some before it is read, it goes on with these."""

DUE_INDEX_KEYS: Final = "SELECT tenant_id, number FROM confide.due_index_keys($1)"
FORMER_ANSWERS: Final = "SELECT * FROM confide.former_answers($1, $2, $3)"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a container has been gone through: an object's id under the older index key, a turn's number."""

    object: UUID = NO_UUID
    turn: int = 0


START: Final = Place()


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the lists of a part were moved. ``commit``: the container's commit number then; ``floors``: the oldest
    version that was reached, for each list that goes on after it.
    """

    commit: int
    floors: list[UUID]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a container, its row locked, with the tenant's standing. ``last``: nothing is left after this piece."""

    row: Any
    tenant: Any
    keys: list[Any]
    objects: list[Any]
    turns: list[Any]
    last: bool
    end: Place = START
    reach: Reach | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A list that a request reads of a container: as ``Selector``, each tag under the present index key and the older
    one.
    """

    collection: tuple[UUID, UUID] | None
    tag: tuple[UUID, UUID] | None
    version: UUID | None
    limit: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a request touches of a container: objects by their ids under the older index key, and lists."""

    objects: frozenset[UUID]
    lists: tuple[Listing, ...]


async def left(tx: Transaction, tenant: UUID, number: int, bound: UUID, after: UUID, limit: int) -> list[UUID]:
    """Containers from after ``after`` up to ``bound`` that don't stand under index key ``number`` yet."""
    rows = await tx.connection.fetch(
        "SELECT id FROM confide.container WHERE tenant_id = $1 AND id > $3 AND id <= $4"
        " AND index_number IS DISTINCT FROM $2 ORDER BY id LIMIT $5",
        tenant,
        number,
        after,
        bound,
        limit,
    )
    return [row["id"] for row in rows]


@dataclass(frozen=True, slots=True)
class _Held:
    """A container's row, locked, with the tenant's standing. ``below``: key generations of what hasn't been moved."""

    row: Any
    tenant: Any
    keys: list[Any]
    below: int


async def _hold(tx: Transaction, tenant: UUID, container: UUID, number: int) -> _Held | None:
    row = await tx.connection.fetchrow(
        "SELECT * FROM confide.container WHERE tenant_id = $1 AND id = $2 FOR NO KEY UPDATE", tenant, container
    )
    if row is None or row["index_number"] == number:
        return None
    standing = await tx.connection.fetchrow(
        "SELECT epoch, state, key_state, ARRAY(SELECT k FROM confide.container_key k WHERE k.tenant_id = $1"
        " AND k.container_id = $2 ORDER BY k.generation) AS keys FROM confide.tenant WHERE id = $1",
        tenant,
        container,
    )
    if standing is None:
        return None
    # Before the first piece everything stands under older keys; from then on what doesn't is done.
    return _Held(row, standing, standing["keys"], row["ck_generation"] + (row["index_number"] != -number))


async def part(tx: Transaction, tenant: UUID, container: UUID, number: int, wanted: Part) -> Piece | None:
    """Of what a request touches, that which hasn't been moved yet. None as for ``piece``."""
    held = await _hold(tx, tenant, container, number)
    if held is None:
        return None
    ids, floors = set(wanted.objects), []
    for each in wanted.lists:
        listed, floor = await _listed(tx, tenant, container, each)
        ids |= listed
        floors.append(floor)
    objects = await tx.connection.fetch(
        "SELECT * FROM confide.context_object WHERE tenant_id = $1 AND container_id = $2 AND id = ANY($3::uuid[])"
        " AND ck_generation < $4",
        tenant,
        container,
        list(ids),
        held.below,
    )
    reach = Reach(held.row["commit_number"], [floor for floor in floors if floor is not None])
    return Piece(held.row, held.tenant, held.keys, list(objects), [], last=False, reach=reach)


async def _listed(tx: Transaction, tenant: UUID, container: UUID, each: Listing) -> tuple[set[UUID], UUID | None]:
    """Ids of what a list reads and of a few objects after it, under whichever index key they stand; and the last one's
    version, where there are more.
    """
    new, old = each.collection or (None, None)
    tag, older = each.tag or (None, None)
    found = await tx.connection.fetch(
        "SELECT l.id, l.version, sum(l.size) OVER (ORDER BY l.version DESC) - l.size AS ahead"
        " FROM confide.context_object l WHERE l.tenant_id = $1 AND l.container_id = $2"
        " AND ($3::uuid IS NULL OR l.collection_tag IN ($3, $4::uuid))"
        " AND ($5::bytea IS NULL OR position($5 IN l.tags) > 0 OR position($6::bytea IN l.tags) > 0)"
        " AND ($7::uuid IS NULL OR l.version < $7) ORDER BY l.version DESC LIMIT $8",
        tenant,
        container,
        new,
        old,
        tag.bytes if tag is not None else None,
        older.bytes if older is not None else None,
        each.version,
        each.limit + MARGIN + 1,
    )
    taken = [row for row in found[: each.limit + MARGIN] if row["ahead"] <= each.bytes]
    more = len(taken) < len(found)
    return {row["id"] for row in taken}, (taken[-1]["version"] if more else None)


async def piece(tx: Transaction, tenant: UUID, container: UUID, number: int, after: Place = START) -> Piece | None:
    """What is to be moved next. None where the container has gone, or stands under index key ``number`` already.

    ``after``: the end of the piece before, so that what has been moved isn't looked through each time. A piece without
    anything that isn't the last one says that something is left before it.
    """
    fetch = tx.connection.fetch
    held = await _hold(tx, tenant, container, number)
    if held is None:
        return None
    objects = await fetch(
        "SELECT * FROM (SELECT l.*, sum(l.size) OVER (ORDER BY l.id) - l.size AS ahead FROM"
        " (SELECT * FROM confide.context_object o WHERE o.tenant_id = $1 AND o.container_id = $2 AND o.id > $6"
        " AND o.ck_generation < $3 ORDER BY o.id LIMIT $4) l) b WHERE b.ahead <= $5 ORDER BY b.id",
        tenant,
        container,
        held.below,
        OBJECTS,
        BYTES,
        after.object,
    )
    turns: list[Any] = []
    full = len(objects) == OBJECTS or sum(each["size"] for each in objects) > BYTES
    if not full:
        turns = await fetch(
            "SELECT * FROM (SELECT l.*, sum(l.size) OVER (ORDER BY l.number) - l.size AS ahead FROM"
            " (SELECT * FROM confide.turn o WHERE o.tenant_id = $1 AND o.container_id = $2 AND o.removed_at IS NULL"
            " AND o.number > $6 AND o.ck_generation < $3 ORDER BY o.number LIMIT $4) l) b WHERE b.ahead <= $5"
            " ORDER BY b.number",
            tenant,
            container,
            held.below,
            TURNS,
            BYTES,
            after.turn,
        )
        full = len(turns) == TURNS or sum(each["size"] for each in turns) > BYTES
    end = Place(objects[-1]["id"] if objects else after.object, turns[-1]["number"] if turns else after.turn)
    last = not full and (
        after == START or await _nothing_else(tx, tenant, container, held.below, len(objects), len(turns))
    )
    return Piece(held.row, held.tenant, held.keys, list(objects), list(turns), last, end)


async def _nothing_else(tx: Transaction, tenant: UUID, container: UUID, below: int, objects: int, turns: int) -> bool:
    return bool(
        await tx.connection.fetchval(
            "SELECT (SELECT count(*) FROM (SELECT FROM confide.context_object WHERE tenant_id = $1"
            " AND container_id = $2 AND ck_generation < $3 LIMIT $4 + 1) a) = $4"
            " AND (SELECT count(*) FROM (SELECT FROM confide.turn WHERE tenant_id = $1 AND container_id = $2"
            " AND ck_generation < $3 AND removed_at IS NULL LIMIT $5 + 1) a) = $5",
            tenant,
            container,
            below,
            objects,
            turns,
        )
    )


async def begin(
    tx: Transaction, tenant: UUID, container: UUID, number: int, generation: int, trk_generation: int, sealed: bytes
) -> None:
    """A container's next key, which its writes use from now on, and the mark that its move is under way."""
    await tx.connection.execute(
        "WITH made AS (INSERT INTO confide.container_key"
        " (tenant_id, container_id, generation, trk_generation, sealed, created_at) VALUES ($1, $2, $3, $4, $5, now()))"
        " UPDATE confide.container SET ck_generation = $3, index_number = $6 WHERE tenant_id = $1 AND id = $2",
        tenant,
        container,
        generation,
        trk_generation,
        sealed,
        -number,
    )


async def replace(
    tx: Transaction,
    tenant: UUID,
    container: UUID,
    generation: int,
    objects: Sequence[tuple[Any, ...]],
    turns: Sequence[tuple[int, bytes]],
) -> None:
    """Objects and turns under the container's new key. ``objects``: old id, new id, collection tag, tags, fingerprint,
    body; ``turns``: number, body.
    """
    # No new id is an old one of another object: both are 122 bits of HMAC. One by one, each by its primary key: over
    # arrays the planner goes through the whole container for each of them.
    await tx.connection.executemany(
        "UPDATE confide.context_object SET id = $5, collection_tag = $6, tags = $7, fingerprint = $8, body = $9,"
        " ck_generation = $3 WHERE tenant_id = $1 AND container_id = $2 AND id = $4",
        [(tenant, container, generation, *each) for each in objects],
    )
    await tx.connection.executemany(
        "UPDATE confide.turn SET body = $5, ck_generation = $3"
        " WHERE tenant_id = $1 AND container_id = $2 AND number = $4",
        [(tenant, container, generation, *each) for each in turns],
    )


async def complete(
    tx: Transaction,
    tenant: UUID,
    container: UUID,
    number: int,
    generation: int,
    meta: tuple[UUID, bytes, UUID | None, list[UUID]],
) -> None:
    """The container's own names under the new keys: it stands under index key ``number``, and its old keys open
    nothing.

    ``meta``: version, sealed, external tag, label tags.
    """
    version, names, external, labels = meta
    await tx.connection.execute(
        "WITH old AS (DELETE FROM confide.container_label WHERE tenant_id = $1 AND container_id = $2),"
        " new AS (INSERT INTO confide.container_label (tenant_id, label_tag, container_id)"
        " SELECT $1, a, $2 FROM unnest($8::uuid[]) AS a)"
        " UPDATE confide.container SET meta = $4, meta_ck = $3, meta_version = $5, external_tag = $6, index_number = $7"
        " WHERE tenant_id = $1 AND id = $2",
        tenant,
        container,
        generation,
        names,
        version,
        external,
        number,
        labels,
    )


async def reasons(tx: Transaction, tenant: UUID, after: UUID, limit: int) -> list[Any]:
    """Holds from after ``after``, their rows held, released ones too."""
    return list(
        await tx.connection.fetch(
            "SELECT id, container_id, reason FROM confide.legal_hold WHERE tenant_id = $1 AND id > $2"
            " ORDER BY id LIMIT $3 FOR NO KEY UPDATE",
            tenant,
            after,
            limit,
        )
    )


async def replace_reason(tx: Transaction, tenant: UUID, hold: UUID, sealed: bytes) -> None:
    await tx.connection.execute(
        "UPDATE confide.legal_hold SET reason = $3 WHERE tenant_id = $1 AND id = $2", tenant, hold, sealed
    )


# ---------------------------------------------------------------- the index keys themselves


async def exchange(tx: Transaction, tenant: UUID) -> None:
    """The pending index key becomes the active one. Containers that there are now may still stand under the old one."""
    run = tx.connection.execute
    await run(
        "UPDATE confide_keys.index_key SET state = 'retiring', retired_at = now()"
        " WHERE tenant_id = $1 AND state = 'active'",
        tenant,
    )
    await run(
        "UPDATE confide_keys.index_key SET state = 'active', bound = coalesce((SELECT c.id FROM confide.container c"
        " WHERE c.tenant_id = $1 ORDER BY c.id DESC LIMIT 1), '00000000-0000-0000-0000-000000000000')"
        " WHERE tenant_id = $1 AND state = 'pending'",
        tenant,
    )


async def all_moved(tx: Transaction, tenant: UUID) -> None:
    await tx.connection.execute("UPDATE confide_keys.index_key SET bound = NULL WHERE tenant_id = $1", tenant)


async def drop_index_key(tx: Transaction, tenant: UUID, number: int) -> bool:
    """Remove a retiring index key. False where another worker was first."""
    return bool(
        await tx.connection.fetchval(
            "DELETE FROM confide_keys.index_key WHERE tenant_id = $1 AND number = $2 AND state = 'retiring'"
            " RETURNING true",
            tenant,
            number,
        )
    )


# ---------------------------------------------------------------- answers to repeated requests


async def former_answers(pool: Pool, tenant: UUID, tags: Sequence[bytes]) -> list[Any]:
    """Answers of the last 24 hours under these tags. Raises ``Unavailable``."""
    return await pool.fetch(FORMER_ANSWERS, "{" + str(tenant) + "}", tenant, list(tags))


async def keep_answer(tx: Transaction, tenant: UUID, tag: bytes, fingerprint: bytes, answer: bytes, row: Any) -> None:
    """The answer of ``row`` once more, under another tag, as old as it is."""
    await tx.connection.execute(
        "INSERT INTO confide.idempotency (tenant_id, key_tag, fingerprint, answer, facts, created_at)"
        " VALUES ($1, $2, $3, $4, $5::jsonb, $6) ON CONFLICT (tenant_id, key_tag) DO NOTHING",
        tenant,
        tag,
        fingerprint,
        answer,
        row["facts"],
        row["created_at"],
    )
