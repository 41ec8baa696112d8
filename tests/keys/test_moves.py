"""The customer's key: onboarding as the pages say, moves in every direction under load, retirement at zero."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.audit.checkpoint import VerifierKey, open_note
from tests.cell import Cell, Tenant
from tests.keys.customers import PROVIDERS, World, activated, bound, checked, consent, make_customer
from tests.keys.waiting import ended
from tests.kms.test_hostile import CORPUS


async def write(tenant: Tenant, name: str, number: int) -> None:
    body = {
        "external_id": name,
        "create": {"subject": "someone"},
        "put": [{"collection": "state", "key": "n", "json": {"n": number}, "tags": ["t"]}],
        "turns": [{"json": {"n": number}}],
    }
    done = await tenant.runtime.post("/v1/commit", json=body)
    assert done.status_code == 200, done.text


async def read(tenant: Tenant, name: str) -> Any:
    body = {"external_id": name, "context": [{}], "turns": {"last": 100}}
    return await tenant.runtime.post("/v1/load", json=body)


async def last(tenant: Tenant, name: str) -> int:
    answer = await read(tenant, name)
    assert answer.status_code == 200, answer.text
    loaded = answer.json()
    assert loaded["turns"][-1]["json"] == loaded["session"]["context"][0]["json"]
    return int(loaded["turns"][-1]["json"]["n"])


async def events(tenant: Tenant, *actions: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        query = {"limit": 200} | ({"cursor": cursor} if cursor else {})
        page = (await tenant.auditor.get("/v1/audit/events", params=query)).raise_for_status().json()
        found += [each for each in page["events"] if each["action"] in actions]
        cursor = page.get("cursor")
        if cursor is None:
            return found


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_g5_onboarding_works_as_the_binding_says(cell: Cell, world: World, provider: str) -> None:
    tenant = await cell.tenant()
    await write(tenant, "before", 1)
    customer = make_customer(world, provider)
    policy = {"allowed_kms_regions": ["eu-central-1", "westeurope"]}
    assert (await tenant.admin.patch("/v1/keys/policy", json=policy)).status_code == 200
    await consent(tenant)
    made = (await tenant.admin.post("/v1/keys/bindings", json=customer.body())).json()
    assert made["state"] == "pending"
    where = f"/v1/keys/bindings/{made['id']}"
    refused = await tenant.admin.post(f"{where}/activate")
    assert refused.status_code == 409, refused.text
    if provider != "local":
        sick = (await tenant.admin.post(f"{where}/check")).json()
        assert not sick["ok"]
        assert sick["binding"]["state"] == "pending"
        assert all(each["cause"] and each["fix"] for each in sick["checks"] if each["outcome"] == "fail")
    customer.paste(made.get("steps", []))
    found = (await tenant.admin.post(f"{where}/check")).json()
    assert found["ok"], found["checks"]
    assert found["binding"]["state"] == "checked"
    done = await activated(cell, tenant, made["id"])
    assert done["binding"]["state"] == "active"
    assert await last(tenant, "before") == 1
    await write(tenant, "after", 2)
    inventory = (await tenant.admin.get("/v1/keys")).json()
    assert [each["generation"] for each in inventory["generations"]] == [2]
    assert inventory["generations"][0]["binding"] == made["id"]
    assert inventory["generations"][0]["index_keys"] == 1
    known = await events(tenant, "binding.create", "binding.check", "binding.activate", "binding.state")
    assert {"binding.create", "binding.check", "binding.activate", "binding.state"} == {e["action"] for e in known}
    intents = {e["id"] for e in await events(tenant, "key.intent")}
    assert intents == {e["intent"] for e in await events(tenant, "key.outcome")}


async def test_g5_moves_in_every_direction_lose_nothing_under_load(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    done = asyncio.Event()
    written: dict[str, int] = {}
    failures: list[str] = []

    async def talk(name: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                await write(tenant, name, number)
                written[name] = number
                assert await last(tenant, name) == number
            except AssertionError as error:
                failures.append(str(error))
            await asyncio.sleep(0.01)

    talks = [asyncio.create_task(talk(f"s{number}")) for number in range(6)]
    old: list[str] = []
    for provider in ("aws-kms", "azure-key-vault", "vault-transit", "vendor"):
        if provider == "vendor":
            made = (await tenant.admin.post("/v1/keys/bindings", json={"provider": "vendor"})).json()
            binding = made["id"]
            assert (await tenant.admin.post(f"/v1/keys/bindings/{binding}/check")).json()["ok"]
        else:
            binding = await checked(tenant, make_customer(world, provider))
        await activated(cell, tenant, binding)
        if old:
            gone = (await tenant.admin.post(f"/v1/keys/bindings/{old[-1]}/retire")).json()
            assert gone["retired"], gone
        old.append(binding)
        await asyncio.sleep(0.3)
    done.set()
    await asyncio.gather(*talks)
    assert not failures, failures[:3]
    assert len(written) == 6
    for name, number in written.items():
        assert await last(tenant, name) == number
    inventory = (await tenant.admin.get("/v1/keys")).json()
    assert [(each["generation"], each["state"]) for each in inventory["generations"]] == [(5, "active")]
    assert [each["state"] for each in inventory["bindings"]] == ["retired", "retired", "retired", "active"]


async def test_of_two_activations_at_once_one_wins(two_workers: tuple[Cell, Cell], world: World) -> None:
    first, second = two_workers
    tenant = await first.tenant()
    bindings = [await checked(tenant, make_customer(world, "local")) for _ in range(2)]
    other = second.client(tenant.keys["admin"])
    answers = await asyncio.gather(
        tenant.admin.post(f"/v1/keys/bindings/{bindings[0]}/activate"),
        other.post(f"/v1/keys/bindings/{bindings[1]}/activate"),
    )
    assert sorted(answer.status_code for answer in answers) == [202, 409], [answer.text for answer in answers]
    winner = next(answer for answer in answers if answer.status_code == 202).json()
    await ended(tenant, winner["job"])
    await write(tenant, "s", 1)
    assert await last(tenant, "s") == 1


async def test_g5_a_key_is_retired_at_zero_with_a_signed_statement(cell: Cell, world: World, tmp_path: Path) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    binding = await bound(cell, tenant, make_customer(world, "local"))
    refused = await tenant.admin.post(f"/v1/keys/bindings/{binding}/retire")
    assert refused.status_code == 409
    second = await checked(tenant, make_customer(world, "local"))
    jobs = cell.parts.services.jobs
    handler = jobs._handlers["reseal"]
    held = asyncio.Event()

    async def later(job: Any) -> None:
        await held.wait()
        await handler(job)

    jobs._handlers["reseal"] = later
    begun = (await tenant.admin.post(f"/v1/keys/bindings/{second}/activate")).json()
    waits = (await tenant.admin.post(f"/v1/keys/bindings/{binding}/retire")).json()
    assert not waits["retired"]
    assert waits["depending"]["root_keys"] == 1
    assert waits["depending"]["container_keys"] == 4  # two keys of the session's, two of its subject's
    assert await last(tenant, "s") == 1
    held.set()
    await ended(tenant, begun["job"])
    done = (await tenant.admin.post(f"/v1/keys/bindings/{binding}/retire")).json()
    assert done["retired"]
    assert done["binding"]["state"] == "retired"
    said = json.loads(done["statement"]["text"])
    assert said["binding"] == binding
    key = cell.parts.services.audit.signing.keys()[0]
    text = open_note(done["statement"]["signed"].encode(), [VerifierKey.parse(key)])
    assert text.decode() == done["statement"]["text"]
    again = (await tenant.admin.post(f"/v1/keys/bindings/{binding}/retire")).json()
    assert again["retired"]
    if shutil.which("jq") and shutil.which("openssl"):
        assert said["kek"] in verified_as_the_page_says(tmp_path, json.dumps(done), key)
        with pytest.raises(subprocess.CalledProcessError):
            verified_as_the_page_says(tmp_path, json.dumps(done).replace(binding, second), key)


def verified_as_the_page_says(folder: Path, answer: str, key: str) -> str:
    """What the page's commands print. Raises where openssl refuses the signature."""
    page = (Path(__file__).parents[2] / "docs/key-lifecycle.md").read_text()
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    (folder / "retired.json").write_text(answer)
    ran = subprocess.run(
        ["sh", "-ec", commands], cwd=folder, env=os.environ | {"VKEY": key}, capture_output=True, text=True, check=True
    )
    return ran.stdout


