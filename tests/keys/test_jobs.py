"""The job runner: durable, restartable at any point, one worker at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.services import jobs as runner
from app.services.jobs import Blocked, Job
from tests.cell import Cell, Tenant, running_cell
from tests.keys.waiting import ended, until


async def start(cell: Cell, tenant: Tenant, kind: str, spec: dict[str, Any]) -> UUID:
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        return await cell.parts.services.jobs.start(tx, tenant.id, kind, spec)


async def test_g7_a_job_runs_in_steps_and_tells_how_far_it_is(database: str, tmp_path: Path) -> None:
    async def count(job: Job) -> None:
        for number in range(job.done.get("counted", 0), job.spec["to"]):
            await job.progress(counted=number + 1)

    async with running_cell(database, tmp_path) as cell:
        cell.parts.services.jobs.register("count", count)
        tenant = await cell.tenant()
        job = await start(cell, tenant, "count", {"to": 3})
        found = await ended(tenant, job)
        assert found["progress"] == {"counted": 3}
        assert found["kind"] == "count"
        events = (await tenant.auditor.get("/v1/audit/events")).json()["events"]
        actions = [each["action"] for each in events if each.get("detail", {}).get("job") == str(job)]
        assert sorted(actions) == ["job.end", "job.start", "job.step", "job.step", "job.step"]
        stranger = await cell.tenant("other")
        assert (await stranger.admin.get(f"/v1/jobs/{job}")).status_code == 404


async def test_g7_a_job_goes_on_where_a_dead_worker_left_it(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CLAIM", 0.6)
    ran: list[tuple[str, int]] = []

    def counting(name: str, stop_at: int | None) -> Callable[[Job], Awaitable[None]]:
        async def count(job: Job) -> None:
            for number in range(job.done.get("counted", 0), 4):
                if number == stop_at:
                    await asyncio.Event().wait()
                async with job.step(counted=number + 1):
                    ran.append((name, number))

        return count

    async with running_cell(database, tmp_path / "a") as first:
        first.parts.services.jobs.register("count", counting("first", 2))
        tenant = await first.tenant()
        job = await start(first, tenant, "count", {})

        async def two_committed() -> bool:
            return bool((await tenant.admin.get(f"/v1/jobs/{job}")).json()["progress"].get("counted") == 2)

        await until(two_committed)
        # As kill -9 leaves it: no claim is given back.
        first.parts.services.jobs._task.cancel()  # type: ignore[union-attr]
        for task in first.parts.services.jobs._running.values():
            monkeypatch.setattr(first.parts.services.jobs, "_release", lambda *_: asyncio.sleep(0))
            task.cancel()
        async with running_cell(database, tmp_path / "b") as second:
            second.parts.services.jobs.register("count", counting("second", None))
            found = await ended(tenant, job)
            assert found["progress"] == {"counted": 4}
    assert ran == [("first", 0), ("first", 1), ("second", 2), ("second", 3)]


async def test_a_blocked_job_waits_and_a_broken_one_fails(database: str, tmp_path: Path) -> None:
    open_now = False

    async def gate(_: Job) -> None:
        if not open_now:
            raise Blocked("legal-hold")

    async def broken(_: Job) -> None:
        raise RuntimeError("never told")

    async with running_cell(database, tmp_path) as cell:
        jobs = cell.parts.services.jobs
        jobs.register("gate", gate)
        jobs.register("broken", broken)
        tenant = await cell.tenant()
        job, other = await start(cell, tenant, "gate", {}), await start(cell, tenant, "broken", {})
        await ended(tenant, job, "blocked")
        await ended(tenant, other, "failed")
        open_now = True
        async with cell.parts.services.ledger.transaction(tenant.id) as tx:
            assert await jobs.unblock(tx, tenant.id, job)
        await ended(tenant, job, "done")
