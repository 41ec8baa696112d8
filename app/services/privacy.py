"""Everything of one worker that answers to a data protection officer, in one place. Made by ``assemble``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from app.audit.checkpoint import Signer
from app.crypto.secret import SecretKey
from app.errors import ConfideError
from app.services import journal_horizon
from app.services.attesting import Attestor
from app.services.audit_receivers import Receivers
from app.services.auditing import Auditing
from app.services.control import ControlPlane
from app.services.deletion_journal import DeletionJournal
from app.services.detections import Detections, Thresholds
from app.services.dialogue import Dialogue
from app.services.erasure import Checkpoints, Erasure
from app.services.evidence import Evidence
from app.services.holds import Holds
from app.services.incidents import Incidents
from app.services.jobs import Jobs
from app.services.keyring import Keyring
from app.services.offboarding import Offboarding
from app.services.outbox import Outbox
from app.services.privacy_exports import Exports
from app.services.reading import Reading
from app.services.residency import Residency
from app.services.retention import Retention, pause
from app.services.statements import Statements
from app.services.trust import Statement, Trust, terms
from app.store.ledger import Ledger
from app.store.pool import Pool

log = logging.getLogger("confide.privacy")

WATCH_SECONDS: Final = 5.0
DETECT_TURNS: Final = 12


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
    residency: Residency
    statements: Statements
    trust: Trust
    incidents: Incidents
    outbox: Outbox
    detections: Detections
    evidence: Evidence
    watch: Watch

    async def start(self) -> None:
        """Raises OSError, HorizonError where the deletion journal's folder can't be used."""
        await asyncio.to_thread(journal_horizon.begin, self.deletions.folder)
        self.retention.start()
        self.watch.start()

    async def close(self) -> None:
        await self.watch.close()
        await self.retention.close()


@dataclass(frozen=True, slots=True)
class Needs:
    """What ``assemble`` is given. ``ledger``: a connection of its own: background work never holds up others."""

    region: str
    ledger: Ledger
    pool: Pool
    control: ControlPlane
    auditing: Auditing
    jobs: Jobs
    keyring: Keyring
    reading: Reading
    dialogue: Dialogue
    deletions: DeletionJournal
    signer: Signer
    checkpoints: Checkpoints
    notes: SecretKey
    receivers: Receivers
    trust: Statement
    customer_hours: int
    authority_hours: int
    thresholds: Thresholds
    keep_journal: timedelta
    observe_sweep: Callable[[float, int], None]


def assemble(needs: Needs) -> Privacy:
    """Everything unstarted."""
    ledger, control, jobs, deletions = needs.ledger, needs.control, needs.jobs, needs.deletions
    reading, keyring, checkpoints = needs.reading, needs.keyring, needs.checkpoints
    attestor = Attestor(needs.signer)
    customer, authority = timedelta(hours=needs.customer_hours), timedelta(hours=needs.authority_hours)
    residency = Residency(needs.region, control, ledger, needs.auditing)
    incidents = Incidents(control, ledger, needs.auditing, needs.notes, customer=customer, authority=authority)
    outbox = Outbox(control, ledger, residency, needs.receivers, needs.signer, needs.notes, needs.auditing)
    detections = Detections(ledger, incidents, needs.thresholds)
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
        retention=Retention(ledger, control, deletions, observe=needs.observe_sweep, keep_journal=needs.keep_journal),
        erasure=erasure,
        holds=Holds(reading, control, jobs, erasure, ledger, needs.pool),
        exports=Exports(needs.dialogue, control, ledger, erasure),
        offboarding=Offboarding(
            control=control,
            jobs=jobs,
            ledger=ledger,
            journal=deletions,
            attestor=attestor,
            keyring=keyring,
            checkpoints=checkpoints,
        ),
        residency=residency,
        statements=Statements(needs.region, control, attestor, checkpoints),
        trust=Trust(needs.region, control, needs.trust, customer, authority),
        incidents=incidents,
        outbox=outbox,
        detections=detections,
        evidence=Evidence(needs.region, control, ledger, attestor, checkpoints, terms(needs.trust)),
        watch=Watch(incidents, outbox, detections, residency, needs.receivers),
    )


class Watch:
    """Overdue alarms and deliveries every few seconds, detections every minute; one worker of the cell at a time."""

    def __init__(
        self,
        incidents: Incidents,
        outbox: Outbox,
        detections: Detections,
        residency: Residency,
        receivers: Receivers,
    ) -> None:
        self._incidents = incidents
        self._residency = residency
        self._outbox = outbox
        self._detections = detections
        self._receivers = receivers
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="watch")

    async def close(self) -> None:
        """Finish the look that is under way, then stop."""
        self._ending.set()
        if self._task is not None:
            await asyncio.wait({self._task})
        await self._receivers.close()

    async def _run(self) -> None:
        turns = 0
        while True:
            await pause(self._ending, WATCH_SECONDS)
            if self._ending.is_set():
                return
            turns += 1
            try:
                await self._residency.stop_unconsented()
                await self._incidents.raise_overdue()
                await self._outbox.deliver()
                if turns % DETECT_TURNS == 0:
                    await self._detections.look()
            except ConfideError as error:
                log.error("the watch over incidents failed", extra={"fields": {"error": type(error).__name__}})


def deletion_folder(named: Path | None, state: Path) -> Path:
    """Where the deletion journal is: as set, else beside the state. A backup of the database must not hold it."""
    return named or state / "deletions"
