"""``confide backup`` and ``confide restore`` as an operator calls them."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

import asyncpg
import pytest

from app.__main__ import main
from app.services.journal_horizon import begin
from app.store.cell import make_database, name_region
from tests.cell import REGION
from tests.conftest import with_database


def test_the_commands_back_up_restore_and_replay(
    database: str, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name_region(database, REGION)
    for name, value in (
        ("CONFIDE_ENV", "dev"),
        ("CONFIDE_REGION", REGION),
        ("CONFIDE_STATE_DIR", str(tmp_path / "state")),
        ("CONFIDE_OWNER_DATABASE_URL", database),
        ("CONFIDE_DATABASE_URL", database),
    ):
        monkeypatch.setenv(name, value)
    begin(tmp_path / "state" / "deletions")  # as the service does at its first start
    data, keys = str(tmp_path / "data"), str(tmp_path / "keys")
    assert main(["backup", "--to", data]) == 1  # keys go apart, or nowhere
    assert main(["backup", "--to", data, "--keys-to", keys, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {"data.dump", "keys.dump"}
    assert main(["restore", "--from", data, "--keys-from", keys]) == 1  # never over a database that is in use
    name = f"test_{secrets.token_hex(8)}"
    asyncio.run(make_database(postgres, name))
    monkeypatch.setenv("CONFIDE_OWNER_DATABASE_URL", with_database(postgres, name))
    try:
        capsys.readouterr()
        restore = ["restore", "--from", data, "--keys-from", keys, "--json"]
        assert main([*restore, "--journal", str(tmp_path / "elsewhere")]) == 1  # no journal there: a slip of the pen
        assert main(restore) == 0
        assert json.loads(capsys.readouterr().out)["entries"] == 0
    finally:
        asyncio.run(drop(postgres, name))


async def drop(postgres: str, name: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()
