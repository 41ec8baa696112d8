"""How far back the deletion journal reaches, and pruning what no backup can need any more.

The file ``horizon`` in the journal's folder says since when the journal is complete. It is made when the service first
starts, and moved by pruning: first the horizon, fsynced, then the files that lie before it. A crash in between leaves a
journal that holds more than it promises, never less. A backup from before the horizon is not restored: nobody could say
what was erased since.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import orjson

from app.services.deletion_journal import SUFFIX, read_file

NAME: Final = "horizon"


class HorizonError(Exception):
    """The journal can't correct this backup. The text is for the operator."""


def begin(folder: Path, now: datetime | None = None) -> datetime:
    """The horizon; a new journal's is the present, one that has files already begins with the first of them."""
    found = read(folder)
    if found is not None:
        return found
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = [datetime.strptime(path.name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) for path in _files(folder)]
    since = min(started, default=now or datetime.now(UTC))
    _write(folder, since)
    return since


def read(folder: Path) -> datetime | None:
    """None where there is none. Raises HorizonError for a file that isn't ours."""
    try:
        return datetime.fromisoformat(orjson.loads((folder / NAME).read_bytes())["complete_since"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise HorizonError(f"{folder / NAME} can't be read: put back the one that was written.") from None


def check(folder: Path, state_of: datetime) -> None:
    """Whether the journal has all that was erased after ``state_of``, the moment of a backup. Raises HorizonError."""
    since = read(folder)
    if since is None:
        raise HorizonError(f"{folder} is no deletion journal: it has no file named {NAME}. Name the right folder.")
    if state_of < since:
        raise HorizonError(
            f"The backup is of {state_of:%Y-%m-%d}, the deletion journal goes back to {since:%Y-%m-%d} only. What was"
            " erased in between would come back: this backup can't be restored."
        )


def prune(folder: Path, keep: timedelta, now: datetime | None = None) -> int:
    """Delete whole files whose every entry is older than ``keep``. Answers how many. May be repeated at any time.

    Cut at midnight, so that workers who prune at once agree.
    """
    present = now or datetime.now(UTC)
    cut = (present - keep).replace(hour=0, minute=0, second=0, microsecond=0)
    old = [path for path in _files(folder) if _newest(path) < cut]
    since = read(folder)
    if not old or since is None:
        return 0
    if since < cut:
        _write(folder, cut)
    for path in old:
        path.unlink(missing_ok=True)
    _sync(folder)
    return len(old)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _newest(path: Path) -> datetime:
    """The latest of its entries and of its last change: whichever clock was wrong, nothing young goes."""
    try:
        moments = [each.at for each in read_file(path) if each.at is not None]
        return max([*moments, datetime.fromtimestamp(path.stat().st_mtime, UTC)])
    except FileNotFoundError:  # another worker was first
        return datetime.max.replace(tzinfo=UTC)


def _write(folder: Path, since: datetime) -> None:
    """Whole or not at all, and on the disk when this returns."""
    draft = folder / f"{NAME}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, orjson.dumps({"complete_since": since.isoformat()}) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(folder / NAME)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
