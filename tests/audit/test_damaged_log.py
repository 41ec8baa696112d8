"""One tenant's damaged log: named, never signed, and in nobody else's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.audit.verify import Report, verify
from tests.audit.conftest import a_turn, events, sealed, verifier_keys
from tests.audit.journal_rows import superuser
from tests.cell import Cell, Tenant


async def verified(tenant: Tenant) -> Report:
    export = await tenant.auditor.get("/v1/audit/export")
    assert export.status_code == 200, export.text
    return verify(export.content.splitlines(), await verifier_keys(tenant))


DAMAGE = {
    "edge cut": "UPDATE confide_audit.log SET frontier = substr(frontier, 1, 39) WHERE tenant_id = $1",
    "another size": "UPDATE confide_audit.log SET size = size + 1 WHERE tenant_id = $1",
    "an impossible size": "UPDATE confide_audit.log SET size = 9223372036854775807 WHERE tenant_id = $1",
    "of another century": "UPDATE confide_audit.log SET sealed_at = '2126-01-01Z' WHERE tenant_id = $1",
    "gone": "DELETE FROM confide_audit.log WHERE tenant_id = $1",
    "a hash in the way": "INSERT INTO confide_audit.node SELECT tenant_id, epoch, 0, size, sha256('x')"
    " FROM confide_audit.log WHERE tenant_id = $1",
}


@pytest.mark.parametrize("when", ["while it leads", "before it starts", "before anything was signed"])
async def test_g4_one_tenants_damaged_log_is_named_and_never_signed_and_holds_up_nobody_else(
    cell: Cell, tenant: Tenant, tmp_path: Path, when: str
) -> None:
    audit, alarms = cell.parts.services.audit, cell.parts.services.auditing.alarms
    damaged = {what: await cell.tenant(f"damaged-{number}") for number, what in enumerate(DAMAGE)}
    for one in (tenant, *damaged.values()):
        await a_turn(one)
    await sealed(cell, tenant)
    kept = {what: (await one.auditor.get("/v1/audit/checkpoint")).content for what, one in damaged.items()}
    if when != "while it leads":
        await audit.sealer.close()
    if when == "before anything was signed":
        (tmp_path / "state" / "witness" / "witness.log").unlink()
    async with superuser(cell.url, replica=True) as admin:
        for what, one in damaged.items():
            await admin.execute(DAMAGE[what], one.id)
    if when != "while it leads":
        audit.sealer.start()
    for number, one in enumerate((tenant, *damaged.values())):
        await a_turn(one, 2 + number)
    await sealed(cell, tenant)
    assert (await verified(tenant)).exit_code == 0
    assert (await tenant.auditor.get("/v1/audit/checkpoint")).text.split("\n")[0].endswith(str(tenant.id))
    assert alarms["audit-tree"] >= 1
    assert alarms["audit-restored"] >= 1
    for what, one in damaged.items():
        assert any(event["action"] == "context.commit" for event in await events(one)), what
        if what == "a hash in the way":
            report = await verified(one)
            assert report.exit_code == 1 or report.origin.endswith("/2")
            continue
        if what == "edge cut" and when == "while it leads":
            continue  # the leader knows better, and may have written its own before it looked
        if what == "gone" and when == "before anything was signed":
            continue  # nobody knows of it but who kept a checkpoint
        note = (await one.auditor.get("/v1/audit/checkpoint")).text
        assert note.split("\n")[0].endswith(f"{one.id}/2"), what
        restored = [event for event in await events(one) if event["action"] == "audit.restore"]
        assert len(restored) == 1, what
        assert restored[0]["detail"]["lost_origin"] == kept[what].decode().split("\n")[0], what
        assert (await verified(one)).exit_code == 0, what
