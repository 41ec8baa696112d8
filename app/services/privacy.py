"""Everything of one worker that answers to a data protection officer, in one place. Made by ``assemble``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.services.attesting import Attestor
from app.services.control import ControlPlane
from app.services.deletion_journal import DeletionJournal
from app.services.dialogue import Dialogue
from app.services.erasure import Checkpoints, Erasure
from app.services.holds import Holds
from app.services.jobs import Jobs
from app.services.keyring import Keyring
from app.services.offboarding import Offboarding
from app.services.privacy_exports import Exports
from app.services.reading import Reading
from app.services.retention import Retention
from app.store.ledger import Ledger


@dataclass(slots=True)
class Privacy:
    """``start`` and ``close`` run the background work: the sweeper, notices, detections."""

    ledger: Ledger
    deletions: DeletionJournal
    attestor: Attestor
    retention: Retention
    erasure: Erasure
    holds: Holds
    exports: Exports
    offboarding: Offboarding

    async def start(self) -> None:
        self.retention.start()

    async def close(self) -> None:
        await self.retention.close()


def assemble(
    *,
    ledger: Ledger,
    control: ControlPlane,
    jobs: Jobs,
    keyring: Keyring,
    reading: Reading,
    dialogue: Dialogue,
    deletions: DeletionJournal,
    attestor: Attestor,
    checkpoints: Checkpoints,
    observe_sweep: Callable[[float, int], None],
) -> Privacy:
    """``ledger``: a connection of its own, so that background work never holds up the control plane."""
    erasure = Erasure(
        reading=reading,
        control=control,
        jobs=jobs,
        ledger=ledger,
        journal=deletions,
        attestor=attestor,
        checkpoints=checkpoints,
    )
    return Privacy(
        ledger=ledger,
        deletions=deletions,
        attestor=attestor,
        retention=Retention(ledger, control, deletions, observe=observe_sweep),
        erasure=erasure,
        holds=Holds(reading, control, jobs, erasure),
        exports=Exports(dialogue, control, ledger, erasure),
        offboarding=Offboarding(
            control=control,
            jobs=jobs,
            ledger=ledger,
            journal=deletions,
            attestor=attestor,
            keyring=keyring,
            checkpoints=checkpoints,
        ),
    )


def deletion_folder(named: Path | None, state: Path) -> Path:
    """Where the deletion journal is: as set, else beside the state. A backup of the database must not hold it."""
    return named or state / "deletions"
