"""Everything of one worker that answers to a data protection officer, in one place. Made by ``assemble``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.services.control import ControlPlane
from app.services.deletion_journal import DeletionJournal
from app.services.retention import Retention
from app.store.ledger import Ledger


@dataclass(slots=True)
class Privacy:
    """``start`` and ``close`` run the background work: the sweeper, notices, detections."""

    ledger: Ledger
    deletions: DeletionJournal
    retention: Retention

    async def start(self) -> None:
        self.retention.start()

    async def close(self) -> None:
        await self.retention.close()
        await self.ledger.close()


def assemble(
    *,
    ledger: Ledger,
    control: ControlPlane,
    deletions: DeletionJournal,
    observe_sweep: Callable[[float, int], None],
) -> Privacy:
    """``ledger``: a connection of its own, so that background work never holds up the control plane."""
    return Privacy(ledger, deletions, Retention(ledger, control, deletions, observe=observe_sweep))


def deletion_folder(named: Path | None, state: Path) -> Path:
    """Where the deletion journal is: as set, else beside the state. A backup of the database must not hold it."""
    return named or state / "deletions"
