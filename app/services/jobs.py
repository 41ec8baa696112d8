"""Durable background jobs: queued in the transaction that wants them, run by whichever worker claims them.

A worker may die at any moment: its claim runs out and another one starts the handler again from the top. So a handler
works in steps that may be repeated, and commits each step together with the job's progress (``Job.step``), which fails
if the claim was lost meanwhile.

    jobs.register("reseal", handler)                      before ``start_runner``; async def handler(job) -> None
    id = await jobs.start(tx, tenant, "reseal", {...})    inside a control-plane transaction
    async with job.step(resealed=500) as tx: ...          one step: rows, progress and job.step event, or nothing

What a handler raises decides: ``Blocked``: the state blocked, until ``unblock``. ``Unavailable`` and what says that the
tenant can't be served now (sealed, revoked, suspended, misconfigured): tried again later. Anything else: failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from app.errors import ConfideError, Conflict, Forbidden, KeyMisconfigured, NotFound, Unavailable
from app.identity import Caller, new_id
from app.services.auditing import NO_TRACE, Auditing, Trace
from app.services.control import ControlPlane
from app.services.ending import end
from app.store import jobs as rows
from app.store.ledger import Ledger, Transaction
from app.store.pool import Pool

log = logging.getLogger("confide.jobs")

CLAIM: Final = 15.0
"""Seconds that a claim lasts; renewed at a third of it. A dead worker's job moves on after so long."""
POLL: Final = 0.5
AT_ONCE: Final = 4
"""Jobs that a worker runs at one time."""
AGAIN: Final = (1.0, 2.0, 5.0, 15.0)
"""Seconds before a job that couldn't be served is tried again; the last one stays."""

RETRIED: Final = (Unavailable, Forbidden, KeyMisconfigured, Conflict)

Handler = Callable[["Job"], Awaitable[None]]


class Blocked(Exception):
    """Something outside must change before the job can go on. ``reason``: a code of a-z and -."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClaimLost(Exception):
    """Another worker has the job: stop without a trace."""


@dataclass(slots=True)
class Job:
    """A claimed job, as its handler sees it. ``done``: its progress, counts and cursors, as of the last step."""

    tenant: UUID
    id: UUID
    kind: str
    spec: dict[str, Any]
    done: dict[str, Any]
    deadline: datetime | None
    api_key: UUID | None
    principal: UUID | None
    _jobs: Jobs = field(repr=False)

    @asynccontextmanager
    async def step(self, **counts: int | str) -> AsyncIterator[Transaction]:
        """One step, all or nothing: what the body does, the progress and its event. ``counts`` replace those of the
        same names; the body may still add to ``self.done``. Raises ``ClaimLost``, and what a transaction raises.
        """
        before = dict(self.done)
        try:
            async with self._jobs.ledger.transaction(self.tenant) as tx:
                self.done.update(counts)
                yield tx
                if not await rows.progress(tx, self.tenant, self.id, self._jobs.worker, self.done, CLAIM):
                    raise ClaimLost
                tx.event(self.tenant, "job.step", self.facts(self.done))
        except BaseException:
            self.done = before
            raise

    async def progress(self, **counts: int | str) -> None:
        """A step with no rows of its own."""
        async with self.step(**counts):
            pass

    def facts(self, more: Mapping[str, Any] | None = None, **known: Any) -> str:
        """Facts of an event of this job's: in whose name, and which job. ``more`` goes into ``detail``."""
        if self.api_key is not None and self.principal is not None:
            known |= {"principal": str(self.principal), "api_key": str(self.api_key)}
        known["detail"] = {"job": str(self.id), "kind": self.kind, **(more or {})}
        return orjson.dumps(known).decode()


