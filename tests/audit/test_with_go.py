"""Real checkpoints and proofs, verified by the code of Go's checksum database. Needs Go and Debian's package of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.audit.conftest import a_turn, events, sealed, verifier_keys
from tests.cell import Cell, Tenant

GO = shutil.which("go") or next((str(found) for found in Path("/usr/lib").glob("go-*/bin/go")), None)
PACKAGES = Path("/usr/share/gocode")
PROGRAMME = Path(__file__).parent / "with_go" / "main.go"

pytestmark = pytest.mark.skipif(
    GO is None or not (PACKAGES / "src/golang.org/x/mod/sumdb/tlog").is_dir(),
    reason="needs Go and golang.org/x/mod: on Debian golang-go and golang-golang-x-mod-dev",
)


def built(folder: Path) -> Path:
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": str(PACKAGES), "GOFLAGS": "", "CGO_ENABLED": "0"}
    environment |= {"GOCACHE": os.environ.get("GOCACHE", str(folder / "cache"))}
    done = subprocess.run(
        [str(GO), "build", "-o", str(folder / "verify"), str(PROGRAMME)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "verify"


@pytest.mark.timeout(600)  # it compiles Go's library
async def test_g4_go_verifies_a_checkpoint_and_proofs_and_refuses_altered_ones(
    cell: Cell, tenant: Tenant, tmp_path: Path
) -> None:
    programme = await asyncio.to_thread(built, tmp_path)
    await a_turn(tenant)
    await sealed(cell, tenant)
    files = {name: tmp_path / name for name in ("checkpoint", "inclusion", "consistency", "old")}
    files["old"].write_bytes((await tenant.auditor.get("/v1/audit/checkpoint")).content)
    size = int(files["old"].read_text().split("\n")[1])
    for number in range(2, 5):
        await a_turn(tenant, number)
    await sealed(cell, tenant)
    files["checkpoint"].write_bytes((await tenant.auditor.get("/v1/audit/checkpoint")).content)
    new = int(files["checkpoint"].read_text().split("\n")[1])
    event = (await events(tenant, action="context.commit", order="oldest"))[0]["id"]
    answer = await tenant.auditor.get("/v1/audit/proof/inclusion", params={"event": event})
    files["inclusion"].write_bytes(answer.content)
    answer = await tenant.auditor.get("/v1/audit/proof/consistency", params={"from": size, "to": new})
    files["consistency"].write_bytes(answer.content)
    key = (await verifier_keys(tenant))[0]

    async def run(key: str = key) -> subprocess.CompletedProcess[str]:
        command = [
            str(programme),
            key,
            *(str(files[name]) for name in ("checkpoint", "inclusion", "consistency", "old")),
        ]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

    done = await run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[::2] == [
        f"checkpoint {files['old'].read_text().splitlines()[0]} {new}",
        f"{new} extends {size}",
    ]
    for name, old, changed in (
        ("checkpoint", f"\n{new}\n", f"\n{new + 1}\n"),
        ("checkpoint", "\nnumber ", "\nnumber 1"),
        ("inclusion", "context.commit", "context.delete"),
        ("inclusion", '"leaf":', '"leaf":1'),
        ("consistency", '"proof":["', '"proof":["' + "A" * 43 + '=","'),
        ("old", f"\n{size}\n", f"\n{size - 1}\n"),
    ):
        text = files[name].read_text()
        assert old in text
        files[name].write_text(text.replace(old, changed))
        assert (await run()).returncode == 1, (name, changed)
        files[name].write_text(text)
    assert (await run(key.replace("+", "x+", 1))).returncode == 1
