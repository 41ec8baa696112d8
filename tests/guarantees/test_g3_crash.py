"""G3 and G7 over kill -9 of whole processes under load, with the crash programme's load, judgement and control.

``make chaos`` does the same for longer (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import asyncpg
import pytest

from app.embedded import EmbeddedPostgres
from app.embedded.processes import servers_in
from app.store.migrate import upgrade
from tests.cell import running_cell
from tests.dialogue.calls import session
from tests.guarantees.test_g3_g7_lanes import proxied
from tests.programmes.chaos import begin, control, crash, losses
from tests.programmes.chaos_blindness import blindness

FAREWELL = b"E\x00\x00\x00\x24SFATAL\x00VFATAL\x00C57P01\x00Mfarewell\x00\x00"
"""What PostgreSQL sends to a session that it ends (57P01, admin shutdown)."""
SEALED = "SELECT count(*) > 0 FROM confide_audit.event"
WAITS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'confide%' AND wait_event_type = 'Lock'"

SEED = 1
CLIENTS = 10


@pytest.mark.timeout(900)
async def test_g3_g7_what_clients_were_told_is_in_the_log_and_there_after_kill_9(tmp_path: Path) -> None:
    """The control runs over the same service, once its database acknowledges before its log is written."""
    run = await begin(tmp_path, SEED)
    try:
        verdict = await crash(run, 3, CLIENTS, ("worker", "backend", "everything"), many=60)
        assert verdict.findings == []
        assert verdict.checked["reads"] > 50
        assert verdict.checked["writes"] > 50
        found, missed = blindness(verdict.record, random.Random(SEED))
        assert missed == []
        assert len(found) >= 4
        reads, writes = losses(await control(run, 25, CLIENTS))  # it ends with the first of each
        assert reads > 0, "can't see a read whose event is lost"
        assert writes > 0, "can't see a lost write"
        assert await run.service.stop() == []
    finally:
        run.service.kill_all()


async def test_g7_a_sealer_that_is_told_to_stop_while_its_database_dies_ends(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The cancellation meets a transaction whose rollback fails: it must not be lost in that other error."""
    url = own_postgres.superuser_url()
    await asyncio.to_thread(upgrade, url)
    async with running_cell(url, tmp_path / "state", sealer="process") as cell:
        sealer = cell.parts.services.audit.sealer
        sealer.start()
        await cell.tenant()
        holding, looking = await asyncpg.connect(url), await asyncpg.connect(url)
        async with asyncio.timeout(120):
            while not await looking.fetchval(SEALED):  # noqa: ASYNC110  another process's state
                await asyncio.sleep(0.02)
            await holding.execute("BEGIN; LOCK TABLE confide_audit.event IN SHARE MODE")
            await cell.tenant("other")
            while (backend := await looking.fetchval(WAITS)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        os.kill(backend, signal.SIGSTOP)
        closing = asyncio.create_task(sealer.close())
        await asyncio.sleep(0.1)
        for pid in servers_in(tmp_path / "postgres" / "data"):
            os.kill(pid, signal.SIGKILL)
        try:
            await asyncio.wait_for(closing, 60)
        except TimeoutError:
            pytest.fail("the sealer goes on")
        finally:
            holding.terminate()
            looking.terminate()


async def test_g3_a_server_that_says_farewell_to_an_idle_connection_is_no_internal_error(
    database: str, tmp_path: Path
) -> None:
    """Its last word comes before the connection is closed: in between, the driver refuses with an error of its own."""
    async with proxied(database, tmp_path / "state") as (proxy, cell):
        tenant = await cell.tenant()
        place = await session(tenant.runtime)
        url = f"/v1/sessions/{place}/context/c/k"
        for statement in ("write", "read", "look-up"):
            for each in list(proxy._open):
                await each.carry(FAREWELL, forth=False)
            await asyncio.sleep(0.05)
            if statement == "write":
                answer = await tenant.runtime.put(url, content=b"x")
            elif statement == "read":
                answer = await tenant.runtime.get(url)
            else:
                answer = await tenant.runtime.post("/v1/sessions/lookup", json={"external_id": "nobody"})
            assert answer.status_code in {200, 201}, f"{statement}: {answer.text}"