class Jobs:
    """One worker's runner, and everybody's way to start a job and look at it."""

    def __init__(self, ledger: Ledger, pool: Pool, auditing: Auditing, control: ControlPlane) -> None:
        """``ledger``: the runner's own, so that background work doesn't hold up the control plane."""
        self.ledger = ledger
        self.worker = new_id()
        self._pool = pool
        self._auditing = auditing
        self._control = control
        self._handlers: dict[str, Handler] = {}
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._failures: dict[UUID, int] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def register(self, kind: str, handler: Handler) -> None:
        """``kind``: a word. A worker claims only the kinds that it knows."""
        if kind in self._handlers:
            raise ValueError("this kind of job has a handler already")
        self._handlers[kind] = handler

    # ------------------------------------------------------------ from outside

    async def start(
        self,
        tx: Transaction,
        tenant: UUID,
        kind: str,
        spec: dict[str, Any],
        caller: Caller | None = None,
        deadline: datetime | None = None,
    ) -> UUID:
        """Queue a job in ``tx``, which must see ``tenant``; it begins once that has committed. Answers its id.

        ``spec``: ids and numbers only, nothing personal. ``deadline``: when it must be done; a late job is alarmed.
        """
        job = new_id()
        known: dict[str, Any] = {"detail": {"job": str(job), "kind": kind}}
        who = None
        if caller is not None:
            who = (caller.api_key, caller.principal)
            known |= {"principal": str(caller.principal), "api_key": str(caller.api_key), "role": caller.role.value}
        await rows.insert(tx, tenant=tenant, job=job, kind=kind, spec=spec, caller=who, deadline=deadline)
        tx.event(tenant, "job.start", orjson.dumps(known).decode())
        self._wake.set()
        return job

    async def get(self, caller: Caller, job: UUID, trace: Trace = NO_TRACE) -> Any:
        """The row of one of the caller's tenant's jobs. Raises ``NotFound``."""
        async with self._control.look(caller, trace) as tx:
            row = await rows.get(tx, caller.tenant, job)
        if row is None:
            raise NotFound
        return row

    async def unblock(self, tx: Transaction, tenant: UUID, job: UUID) -> bool:
        """Let a blocked job try again. False where it isn't blocked."""
        self._wake.set()
        return await rows.unblock(tx, tenant, job)

    # ------------------------------------------------------------ the runner

    def start_runner(self) -> None:
        self._task = asyncio.create_task(self._run(), name="jobs")

    async def close(self) -> None:
        """Stop what runs; its claims are given back, so that others go on at once."""
        await end(*self._running.values(), self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._claim_some()
            except ConfideError:
                pass  # the database is away; what is queued waits
            except Exception as error:  # noqa: BLE001  the runner must outlive whatever one look brings
                log.error("jobs can't be looked at", extra={"fields": {"error": type(error).__name__}})
            try:
                async with asyncio.timeout(POLL):
                    await self._wake.wait()
                    await asyncio.sleep(0.02)  # the transaction that woke us has yet to commit
            except TimeoutError:
                pass
            self._wake.clear()

    async def _claim_some(self) -> None:
        free = AT_ONCE - len(self._running)
        if free <= 0:
            return
        for row in await self._pool.fetch(rows.OPEN, free + AT_ONCE):
            if row["id"] in self._running or len(self._running) >= AT_ONCE:
                continue
            job = await self._claim(row["tenant_id"], row["id"])
            if job is not None:
                task = asyncio.create_task(self._work(job), name=f"job-{job.kind}")
                self._running[job.id] = task
                task.add_done_callback(lambda _, job=job: self._gone(job))  # type: ignore[misc]

    def _gone(self, job: Job) -> None:
        self._running.pop(job.id, None)
        self._wake.set()

    async def _claim(self, tenant: UUID, job: UUID) -> Job | None:
        async with self.ledger.transaction(tenant) as tx:
            known = await rows.get(tx, tenant, job)
            if known is None or known["kind"] not in self._handlers:
                return None
            row = await rows.claim(tx, tenant, job, self.worker, CLAIM)
        if row is None:
            return None
        if row["deadline"] is not None and row["deadline"] < datetime.now(UTC):
            self._auditing.alarm("job-overdue", tenant=str(tenant), job=str(job), kind=row["kind"])
        return Job(
            tenant,
            job,
            row["kind"],
            orjson.loads(row["spec"]),
            orjson.loads(row["progress"]),
            row["deadline"],
            row["api_key"],
            row["principal"],
            self,
        )

    async def _work(self, job: Job) -> None:
        """Run the handler under a living claim, and record how it ended."""
        work = asyncio.ensure_future(self._handlers[job.kind](job))
        beat = asyncio.create_task(self._keep_claim(job, work), name="job-claim")
        try:
            await work
            await self._end(job, "done")
        except ClaimLost:
            log.warning("a job moved to another worker", extra={"fields": {"job": str(job.id)}})
        except Blocked as error:
            await self._end(job, "blocked", error.reason)
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._release(job, 0.0)
        except RETRIED as error:
            failures = self._failures[job.id] = self._failures.get(job.id, 0) + 1
            log.info("a job waits", extra={"fields": {"job": str(job.id), "error": type(error).__name__}})
            await self._release(job, AGAIN[min(failures, len(AGAIN)) - 1])
        except Exception as error:  # noqa: BLE001  a handler's fault is the job's end, never the runner's
            log.error("a job failed", extra={"fields": {"job": str(job.id), "error": type(error).__name__}})
            self._auditing.alarm("job-failed", tenant=str(job.tenant), job=str(job.id), kind=job.kind)
            await self._end(job, "failed", "internal")
        finally:
            beat.cancel()

    async def _keep_claim(self, job: Job, work: asyncio.Future[None]) -> None:
        """Renew at a third of the claim. A lost one stops the handler: somebody else may be at it."""
        while True:
            await asyncio.sleep(CLAIM / 3)
            try:
                async with self.ledger.transaction(job.tenant) as tx:
                    kept = await rows.renew(tx, job.tenant, job.id, self.worker, CLAIM)
            except ConfideError:
                continue
            if not kept:
                work.cancel()
                return

    async def _end(self, job: Job, state: str, reason: str | None = None) -> None:
        outcome = "allowed" if state == "done" else "failed"
        try:
            async with self.ledger.transaction(job.tenant) as tx:
                if not await rows.finish(tx, job.tenant, job.id, self.worker, state):
                    return
                facts = job.facts({**job.done, "state": state})
                tx.event(job.tenant, "job.end", facts, outcome=outcome, reason=reason)
            self._failures.pop(job.id, None)
        except ConfideError:
            pass  # the claim runs out and the handler, whose steps may be repeated, comes to its end once more

    async def _release(self, job: Job, seconds: float) -> None:
        try:
            async with asyncio.timeout(2), self.ledger.transaction(job.tenant) as tx:
                await rows.release(tx, job.tenant, job.id, self.worker, seconds)
        except (ConfideError, TimeoutError):
            pass  # the claim runs out by itself
