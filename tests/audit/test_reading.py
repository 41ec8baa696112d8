"""What an auditor reads through the REST API, and what he verifies of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from app.audit import verify as verifier
from tests.audit.conftest import a_turn, sealed, verifier_keys
from tests.cell import Cell, Tenant


async def test_g4_an_export_through_the_api_verifies_offline(cell: Cell, tenant: Tenant, tmp_path: Path) -> None:
    for number in range(5):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    first = await tenant.auditor.get("/v1/audit/checkpoint")
    assert first.status_code == 200, first.text
    (tmp_path / "last").write_bytes(first.content)
    kept = int(first.text.split("\n")[1])
    await a_turn(tenant, 1, "again")
    export = await tenant.auditor.get("/v1/audit/export", params={"known": kept})
    assert export.status_code == 200, export.text
    (tmp_path / "export").write_bytes(export.content)
    keys = await verifier_keys(tenant)
    command = [sys.executable, verifier.__file__, str(tmp_path / "export"), "--key", keys[0]]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--checkpoint", str(tmp_path / "last")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("VERIFIED")
