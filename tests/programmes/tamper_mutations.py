"""What somebody with every right in the database does to a log: its rows, the tree's nodes and its checkpoints.

Each function changes the stored log at random and says what the verifier must find: the first bad leaf exactly, or a
range that holds it where rows and tree were made to agree again.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from app.audit.event import leaf_hash
from app.audit.merkle import Frontier, cover
from tests.programmes.tamper_words import EVENT, NODE, NOTE, Connection, Expected, Words

COLUMNS = "id, time, action, outcome, principal, api_key, container, kek, kms_request_id, purpose, entry"


class Mutations(Words):
    """Eight kinds, each in several ways."""

    def kinds(self) -> dict[str, Callable[[Connection[Any]], Awaitable[Expected]]]:
        return {
            "edit": self.edit,
            "delete": self.delete,
            "insert": self.insert,
            "reorder": self.reorder,
            "truncate": self.truncate,
            "roll back": self.roll_back,
            "re-sign": self.resign,
            "swap tenants": self.swap_tenants,
        }

    async def edit(self, db: Connection[Any]) -> Expected:
        leaf, rng = self.pick(), self.rng
        match rng.randrange(7):
            case 0:
                await self.set_entry(db, leaf, self.flipped(self.log.entries[leaf]))
                return Expected(leaf)
            case 1:
                await self.set_entry(db, leaf, self.forged(leaf))
                return Expected(leaf)
            case 2:
                return await self.edit_column(db, leaf)
            case 3:
                await self.set_node(db, 0, leaf, rng.randbytes(32))
                return Expected(leaf)
            case 4:
                await self.set_node(db, *self.pick_inner(), rng.randbytes(32))
                return Expected()
            case 5:
                entry = self.forged(leaf)
                await self.set_entry(db, leaf, entry)
                await self.fit(db, {leaf: leaf_hash(entry)})
                return Expected(within=leaf)
            case _:
                return await self.edit_checkpoint(db)

    async def edit_column(self, db: Connection[Any], leaf: int) -> Expected:
        """What the filters look at, while the entry stays as it was."""
        values = {
            "id": "gen_random_uuid()",
            "time": f"time + interval '{self.rng.randrange(1, 1 << 20)} s'",
            "action": "action || '.x'",
            "outcome": "'failed'",
            "principal": "gen_random_uuid()",
            "api_key": "gen_random_uuid()",
            "container": "gen_random_uuid()",
            "kek": "'another'",
            "kms_request_id": "'another'",
            "purpose": "'maintenance'",
        }
        column = self.rng.choice(list(values))
        await db.execute(
            f"UPDATE {EVENT} SET {column} = {values[column]} WHERE tenant_id = $1 AND leaf = $2", self.log.tenant, leaf
        )
        return Expected(leaf)

    async def edit_checkpoint(self, db: Connection[Any]) -> Expected:
        row = await self.checkpoint(db)
        where = "WHERE tenant_id = $1 AND size = $2"
        match self.rng.randrange(4):
            case 0:
                await self.set_note(db, row["size"], self.flipped(bytes(row["note"])))
            case 1:
                free = self.rng.choice([n for n in range(1, self.log.size * 2) if n not in self.log.sizes])
                await db.execute(f"UPDATE {NOTE} SET size = $3 {where}", self.log.tenant, row["size"], free)
            case 2:
                wrong = self.rng.randbytes(32)
                await db.execute(f"UPDATE {NOTE} SET root = $3 {where}", self.log.tenant, row["size"], wrong)
            case _:
                wrong = self.rng.randbytes(4)
                await db.execute(f"UPDATE {NOTE} SET key_id = $3 {where}", self.log.tenant, row["size"], wrong)
        return Expected(codes=(1, 3))

    async def delete(self, db: Connection[Any]) -> Expected:
        leaf, tenant = self.pick(), self.log.tenant
        match self.rng.randrange(7):
            case 0:
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf = $2", tenant, leaf)
                return Expected(leaf)
            case 1:
                await db.execute(f"DELETE FROM {NODE} WHERE tenant_id = $1 AND level = 0 AND index = $2", tenant, leaf)
                return Expected(leaf)
            case 2:
                level, index = self.pick_inner()
                await db.execute(
                    f"DELETE FROM {NODE} WHERE tenant_id = $1 AND level = $2 AND index = $3", tenant, level, index
                )
                return Expected()
            case 3:
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf = $2", tenant, leaf)
                await db.execute(f"DELETE FROM {NODE} WHERE tenant_id = $1 AND level = 0 AND index = $2", tenant, leaf)
                return Expected(within=leaf)
            case 4:
                some = self.rng.sample(range(self.log.size), self.rng.randrange(2, 20))
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf = ANY($2)", tenant, some)
                return Expected(min(some))
            case 5:  # the newest would be stored again: the witness has it
                older = sorted(self.log.sizes)[:-1]
                some = self.rng.sample(older, self.rng.choice([1, 1, 2, len(older)]))
                await db.execute(f"DELETE FROM {NOTE} WHERE tenant_id = $1 AND size = ANY($2)", tenant, some)
                return Expected()
            case _:
                leaf = self.near_the_end()
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf = $2", tenant, leaf)
                await self.move(db, [(old, old - 1) for old in range(leaf + 1, self.log.size)])
                rows = [*self.log.entries[:leaf], *self.log.entries[leaf + 1 :]]
                changed = {at: leaf_hash(rows[at]) for at in range(leaf, len(rows))}
                await self.fit(db, changed)
                return Expected(within=leaf)

    async def copy_row(self, db: Connection[Any], source: int, leaf: int, entry: bytes | None = None) -> None:
        """A further row, sealed a moment later than the one that it is made from."""
        await db.execute(
            f"INSERT INTO {EVENT} (tenant_id, epoch, leaf, sealed_at, {COLUMNS}) SELECT tenant_id, epoch, $3,"
            " sealed_at + interval '1 ms', gen_random_uuid(), time, action, outcome, principal, api_key, container,"
            f" kek, kms_request_id, purpose, coalesce($4, entry) FROM {EVENT} WHERE tenant_id = $1 AND leaf = $2",
            self.log.tenant,
            source,
            leaf,
            entry,
        )

    async def insert(self, db: Connection[Any]) -> Expected:
        leaf, rng, size = self.pick(), self.rng, self.log.size
        match rng.randrange(6):
            case 0:
                await self.copy_row(db, leaf, leaf, self.forged(leaf))
                return Expected(leaf)
            case 1:
                await self.copy_row(db, leaf, size)  # where the next event will stand
                return Expected(size)
            case 2:
                far = rng.choice([-rng.randrange(1, 1 << 40), size + rng.randrange(2, 1 << 40)])
                await self.copy_row(db, leaf, far, self.forged(leaf))
                return Expected(end=True)
            case 3:
                level = rng.randrange(16)
                index = rng.choice([(size >> level) + rng.randrange(1 << 20), -rng.randrange(1, 1 << 20)])
                await db.execute(
                    f"INSERT INTO {NODE} VALUES ($1, 1, $2, $3, $4)", self.log.tenant, level, index, rng.randbytes(32)
                )
                return Expected()
            case 4:
                return await self.insert_checkpoint(db)
            case _:
                leaf = self.near_the_end()
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf = $2", self.log.tenant, size - 1)
                await self.move(db, [(old, old + 1) for old in range(leaf, size - 1)])
                entry = self.forged(leaf)
                await self.copy_row(db, leaf - 1 if leaf else 1, leaf, entry)
                rows = [*self.log.entries[:leaf], entry, *self.log.entries[leaf:]][:size]
                await self.fit(db, {at: leaf_hash(rows[at]) for at in range(leaf, size)})
                return Expected(within=leaf)

    async def insert_checkpoint(self, db: Connection[Any]) -> Expected:
        row, free = await self.checkpoint(db), self.rng.randrange(1, self.log.size * 2)
        while free in self.log.sizes:
            free = self.rng.randrange(1, self.log.size * 2)
        note, key_id = bytes(row["note"]), bytes(row["key_id"])
        if self.rng.randrange(2):
            origin = note.split(b"\n")[0]
            text = b"%s\n%d\n%s\n" % (origin, free, b64encode(self.rng.randbytes(32)))
            note, key_id = text + b"\n" + self.thief.line(text), self.thief.verifier.id
        await db.execute(
            f"INSERT INTO {NOTE} (tenant_id, epoch, size, key_id, root, note) VALUES ($1, 1, $2, $3, $4, $5)",
            self.log.tenant,
            free,
            key_id,
            row["root"],
            note,
        )
        return Expected(codes=(1, 3))

    async def reorder(self, db: Connection[Any]) -> Expected:
        one, two = sorted(self.rng.sample(range(self.log.size), 2))
        entries, nodes = self.log.entries, self.log.nodes
        match self.rng.randrange(6):
            case 0:
                await self.set_entry(db, one, entries[two])
                await self.set_entry(db, two, entries[one])
                return Expected(one)
            case 1:
                await self.move(db, [(one, two), (two, one)])
                return Expected(one)
            case 2:
                await self.set_node(db, 0, one, nodes[0, two])
                await self.set_node(db, 0, two, nodes[0, one])
                return Expected(one)
            case 3:
                level, index = self.pick_inner()
                other = self.rng.choice([n for n in range(self.log.size >> level) if n != index] or [None])
                if other is None:
                    return await self.reorder(db)
                await self.set_node(db, level, index, nodes[level, other])
                await self.set_node(db, level, other, nodes[level, index])
                return Expected()
            case 4:
                await self.move(db, [(one, two), (two, one)])
                await self.fit(db, {one: nodes[0, two], two: nodes[0, one]})
                return Expected(within=one)
            case _:
                first, second = self.rng.sample(self.log.sizes, 2)
                notes = {
                    row["size"]: bytes(row["note"])
                    for row in await db.fetch(f"SELECT size, note FROM {NOTE} WHERE tenant_id = $1", self.log.tenant)
                }
                await self.set_note(db, first, notes[second])
                await self.set_note(db, second, notes[first])
                return Expected()

    async def truncate(self, db: Connection[Any]) -> Expected:
        size, tenant = self.rng.randrange(1, self.log.size), self.log.tenant
        match self.rng.randrange(5):
            case 0:
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf >= $2", tenant, size)
                return Expected(size)
            case 1:
                await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf < $2", tenant, size)
                return Expected(0)
            case 2:
                entry = self.log.entries[size]
                await self.set_entry(db, size, entry[: self.rng.randrange(len(entry))])
                return Expected(size)
            case 3:
                await db.execute(f"DELETE FROM {NODE} WHERE tenant_id = $1 AND level = 0 AND index >= $2", tenant, size)
                return Expected(size)
            case _:
                lowest = self.rng.randrange(1, max(2, self.log.size.bit_length() - 2))
                await db.execute(f"DELETE FROM {NODE} WHERE tenant_id = $1 AND level >= $2", tenant, lowest)
                return Expected()

    async def roll_back(self, db: Connection[Any]) -> Expected:
        """An older copy of everything, of a signed size or of any other; or of some of the tables."""
        size, tenant = self.rng.randrange(1, self.log.size), self.log.tenant
        if self.rng.randrange(2):
            size = self.rng.choice([one for one in self.log.sizes if one < self.log.size])
        what = self.rng.randrange(4)
        if what != 3:
            await db.execute(f"DELETE FROM {EVENT} WHERE tenant_id = $1 AND leaf >= $2", tenant, size)
        if what != 2:
            await db.execute(f"DELETE FROM {NODE} WHERE tenant_id = $1 AND ((index + 1) << level) > $2", tenant, size)
        if what < 2:
            await db.execute(f"DELETE FROM {NOTE} WHERE tenant_id = $1 AND size > $2", tenant, size)
            edge = Frontier(size, [self.log.nodes[node] for node in cover(0, size)])
            await db.execute(
                "UPDATE confide_audit.log SET size = $2, frontier = $3 WHERE tenant_id = $1",
                tenant,
                size,
                edge.to_bytes(),
            )
            return Expected()
        return Expected(size)

    async def resign(self, db: Connection[Any]) -> Expected:
        """Another key under the same name: over the log as it is, or over an altered one."""
        leaf, row = self.pick(), await self.checkpoint(db)
        tenant, newest = self.log.tenant, max(self.log.sizes)
        match self.rng.randrange(3):
            case 0:
                text = bytes(row["note"]).partition(b"\n\n")[0] + b"\n"
                await self.set_note(db, row["size"], text + b"\n" + self.thief.line(text))
                return Expected(codes=(1, 3))
            case 1:
                for row in await db.fetch(f"SELECT size, note FROM {NOTE} WHERE tenant_id = $1", tenant):
                    text = bytes(row["note"]).partition(b"\n\n")[0] + b"\n"
                    await self.set_note(db, row["size"], text + b"\n" + self.thief.line(text))
                await db.execute(f"UPDATE {NOTE} SET key_id = $2 WHERE tenant_id = $1", tenant, self.thief.verifier.id)
                return Expected(codes=(1, 3))
            case _:
                entry = self.forged(leaf)
                await self.set_entry(db, leaf, entry)
                await self.fit(db, {leaf: leaf_hash(entry)})
                frontier = await db.fetchval("SELECT frontier FROM confide_audit.log WHERE tenant_id = $1", tenant)
                root = Frontier.from_bytes(frontier).root()
                origin = bytes(row["note"]).split(b"\n")[0]
                text = b"%s\n%d\n%s\n" % (origin, self.log.size, b64encode(root))
                await db.execute(f"DELETE FROM {NOTE} WHERE tenant_id = $1 AND size = $2", tenant, newest)
                await db.execute(
                    f"INSERT INTO {NOTE} (tenant_id, epoch, size, key_id, root, note) VALUES ($1, 1, $2, $3, $4, $5)",
                    tenant,
                    self.log.size,
                    self.thief.verifier.id,
                    root,
                    text + b"\n" + self.thief.line(text),
                )
                return Expected(within=leaf if leaf < self.kept else None)

    async def swap_tenants(self, db: Connection[Any]) -> Expected:
        leaf, log, other = self.pick(), self.log, self.other
        match 5 if self.rng.random() < self.large / 2 else self.rng.randrange(5):
            case 0:
                await self.set_entry(db, leaf, other.entries[leaf])
                return Expected(leaf)
            case 1:
                await db.execute(
                    f"UPDATE {EVENT} SET tenant_id = $1, sealed_at = sealed_at + interval '1 us'"
                    " WHERE tenant_id = $2 AND leaf = $3",
                    log.tenant,
                    other.tenant,
                    leaf,
                )
                return Expected(leaf)
            case 2:
                await self.set_node(db, 0, leaf, other.nodes[0, leaf])
                return Expected(leaf)
            case 3:
                node = self.pick_inner()
                await self.set_node(db, *node, other.nodes[node])
                return Expected()
            case 4:
                row = await self.checkpoint(db)
                note = await db.fetchval(
                    f"SELECT note FROM {NOTE} WHERE tenant_id = $1 ORDER BY abs(size - $2) LIMIT 1",
                    other.tenant,
                    row["size"],
                )
                await self.set_note(db, row["size"], bytes(note))
                return Expected()
            case _:
                spare = uuid4()
                for table in (EVENT, NODE, NOTE, "confide_audit.log"):
                    for old, new in ((log.tenant, spare), (other.tenant, log.tenant), (spare, other.tenant)):
                        await db.execute(f"UPDATE {table} SET tenant_id = $1 WHERE tenant_id = $2", new, old)
                return Expected()