async def test_a_rotation_starts_a_generation_and_new_container_keys(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    await bound(cell, tenant, make_customer(world, "local"))
    job = (await tenant.admin.post("/v1/keys/rotate")).json()["job"]
    await ended(tenant, job)
    await write(tenant, "s", 2)
    assert await last(tenant, "s") == 2
    inventory = (await tenant.admin.get("/v1/keys")).json()
    assert [each["generation"] for each in inventory["generations"]] == [3]


async def test_the_rotation_period_rotates_by_itself(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    await write(tenant, "s", 1)
    await bound(cell, tenant, make_customer(world, "local"))
    policy = await tenant.admin.patch("/v1/keys/policy", json={"rotation_days": 1})
    assert policy.json()["rotation_days"] == 1
    await cell.parts.services.keys.moves.rotate_due()
    assert [each["generation"] for each in (await tenant.admin.get("/v1/keys")).json()["generations"]] == [2]
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        await tx.connection.execute(
            "UPDATE confide_keys.root_key SET created_at = now() - interval '25 hours' WHERE tenant_id = $1", tenant.id
        )
    await cell.parts.services.keys.moves.rotate_due()
    assert (await tenant.admin.get("/v1/keys")).json()["generations"][-1]["generation"] == 3
    assert await last(tenant, "s") == 1
    assert [e for e in await events(tenant, "key.rotate") if e["detail"].get("by") == "rotation period"]
    back = await tenant.admin.patch("/v1/keys/policy", json={"rotation_days": None})
    assert "rotation_days" not in back.json()


async def test_g9_a_key_in_a_foreign_region_or_a_hostile_name_is_refused(cell: Cell) -> None:
    tenant = await cell.tenant()
    role = "arn:aws:iam::111122223333:role/confide"
    key = "key/1234abcd-12ab-34cd-56ef-1234567890ab"
    for body, pointer in (
        ({"provider": "aws-kms", "key_arn": f"arn:aws:kms:us-east-1:111122223333:{key}", "role_arn": role}, "/key_arn"),
        (
            {"provider": "aws-kms", "key_arn": "arn:aws:kms:eu-central-1:111122223333:alias/a", "role_arn": role},
            "/key_arn",
        ),
        ({"provider": "vault-transit", "endpoint": "https://169.254.169.254", "key_name": "k"}, "/endpoint"),
        ({"provider": "vendor", "name": "x"}, ""),
        ({"provider": "elsewhere"}, "/provider"),
    ):
        answer = await tenant.admin.post("/v1/keys/bindings", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json().get("pointer", "") == pointer
    for case in CORPUS[::7]:
        answer = await tenant.admin.post("/v1/keys/bindings", json=case["body"])
        told = answer.json()
        assert (answer.status_code, told["type"]) == (422, "urn:confide:problem:invalid-request"), case
        assert len(told["detail"]) > 20, case
    assert (await tenant.admin.get("/v1/keys")).json()["bindings"] == []
    assert (await tenant.runtime.get("/v1/keys")).status_code == 403
    assert (await tenant.auditor.get("/v1/keys")).status_code == 200
    assert (await tenant.auditor.post("/v1/keys/seal")).status_code == 403


async def test_keys_that_open_nothing_go_and_the_inventory_says_what_is_left(cell: Cell, world: World) -> None:
    tenant = await cell.tenant()
    for name in ("quiet", "busy"):
        await write(tenant, name, 1)
    await bound(cell, tenant, make_customer(world, "local"))
    for number in range(2, 6):
        rotated = await tenant.admin.post("/v1/keys/rotate")
        assert rotated.status_code == 202, rotated.text
        await ended(tenant, rotated.json()["job"])
        await write(tenant, "busy", number)
    async with cell.parts.services.ledger.transaction(tenant.id) as tx:
        stored = await tx.connection.fetch(
            "SELECT k.trk_generation, count(*) AS keys FROM confide.container_key k WHERE k.tenant_id = $1 GROUP BY 1",
            tenant.id,
        )
        containers = await tx.connection.fetchval(
            "SELECT count(*) FROM confide.container WHERE tenant_id = $1", tenant.id
        )
        most = await tx.connection.fetchval(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM confide.container_key k JOIN confide.container c"
            " ON c.tenant_id = k.tenant_id AND c.id = k.container_id WHERE k.tenant_id = $1 AND c.kind = 'subject'"
            " GROUP BY k.container_id) a",
            tenant.id,
        )
    assert containers == 3
    assert most == 2, "a container that nobody wrote to collects a key with each rotation"
    generations = (await tenant.admin.get("/v1/keys")).json()["generations"]
    assert [(each["generation"], each["container_keys"]) for each in generations] == [
        (row["trk_generation"], row["keys"]) for row in stored
    ]
    swept = [e["detail"] for e in await events(tenant, "key.rekey") if "unused_keys" in e["detail"]]
    assert swept
    assert all(each["state"] == "destroyed" and each["from"] <= each["to"] for each in swept)
    gone = [e["detail"]["generation"] for e in await events(tenant, "key.rotate") if e["detail"].get("state")]
    assert sorted(gone) == [1, 2, 3, 4, 5]
    assert [await last(tenant, name) for name in ("quiet", "busy")] == [1, 5]
