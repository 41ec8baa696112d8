"""Erasure of a session, or of a subject with all its sessions: rows gone, container keys destroyed, a signed receipt.

The request is in the deletion journal before it is accepted, and every container before the receipt is signed. A worker
that dies leaves the job to another one; each step may be repeated. What stands under a legal hold stays and blocks the
job, until the hold is released. By id no key is needed: an erasure works while the tenant is sealed or its key revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from app.errors import InvalidRequest, NotFound, Unavailable
from app.identity import NO_UUID, Caller, Kind
from app.services.attesting import Attestor
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.deletion_journal import Deletion, DeletionJournal
from app.services.jobs import Blocked, Job, Jobs
from app.services.reading import Reading
from app.services.sealing import external_tag
from app.store import privacy as rows
from app.store.ledger import Ledger, Transaction
from app.store.retention import remove

KIND: Final = "erasure"
REQUESTED: Final = "privacy.erasure.requested"
DEADLINE: Final = timedelta(days=30)
BATCH: Final = 200
ROUNDS: Final = 50
"""Looks at containers that are in use at the moment, a fifth of a second apart, before the job waits its turn."""
SEAL_WAIT: Final = 15.0
BACKUPS: Final = (
    "A backup taken before this erasure opens while its key-encryption key lives, until it expires. When one is"
    " restored, the deletion journal is replayed before the service starts."
)


class Checkpoints(Protocol):
    """What binds a receipt to the audit log (``app/services/audit_signing.py``)."""

    async def checkpoint(self, tenant: UUID, epoch: int | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What to erase: exactly one of the ids or names."""

    session: UUID | None = None
    external_id: str | None = None
    subject: str | None = None
    subject_id: UUID | None = None


