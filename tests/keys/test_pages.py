"""The guides "Bring your AWS key" and "Bring your Azure key", typed as they stand: from the key to its withdrawal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import uvicorn

from app.services import key_states
from tests.cell import REGION, Cell, Tenant
from tests.keys.cloud_cli import Clouds, on_path
from tests.keys.customers import World, consent
from tests.keys.test_moves import last, read, write
from tests.keys.waiting import until

DOCS = Path(__file__).parents[2] / "docs"
DONE = "--the-block-is-done--"

pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="the pages' commands need curl and jq"
)


def blocks(page: str) -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^```(?!sh$)[a-z]+$", (DOCS / page).read_text(), re.MULTILINE), "a block that nobody runs"
    return found


class Reader:
    """One shell, in which he types the page's blocks one after another."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def type(self, block: str) -> str:
        """What the block prints. Fails where a command of it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{block}\necho {DONE}\n".encode())
        said = []
        async for line in self._process.stdout:
            if line.decode().strip() == DONE:
                return "".join(said)
            said.append(line.decode())
        raise AssertionError(f"the page's commands fail:\n{block}\n{''.join(said)}")


def _with_key(folder: Path, tenant: Tenant) -> None:
    folder.mkdir()
    (folder / "admin.header").write_text(f"Authorization: Bearer {tenant.keys['admin']}\n")


@asynccontextmanager
async def reader(cell: Cell, tenant: Tenant, folder: Path, tools: Path, **more: str) -> AsyncIterator[Reader]:
    """Someone at a shell with the tools, a served cell and an admin's key in a file."""
    config = uvicorn.Config(
        cell.api, http="app.api.protocol:Protocol", log_level="error", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: asyncio.sleep(0, server.started))
    _with_key(folder, tenant)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "CONFIDE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "ADMIN": "@admin.header",
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        "sh", "-eu", cwd=folder, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Reader(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        server.should_exit = True
        await serving


async def follow(page: str, someone: Reader, tenant: Tenant, folder: Path) -> None:
    """All blocks, with what the page says between them seen to be so."""
    *onboarding, disable, enable = blocks(page)
    said = ""
    for block in onboarding:
        said = await someone.type(block)
        if "/check" in block:
            checked = json.loads((folder / "checked.json").read_text())
            assert checked["ok"], checked["checks"]
            assert said == "", "the page shows a failed check"
    assert said.strip() in {"queued", "running", "done"}
    assert await last(tenant, "before") == 1
    keys = (await tenant.admin.get("/v1/keys")).json()
    binding = json.loads((folder / "binding.json").read_text())["id"]
    assert [each["id"] for each in keys["bindings"] if each["state"] == "active"] == [binding]
    await someone.type(disable)

    async def status(wanted: int) -> bool:
        return bool((await read(tenant, "before")).status_code == wanted)

    await until(lambda: status(403))
    assert (await someone.type(enable)).startswith("revoked\n")
    await until(lambda: status(200))
    assert await last(tenant, "before") == 1


@pytest.fixture(autouse=True)
def _eager_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_states, "PROBE_EVERY", (0.8, 1.2))


async def test_bring_your_aws_key_as_the_page_says(cell: Cell, world: World, tmp_path: Path) -> None:
    tenant = await cell.tenant()
    await write(tenant, "before", 1)
    (await tenant.admin.patch("/v1/keys/policy", json={"lease_seconds": 2})).raise_for_status()
    clouds = Clouds(world)
    with on_path(clouds, tmp_path / "bin") as tools:
        async with reader(cell, tenant, tmp_path / "home", tools) as someone:
            await follow("bring-your-aws-key.md", someone, tenant, tmp_path / "home")
    assert not clouds.refused
    assert set(clouds.ran) == {f"aws {name}" for name in clouds.tables["aws"]} | {"terraform apply"}


async def test_bring_your_azure_key_as_the_page_says(cell: Cell, world: World, tmp_path: Path) -> None:
    tenant = await cell.tenant()
    await write(tenant, "before", 1)
    policy = {"lease_seconds": 2, "allowed_kms_regions": [REGION, "westeurope"]}
    (await tenant.admin.patch("/v1/keys/policy", json=policy)).raise_for_status()
    await consent(tenant)
    vault = world.azure.vault(f"v{secrets.token_hex(5)}", str(uuid4()))
    clouds = Clouds(world, vault)
    with on_path(clouds, tmp_path / "bin") as tools:
        async with reader(cell, tenant, tmp_path / "home", tools, VAULT=vault.name) as someone:
            await follow("bring-your-azure-key.md", someone, tenant, tmp_path / "home")
    assert not clouds.refused
    assert set(clouds.ran) == {f"az {name}" for name in clouds.tables["az"]}


def test_a_command_that_nobody_has_tried_is_refused(world: World, tmp_path: Path) -> None:
    clouds = Clouds(world)
    assert clouds.run("aws", ["kms", "schedule-key-deletion", "--key-id", "k"], tmp_path)[0] == 2
    assert clouds.run("aws", ["sts", "get-caller-identity", "--profile", "x"], tmp_path)[0] == 2
    assert len(clouds.refused) == 2
