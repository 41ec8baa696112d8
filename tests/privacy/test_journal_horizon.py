"""G8: the deletion journal keeps what a backup may need, drops what none can, and refuses a backup that is older."""

from __future__ import annotations

import asyncio
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.main import replay_deletions
from app.services import backup, journal_horizon
from app.services.deletion_journal import SUFFIX, Deletion, DeletionJournal, read_journal
from app.services.journal_horizon import HorizonError
from tests.cell import Cell, Tenant, running_cell, settings_of
from tests.privacy.made import dialogue, sql

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
KEEP = timedelta(days=30)
TENANT = uuid4()


def day(folder: Path, ago: float, entries: int = 2, *, touched: float | None = None) -> list[UUID]:
    """A worker's file of a day, all its entries of that day. Answers their containers."""
    moment = NOW - timedelta(days=ago)
    made = [uuid4() for _ in range(entries)]
    path = folder / f"{moment:%Y%m%dT%H%M%S}-{uuid4()}{SUFFIX}"
    path.write_bytes(b"".join(Deletion(TENANT, "session.delete", each, at=moment).line() for each in made))
    changed = (NOW - timedelta(days=touched if touched is not None else ago)).timestamp()
    os.utime(path, (changed, changed))
    return made


def journal(folder: Path) -> dict[str, list[UUID]]:
    folder.mkdir()
    made = {
        "long ago": day(folder, 90),
        "before": day(folder, 31.6),
        "that day": day(folder, 30.4),
        "after": day(folder, 29.4),
        "written to lately": day(folder, 50, touched=1),
        "today": day(folder, 0),
    }
    journal_horizon.begin(folder, NOW)
    return made


def left(folder: Path) -> set[UUID]:
    return {each.container for each in read_journal(folder) if each.container is not None}


def test_a_journal_begins_with_its_first_file_and_a_new_one_now(tmp_path: Path) -> None:
    assert journal_horizon.begin(tmp_path / "new", NOW) == NOW
    assert journal_horizon.begin(tmp_path / "new", NOW + timedelta(days=9)) == NOW  # a restart moves nothing
    journal(tmp_path / "old")
    assert journal_horizon.read(tmp_path / "old") == (NOW - timedelta(days=90)).replace(microsecond=0)


def test_pruning_drops_whole_files_before_the_horizon_and_nothing_else(tmp_path: Path) -> None:
    made = journal(tmp_path / "j")
    assert journal_horizon.prune(tmp_path / "j", KEEP, NOW) == 2
    kept = {each for name, ids in made.items() if name not in {"long ago", "before"} for each in ids}
    assert left(tmp_path / "j") == kept
    horizon = journal_horizon.read(tmp_path / "j")
    assert horizon == datetime(2026, 5, 16, tzinfo=UTC)
    assert journal_horizon.prune(tmp_path / "j", KEEP, NOW) == 0
    assert journal_horizon.prune(tmp_path / "j", timedelta(days=400), NOW) == 0
    assert journal_horizon.read(tmp_path / "j") == horizon  # it never goes back
    journal_horizon.check(tmp_path / "j", NOW - timedelta(days=20))
    for ago in (31.0, 60.0, 1000.0):
        with pytest.raises(HorizonError, match="can't be restored"):
            journal_horizon.check(tmp_path / "j", NOW - timedelta(days=ago))


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("step", range(12))
def test_a_crash_at_any_step_leaves_a_journal_that_has_all_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "j"
    made = journal(folder)
    since = {name: NOW - timedelta(days=ago) for name, ago in (("long ago", 90.01), ("before", 31.61))}
    count = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Crash
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for place, name in ((os, "write"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
            patched.setattr(place, name, dying(getattr(place, name)))
        try:
            journal_horizon.prune(folder, KEEP, NOW)
        except Crash:
            assert count == step + 1
    horizon = journal_horizon.read(folder)
    assert horizon is not None
    for name, moment in since.items():  # what is gone lies before the horizon
        if not left(folder) >= set(made[name]):
            assert horizon > moment
    assert left(folder) >= {each for name, ids in made.items() if name not in since for each in ids}
    journal_horizon.prune(folder, KEEP, NOW)  # the next one finishes it
    assert not left(folder) & {*made["long ago"], *made["before"]}
    assert journal_horizon.read(folder) == datetime(2026, 5, 16, tzinfo=UTC)


def test_a_folder_that_is_no_journal_and_a_horizon_that_is_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HorizonError, match="no deletion journal"):
        journal_horizon.check(tmp_path / "nowhere", NOW)
    (tmp_path / "horizon").write_text("{}")
    with pytest.raises(HorizonError, match="can't be read"):
        journal_horizon.check(tmp_path, NOW)


@pytest.mark.usefixtures("one_day")
async def test_a_worker_begins_a_file_each_day(tmp_path: Path) -> None:
    writer = DeletionJournal(tmp_path / "j")
    await writer.append([Deletion(TENANT, "session.delete", uuid4())])
    await writer.append([Deletion(TENANT, "session.delete", uuid4())])
    assert len(list((tmp_path / "j").iterdir())) == 1
    writer._day = (datetime.now(UTC) - timedelta(days=1)).date()
    await writer.append([Deletion(TENANT, "session.delete", uuid4())])
    assert len(list((tmp_path / "j").iterdir())) == 2
    assert len(list(read_journal(tmp_path / "j"))) == 3
    await writer.close()


async def test_g8_a_backup_older_than_the_journal_is_refused_before_and_after_it_is_in_place(
    database: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with running_cell(database, state, deletion_journal_days=8) as cell:
        tenant: Tenant = await cell.tenant()
        await dialogue(tenant, "call-1")
        privacy = cell.parts.services.privacy
        folder = privacy.deletions.folder
        assert journal_horizon.read(folder) is not None  # made at the start, before there was anything to delete
        made = await backup.dump(database, tmp_path / "data", tmp_path / "keys")
        await _a_month_later(cell, folder)
        assert await privacy.retention.prune_journal() == 1
    with pytest.raises(backup.BackupError, match="can't be restored"):
        await backup.restore(database, tmp_path / "data", tmp_path / "keys", folder)
    old = made.taken_at - timedelta(days=30)
    await asyncio.to_thread(_horizon, folder, made.taken_at + timedelta(seconds=60))
    with pytest.raises(HorizonError):
        await replay_deletions(settings_of(database, state), state_of=old)
    with pytest.raises(HorizonError):  # and where nobody says how old it is, its own last event does
        await replay_deletions(settings_of(database, state))
    await asyncio.to_thread(_horizon, folder, old)
    await replay_deletions(settings_of(database, state))


async def _a_month_later(cell: Cell, folder: Path) -> None:
    """An entry from a month ago, which the journal still has; and a horizon from before it."""
    moment = datetime.now(UTC) - timedelta(days=30)
    path = folder / f"{moment:%Y%m%dT%H%M%S}-{uuid4()}{SUFFIX}"
    path.write_bytes(Deletion(TENANT, "session.delete", uuid4(), at=moment).line())
    os.utime(path, (moment.timestamp(),) * 2)
    _horizon(folder, moment - timedelta(days=60))
    manifest = folder.parent.parent / "data" / backup.MANIFEST
    manifest.write_text(re.sub(r"\b20\d\d-", "2020-", manifest.read_text()))
    assert await sql(cell, "SELECT 1 FROM confide_audit.journal LIMIT 1")


def _horizon(folder: Path, since: datetime) -> None:
    (folder / journal_horizon.NAME).write_text(f'{{"complete_since": "{since.isoformat()}"}}')