class Erasure:
    """Requests, the job, and receipts."""

    def __init__(
        self,
        *,
        reading: Reading,
        control: ControlPlane,
        jobs: Jobs,
        ledger: Ledger,
        journal: DeletionJournal,
        attestor: Attestor,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._reading = reading
        self._control = control
        self._jobs = jobs
        self._ledger = ledger
        self._journal = journal
        self._attestor = attestor
        self.checkpoints = checkpoints
        jobs.register(KIND, self.run)

    # ------------------------------------------------------------ requests

    async def place(self, caller: Caller, target: Target) -> tuple[Kind, UUID]:
        """The container that ``target`` names. A name needs the tenant's key. Raises NotFound, InvalidRequest."""
        given = [
            name for name in ("session", "external_id", "subject", "subject_id") if getattr(target, name) is not None
        ]
        if len(given) != 1:
            raise InvalidRequest("Give exactly one of session, external_id, subject and subject_id.")
        if target.session is not None:
            return Kind.SESSION, target.session
        if target.subject_id is not None:
            return Kind.SUBJECT, target.subject_id
        kind, name = (
            (Kind.SESSION, target.external_id) if target.external_id is not None else (Kind.SUBJECT, target.subject)
        )
        keys = await self._reading.keys(caller.tenant)
        found = await self._reading.look_up(keys, kind, None, external_tag(keys, kind, name or ""))
        if found is None:
            raise NotFound
        return kind, found[0].id

    async def request(self, caller: Caller, target: Target, trace: Trace) -> Any:
        """Queue the erasure; answers the job's row. Raises NotFound, InvalidRequest, Unavailable."""
        kind, container = await self.place(caller, target)
        async with self._control.act(
            caller, trace, "privacy.erasure", container=str(container), step="requested"
        ) as act:
            found = await rows.exists(act.tx, caller.tenant, container)
            if found != kind:
                raise NotFound
            spec = {"kind": kind.value, "container": str(container)}
            job = await self._jobs.start(
                act.tx, caller.tenant, KIND, spec, caller, deadline=datetime.now(UTC) + DEADLINE
            )
            act.detail["job"] = str(job)
        await self._journal.append([Deletion(caller.tenant, REQUESTED, container)])
        return await self._jobs.get(caller, job, trace)

    async def get(self, caller: Caller, job: UUID, trace: Trace) -> dict[str, Any]:
        """State, what was removed so far, what blocks it, and the receipt once there is one. Raises NotFound."""
        row = await self._jobs.get(caller, job, trace)
        if row["kind"] != KIND:
            raise NotFound
        container = UUID(orjson.loads(row["spec"])["container"])
        async with self._control.look(caller, trace) as tx:
            gone = await rows.erased(tx, caller.tenant, job)
            blocking = await rows.holds_on(tx, caller.tenant, container) if row["state"] == "blocked" else []
            receipt = await rows.attestation(tx, caller.tenant, job)
        return describe(row, gone, blocking, receipt)

    # ------------------------------------------------------------ the job

    async def run(self, job: Job) -> None:
        """Remove what there is, in steps; raise Blocked where a hold stands; attest what was done."""
        container = UUID(job.spec["container"])
        held = await self._remove_all(job, container, subject=job.spec["kind"] == Kind.SUBJECT)
        async with self._ledger.transaction(job.tenant) as tx:
            gone = await rows.erased(tx, job.tenant, job.id)
        await self._journal.append([Deletion(job.tenant, "privacy.erasure", row["container_id"]) for row in gone])
        if held:
            raise Blocked("legal-hold")
        places = await self._places(job.tenant, [row["event_id"] for row in gone])
        note = self._attestor.sign("erasure-receipt", await self._receipt(job, container, gone, places))
        async with job.step(stage="attested") as tx:
            await rows.keep_attestation(tx, job.tenant, "erasure", job.id, note)

    async def _remove_all(self, job: Job, container: UUID, *, subject: bool) -> int:
        """How many containers a hold keeps. The subject's own container goes last: new sessions may still join it."""
        held = 0
        if subject:
            held = await self._remove_sessions(job, container)
        if held == 0:
            held += await self._remove(job, [container])
            if subject:
                held += await self._remove_sessions(job, container)
        return held

    async def _remove_sessions(self, job: Job, subject: UUID) -> int:
        after, held = NO_UUID, 0
        while True:
            async with self._ledger.transaction(job.tenant) as tx:
                found = await rows.of_subject(tx, job.tenant, subject, after, BATCH)
            if not found:
                return held
            held += await self._remove(job, found)
            after = found[-1]

    async def _remove(self, job: Job, containers: Sequence[UUID]) -> int:
        """One batch, until none of it is in use. Answers how many are held. Raises Unavailable: the job tries again."""
        left = list(containers)
        for _ in range(ROUNDS):
            async with job.step() as tx:
                held, left = await remove_batch(tx, job, left, "privacy.erasure")
                job.done["removed"] = int(job.done.get("removed", 0)) + len(containers) - held - len(left)
                job.done["held"] = held
            if not left:
                return held
            containers = left
            await asyncio.sleep(0.2)
        raise Unavailable

    async def _places(self, tenant: UUID, events: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
        """Epoch and leaf of each event, as far as they are sealed within a few seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (SEAL_WAIT if self.checkpoints is not None else 0.0)
        while True:
            async with self._ledger.transaction(tenant) as tx:
                found = await rows.leaves(tx, tenant, events)
            if len(found) == len(set(events)) or loop.time() >= deadline:
                return found
            await asyncio.sleep(0.25)

    async def _receipt(
        self, job: Job, container: UUID, gone: Sequence[Any], places: dict[UUID, tuple[int, int]]
    ) -> dict[str, Any]:
        checkpoint = None
        if places and self.checkpoints is not None:
            found = await self.checkpoints.checkpoint(job.tenant)
            checkpoint = bytes(found["note"]).decode() if found is not None else None
        receipt: dict[str, Any] = {
            "tenant": job.tenant,
            "job": job.id,
            "erased": {"kind": job.spec["kind"], "container": container},
            "by": job.principal,
            "finished_at": datetime.now(UTC),
            "containers": [_gone(row, places.get(row["event_id"])) for row in gone],
            "deletion_journal": "fsynced",
            "backups": BACKUPS,
        }
        return receipt | ({"checkpoint": checkpoint} if checkpoint is not None else {})


async def remove_batch(tx: Transaction, job: Job, containers: Sequence[UUID], action: str) -> tuple[int, list[UUID]]:
    """Remove what can be removed now, with an event each. Answers how many are held, and those that are in use."""
    answered = set()
    held = 0
    for row in await remove(tx, [job.tenant] * len(containers), containers, "erase"):
        answered.add(row["id"])
        if row["status"] == "held":
            held += 1
            continue
        detail = {"objects": row["objects"], "turns": row["turns"], "keys": row["keys"], "step": "removed"}
        event = tx.event(job.tenant, action, job.facts(detail), container=row["id"])
        await rows.note_erased(tx, job.id, row, event)
    waiting = [each for each in containers if each not in answered]
    left = [each for each in waiting if await rows.exists(tx, job.tenant, each) is not None]
    return held, left


def describe(row: Any, gone: Sequence[Any], blocking: Sequence[Any], receipt: str | None) -> dict[str, Any]:
    """An erasure or offboarding as its routes answer it."""
    return {
        "id": row["id"],
        "state": row["state"],
        "requested_at": row["created_at"],
        "deadline": row["deadline"],
        "finished_at": row["finished_at"],
        "removed": {
            "containers": len(gone),
            "objects": sum(each["objects"] for each in gone),
            "turns": sum(each["turns"] for each in gone),
            "keys": sum(each["keys"] for each in gone),
        },
        "blocked_by": [
            {
                "hold": each["id"],
                "container": each["container_id"],
                "since": each["created_at"],
                "set_by": each["set_by"],
            }
            for each in blocking
        ],
        "receipt": receipt,
    }


def _gone(row: Any, place: tuple[int, int] | None) -> dict[str, Any]:
    entry = {name: row[name] for name in ("kind", "objects", "turns", "keys", "at")}
    entry |= {"id": row["container_id"], "event": row["event_id"]}
    return entry | ({"epoch": place[0], "leaf": place[1]} if place is not None else {})
