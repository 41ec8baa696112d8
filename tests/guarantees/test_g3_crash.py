"""G3 and G7 over kill -9 of whole processes under load, with the crash programme's load, judgement and control.

``make chaos`` does the same for longer (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import os
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

FAREWELL = b"E\x00\x00\x00\x24SFATAL\x00VFATAL\x00C57P01\x00Mfarewell\x00\x00"
"""What PostgreSQL sends to a session that it ends (57P01, admin shutdown)."""
SEALED = "SELECT count(*) > 0 FROM confide_audit.event"
WAITS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'confide%' AND wait_event_type = 'Lock'"


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
        async with asyncio.timeout(20):
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
            await asyncio.wait_for(closing, 10)
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
            for writer in list(proxy._writers):
                if writer.get_extra_info("sockname")[1] == proxy.port:
                    writer.write(FAREWELL)
            await asyncio.sleep(0.05)
            if statement == "write":
                answer = await tenant.runtime.put(url, content=b"x")
            elif statement == "read":
                answer = await tenant.runtime.get(url)
            else:
                answer = await tenant.runtime.post("/v1/sessions/lookup", json={"external_id": "nobody"})
            assert answer.status_code in {200, 201}, f"{statement}: {answer.text}"
