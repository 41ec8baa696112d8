"""The audit log's services of one worker, put together."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.audit.checkpoint import NoteError, Signer, VerifierKey
from app.crypto.secret import SecretKey
from app.observability.metrics import Metrics
from app.services.access import Access
from app.services.audit_erasable import Erasables
from app.services.audit_export import AuditExports
from app.services.audit_log import AuditLog, AuditReading
from app.services.audit_receivers import Receivers
from app.services.audit_retention import AuditRetention
from app.services.audit_signing import Signing
from app.services.audit_tree import AuditTree
from app.services.audit_witness import Witness
from app.services.auditing import Auditing
from app.services.control import ControlPlane
from app.services.sealer import Sealer
from app.services.streams import Streams
from app.store.audit_pool import STALLED, AuditPool, audit_connector
from app.store.connection import connector
from app.store.ledger import Ledger

SEED_FILE: Final = "audit.seed"


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What a deployment decides. The signer's name is the start of every origin."""

    region: str
    database_url: str
    signer: Signer
    retired_keys: str
    witness_folder: Path
    stream_key: SecretKey
    private_receivers: bool
    receiver_authorities: Path | None


@dataclass(frozen=True, slots=True)
class AuditParts:
    """Started after the lanes and closed before them: reading and sealing append events too."""

    log: AuditLog
    tree: AuditTree
    exports: AuditExports
    streams: Streams
    erasables: Erasables
    retention: AuditRetention
    signing: Signing
    sealer: Sealer
    pools: tuple[AuditPool, ...]

    def start(self) -> None:
        self.sealer.start()

    async def close(self) -> None:
        await self.sealer.close()
        await self.streams.close()
        await self.retention.close()
        for pool in self.pools:
            await pool.close()


def audit_parts(
    options: AuditOptions, *, auditing: Auditing, access: Access, control: ControlPlane, metrics: Metrics
) -> AuditParts:
    """Everything unconnected. Raises ValueError where a retired key is none."""
    connect = audit_connector(options.database_url)
    leads = audit_connector(options.database_url, **STALLED)
    reads, signs = AuditPool(connect, 3), AuditPool(leads, 3)
    try:
        retired = [VerifierKey.parse(text) for text in options.retired_keys.split(",") if text]
    except NoteError as error:
        raise ValueError(f"CONFIDE_AUDIT_RETIRED_KEYS: {error}") from None
    signing = Signing(options.signer, retired, Witness(options.witness_folder), signs, auditing)
    reading = AuditReading(reads, auditing, access)
    receivers = Receivers(private=options.private_receivers, authorities=options.receiver_authorities)
    streams = Streams(options.region, control, signs, signing, auditing, receivers, options.stream_key)
    retention = AuditRetention(control, Ledger(connector(options.database_url)), auditing)

    async def also() -> None:
        await streams.push()
        await retention.work()

    sealer = Sealer(options.region, leads, signing, auditing, also=also)
    for attribute, metric in vars(sealer.metrics).items():
        setattr(metrics, attribute, metric)
    return AuditParts(
        AuditLog(options.region, reading),
        AuditTree(reading, signing),
        AuditExports(reading, signing),
        streams,
        Erasables(reading.pool),
        retention,
        signing,
        sealer,
        (reads, signs),
    )


def dev_seed(folder: Path) -> bytes:
    """Development's signing key: 32 bytes, made once in ``folder`` with mode 0600. Raises OSError, ValueError."""
    path, draft = folder / SEED_FILE, folder / f".{SEED_FILE}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, os.urandom(32).hex().encode())
        os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.close(descriptor)
        draft.unlink()
    return bytes.fromhex(path.read_text().strip())
