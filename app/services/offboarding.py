"""A tenant leaves: nothing is served any more, everything is erased, the keys are destroyed, a certificate says so.

The audit log stays for its retention. Auditors of a tenant that has left may go on reading it, and the certificate;
their keys never could open context.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from app.errors import Conflict, InvalidRequest, NotFound, Unavailable
from app.identity import NO_UUID, Caller
from app.services.attesting import Attestor
from app.services.auditing import Trace
from app.services.control import ControlPlane
from app.services.deletion_journal import Deletion, DeletionJournal
from app.services.erasure import BACKUPS, DEADLINE, Checkpoints, describe, remove_batch
from app.services.jobs import Blocked, Job, Jobs
from app.services.keyring import Keyring
from app.store import privacy as rows
from app.store import tenants as tenant_rows
from app.store.ledger import Ledger

KIND: Final = "offboarding"
BATCH: Final = 200


class Offboarding:
    """The request, the job, the certificate."""

    def __init__(
        self,
        *,
        control: ControlPlane,
        jobs: Jobs,
        ledger: Ledger,
        journal: DeletionJournal,
        attestor: Attestor,
        keyring: Keyring,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._control = control
        self._jobs = jobs
        self._ledger = ledger
        self._journal = journal
        self._attestor = attestor
        self._keyring = keyring
        self.checkpoints = checkpoints
        jobs.register(KIND, self.run)

    async def request(self, caller: Caller, confirm: str, trace: Trace) -> dict[str, Any]:
        """``confirm`` must be the tenant's name. From here on the tenant is not served.

        Raises InvalidRequest; Conflict while a legal hold stands.
        """
        tenant = caller.tenant
        async with self._control.act(caller, trace, "offboard", step="requested") as act:
            row = await tenant_rows.get(act.tx, tenant)
            if row["name"] != confirm:
                raise InvalidRequest("confirm must be the tenant's name.", "/confirm")
            if await rows.open_holds(act.tx, tenant):
                raise Conflict("A legal hold stands. Release it first: GET /v1/privacy/holds lists them.")
            if await tenant_rows.set_state(act.tx, tenant, "active", "leaving") is None:
                raise Conflict
            job = await self._jobs.start(act.tx, tenant, KIND, {}, caller, deadline=datetime.now(UTC) + DEADLINE)
            act.detail["job"] = str(job)
            found = await rows.leaving_job(act.tx, tenant)
        await self._journal.append([Deletion(tenant, "offboard")])
        self._keyring.discard(tenant, at_once=True)
        return describe(found, [], [], None)

    async def get(self, caller: Caller, trace: Trace) -> dict[str, Any]:
        """How far it is, and the certificate. Raises NotFound where the tenant isn't leaving."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.leaving_job(tx, caller.tenant)
            if row is None:
                raise NotFound
            gone = await rows.erased(tx, caller.tenant, row["id"])
            certificate = await rows.attestation(tx, caller.tenant, row["id"])
        return describe(row, gone, [], certificate)

    async def run(self, job: Job) -> None:
        """Containers first, then keys: an interrupted job leaves nothing that only a key still protects."""
        tenant = job.tenant
        self._keyring.discard(tenant, at_once=True)
        self._keyring.forget_vendor(tenant)
        if await self._remove_all(job):
            raise Blocked("legal-hold")
        async with job.step(stage="keys") as tx:
            for name, count in (await rows.destroy_keys(tx, tenant)).items():
                job.done[name] = int(job.done.get(name, 0)) + count
            await rows.revoke_keys_but_auditors(tx, tenant)
            await tenant_rows.set_state(tx, tenant, "leaving", "gone")
            tx.event(tenant, "offboard", job.facts(job.done))
        await self._journal.append([Deletion(tenant, "offboard")])
        async with self._ledger.transaction(tenant) as tx:
            gone = await rows.erased(tx, tenant, job.id)
        found = await self.checkpoints.checkpoint(tenant) if self.checkpoints is not None else None
        certificate: dict[str, Any] = {
            "tenant": tenant,
            "job": job.id,
            "finished_at": datetime.now(UTC),
            "containers": len(gone),
            "objects": sum(row["objects"] for row in gone),
            "turns": sum(row["turns"] for row in gone),
            "container_keys": sum(row["keys"] for row in gone),
            "keys": {name: job.done.get(name, 0) for name in ("root_keys", "index_keys", "bindings", "answers")},
            "audit_log": "kept for its retention; auditors' API keys go on reading it",
            "backups": BACKUPS,
        }
        if found is not None:
            certificate["checkpoint"] = bytes(found["note"]).decode()
        note = self._attestor.sign("offboarding-certificate", certificate)
        async with job.step(stage="attested") as tx:
            await rows.keep_attestation(tx, tenant, "offboarding", job.id, note)

    async def _remove_all(self, job: Job) -> int:
        after, held = NO_UUID, 0
        while True:
            async with self._ledger.transaction(job.tenant) as tx:
                found = await rows.any_containers(tx, job.tenant, after, BATCH)
            if not found:
                return held
            left: list[UUID] = [each for each, _ in found]
            async with job.step() as tx:
                now_held, left = await remove_batch(tx, job, left, "offboard")
                job.done["removed"] = int(job.done.get("removed", 0)) + len(found) - now_held - len(left)
            if left:
                raise Unavailable  # something still writes there: tried again soon
            held += now_held
            after = found[-1][0]
