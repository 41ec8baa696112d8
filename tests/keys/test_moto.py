"""Onboarding against the second AWS emulator: moto authenticates what it decrypts, which ministack doesn't.

The gate in front of it plays IAM, as for ministack. What moto lies about (a disabled key still decrypts) is shown on
ministack (tests/kms/EMULATORS.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cell import Cell, running_cell
from tests.keys.customers import World, bound, make_customer
from tests.keys.test_moves import events, last, read, write
from tests.keys.waiting import ended
from tests.kms.aws_gate import AwsGate
from tests.kms.conftest import moto
from tests.kms.rigs import MOTO_ACCOUNT, VENDOR_ROLE, AwsWorld

__all__ = ["moto"]


@pytest.fixture
def other_world(world: World, moto: AwsWorld) -> Iterator[World]:
    """All key services, with moto for AWS."""
    gate = AwsGate(moto.direct, MOTO_ACCOUNT, VENDOR_ROLE)
    gate.start()
    yield replace(world, aws=AwsWorld(moto.direct, gate, MOTO_ACCOUNT))
    gate.stop()


async def test_g5_onboarding_use_rotation_and_withdrawal_on_moto(
    database: str, tmp_path: Path, other_world: World
) -> None:
    async with running_cell(database, tmp_path / "state", other_world.settings()) as cell:
        tenant = await cell.tenant()
        await write(tenant, "before", 1)
        customer: Any = make_customer(other_world, "aws-kms")
        binding = await bound(cell, tenant, customer)
        assert await last(tenant, "before") == 1
        rotated = await tenant.admin.post("/v1/keys/rotate")
        assert rotated.status_code == 202, rotated.text
        await ended(tenant, rotated.json()["job"])
        assert await last(tenant, "before") == 1
        keks = {e.get("kek") for e in await events(tenant, "key.outcome") if e["outcome"] == "allowed"}
        assert customer.arn in keks
        await _refuses_another_half(cell, tenant, binding)
        assert await last(tenant, "before") == 1
        other_world.aws.client("kms").put_key_policy(
            KeyId=customer.arn, PolicyName="default", Policy='{"Version": "2012-10-17", "Statement": []}'
        )
        cell.parts.services.keyring.discard(tenant.id, at_once=True)
        assert (await read(tenant, "before")).status_code == 403


async def _refuses_another_half(cell: Cell, tenant: Any, binding: str) -> None:
    """A half that isn't what was wrapped, one bit of it: moto says so, and nobody is shown as revoked for it."""
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        half = await tx.connection.fetchval(
            "SELECT customer_half FROM confide_keys.root_key WHERE tenant_id = $1 AND state = 'active'", tenant.id
        )
        flip = "UPDATE confide_keys.root_key SET customer_half = $2 WHERE tenant_id = $1 AND state = 'active'"
        await tx.connection.execute(flip, tenant.id, half[:-1] + bytes([half[-1] ^ 1]))
    cell.parts.services.keyring.discard(tenant.id, at_once=True)
    answer = await read(tenant, "before")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:confide:problem:tampered")
    assert (await tenant.admin.get(f"/v1/keys/bindings/{binding}")).json()["state"] == "active"
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        await tx.connection.execute(flip, tenant.id, half)
